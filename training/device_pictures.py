"""Pictures and masks of packs, decoded once into the memory of a device and sampled there in batches.

Everything lies in two flat buffers, one of pixels and one of mask coverage, because pictures and masks differ in size:
padding would multiply the memory and `grid_sample` wants pictures of one size. `Pyramids.sample` gathers and
interpolates from the flat buffer instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from augmentation import MIN_PIXELS
from packs import Pack
from samples import SMALL

LEVELS = 6
"""Levels of a pyramid, each half as large as the one before."""


def interpolate(
    values: Tensor, first: Tensor, size: Tensor, full: Tensor, x: Tensor, y: Tensor, outside: Tensor
) -> Tensor:
    """Interpolate bilinearly in rows of a flat buffer; the arguments are those of `Pyramids.sample`.

    Args:
        values: uint8 [T, C].
        first: int64 [M], index of the first pixel of each picture at its level.
        size: int64 [M, 2], its height and width at that level.
        full: int64 [M, 2], its height and width at level 0.
        x: Columns in pixels of level 0.
        y: Rows in pixels of level 0.
        outside: Value beyond the picture.
    """
    shrink = (size / full)[:, None, None]
    height, width = size[:, None, None].unbind(-1)
    rows, row_weights = _neighbors(y * shrink[..., 0], height)
    columns, column_weights = _neighbors(x * shrink[..., 1], width)
    rows = [first[:, None, None] + row * width for row in rows]
    inside = (row_weights[0] + row_weights[1]) * (column_weights[0] + column_weights[1])
    total = outside * (1 - inside)[..., None]
    for row, row_weight in zip(rows, row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            total = total + (row_weight * column_weight)[..., None] * values[row + column]
    return total


def _neighbors(place: Tensor, length: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the indices of the two pixels around continuous coordinates, and their weights, 0 outside of 0..length."""
    place = place - 0.5
    low = place.floor()
    part = place - low
    low = low.long()
    inside = [(index >= 0) & (index < length) for index in (low, low + 1)]
    weights = [(1 - part) * inside[0], part * inside[1]]
    return [torch.minimum(index.clamp(min=0), length - 1) for index in (low, low + 1)], weights


@dataclass(frozen=True)
class Pyramids:
    """Mipmaps of n pictures of different sizes: level 0 is the picture, each further level its halves, area-averaged.

    Attributes:
        values: uint8 [T, C], the pixels of all levels of all pictures, row by row.
        first: int64 [n, LEVELS], index of each level's first pixel. Levels beyond the smallest repeat it.
        size: int64 [n, LEVELS, 2], height and width of each level.
        interpolate: `interpolate`, or a compiled one.
    """

    values: Tensor
    first: Tensor
    size: Tensor
    interpolate: Callable[..., Tensor] = interpolate

    def level(self, scale: Tensor, lowest: float) -> Tensor:
        """Return the first level at which a reduction by `scale` leaves one by at least `lowest`, int64 like scale."""
        halvings = torch.ceil(torch.log2(lowest / scale) - 1e-4)
        return halvings.clamp(0, LEVELS - 1).long()

    def sample(self, item: Tensor, level: Tensor, x: Tensor, y: Tensor, outside: Tensor) -> Tensor:
        """Interpolate pictures bilinearly, as `cv2.warpAffine` does with a constant border.

        Args:
            item: int64 [M], picture of each map.
            level: int64 [M], level of its pyramid.
            x: float, broadcastable to [M, H, W] with y: columns in pixels of level 0. The first pixel spans 0 to 1.
            y: The same for rows.
            outside: float [C], value beyond the picture.

        Returns:
            float [M, H, W, C], 0 to 255.
        """
        first, size, full = self.first[item, level], self.size[item, level], self.size[item, 0]
        return self.interpolate(self.values, first, size, full, x, y, outside)


@dataclass(frozen=True)
class PictureLists:
    """A list of pictures per source, one after another: pictures [T], first and count [sources], all int64."""

    pictures: Tensor
    first: Tensor
    count: Tensor


class DevicePictures:
    """Pictures of packs and their instances on a device. Packs with the same source are joined.

    Instances of a picture are consecutive and sorted by size, so that its small ones are a range.

    Attributes:
        sources: Names of the sources.
        lists: Pictures of each source.
        small_lists: Pictures with an object up to `SMALL[k]`, for each k.
        images: The pictures, three channels.
        masks: The masks' coverage inside their boxes, one channel.
        size: float [n, 2], height and width of each picture.
        instance_first: int64 [n], first instance of each picture.
        instance_count: int64 [n], number of its instances.
        small_first: int64 [n], first of its instances whose box has at least `MIN_PIXELS` input pixels.
        small_end: int64 [n, len(SMALL)], end of its instances up to `SMALL[k]`.
        box: float [m, 4], x, y, width and height of each instance's box in pixels of its picture.
        side: float [m], square root of the area of each instance's exact box, in pixels of its picture.
    """

    def __init__(self, packs: list[Pack], device: torch.device, frame: int) -> None:
        cv2.setNumThreads(0)  # the threads below decode whole pictures
        self.device = device
        self.sources = list(
            dict.fromkeys(s for pack in packs for s, found in pack.images_of.items() if len(found))
        )
        chosen = [
            (index, pack, number)
            for index, source in enumerate(self.sources)
            for pack in packs
            for number in pack.images_of.get(source, np.array([], int)).tolist()
        ]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            decoded = list(threads.map(lambda item: _decode(item[1], item[2]), chosen))
        self.images = _pyramids([picture for picture, _ in decoded], device)
        instances = [instance for _, of_picture in decoded for instance in of_picture]
        self.masks = _pyramids([mask for mask, _, _ in instances], device)
        self.box = torch.tensor(np.array([box for _, box, _ in instances], np.float32), device=device)
        side = np.array([side for _, _, side in instances], np.float32)
        self.side = torch.tensor(side, device=device)

        counts = np.array([len(of_picture) for _, of_picture in decoded])
        ends = np.cumsum(counts)
        sizes = np.array([picture[0].shape[:2] for picture, _ in decoded], np.float32)
        in_input = np.repeat(frame / sizes.max(1), counts) * side
        owner = np.repeat(np.arange(len(counts)), counts)

        def end_of(below: np.ndarray) -> np.ndarray:
            return ends - counts + np.bincount(owner[below], minlength=len(counts))

        small_first = end_of(in_input < MIN_PIXELS**0.5)
        small_end = np.stack([end_of(in_input <= limit) for limit in SMALL], 1)
        self.size = torch.tensor(sizes, device=device)
        self.instance_first = torch.tensor(ends - counts, device=device)
        self.instance_count = torch.tensor(counts, device=device)
        self.small_first = torch.tensor(small_first, device=device)
        self.small_end = torch.tensor(small_end, device=device)
        source_of = np.array([index for index, _, _ in chosen])
        everything = np.ones(len(chosen), bool)
        self.lists = self._list(source_of, everything)
        self.small_lists = [self._list(source_of, small_end[:, k] > small_first) for k in range(len(SMALL))]

    def interpolate_with(self, function: Callable[..., Tensor]) -> None:
        """Replace the function that interpolates pictures and masks, by a compiled one for example."""
        self.images = replace(self.images, interpolate=function)
        self.masks = replace(self.masks, interpolate=function)

    def _list(self, source_of: np.ndarray, use: np.ndarray) -> PictureLists:
        count = np.bincount(source_of[use], minlength=len(self.sources))
        arrays = np.flatnonzero(use), np.cumsum(count) - count, count
        return PictureLists(*(torch.tensor(array, device=self.device) for array in arrays))


def _decode(
    pack: Pack, number: int
) -> tuple[list[np.ndarray], list[tuple[list[np.ndarray], list[int], float]]]:
    """Return the levels of a picture, and the levels, box (x, y, width, height) and size of its masks, by size."""
    found = []
    for instance in pack.instances_of[number]:
        crop, x, y = pack.read_mask(instance)
        _, _, width, height = cv2.boundingRect((crop > 127).astype(np.uint8))
        found.append(
            (_levels(crop[..., None]), [x, y, crop.shape[1], crop.shape[0]], (width * height) ** 0.5)
        )
    return _levels(pack.read(number)), sorted(found, key=lambda item: item[2])


def _levels(picture: np.ndarray) -> list[np.ndarray]:
    """Return an HWC picture and its successive halves, as long as both sides have at least two pixels."""
    levels = [picture]
    while len(levels) < LEVELS and min(levels[-1].shape[:2]) >= 4:
        height, width, channels = levels[-1].shape
        half = cv2.resize(levels[-1], (round(width / 2), round(height / 2)), interpolation=cv2.INTER_AREA)
        levels.append(half.reshape(*half.shape[:2], channels))
    return levels


def _pyramids(pictures: list[list[np.ndarray]], device: torch.device) -> Pyramids:
    first = np.zeros((len(pictures), LEVELS), np.int64)
    size = np.zeros((len(pictures), LEVELS, 2), np.int64)
    end = 0
    for number, levels in enumerate(pictures):
        for index in range(LEVELS):
            if index < len(levels):
                start, shape = end, levels[index].shape[:2]
                end += shape[0] * shape[1]
            first[number, index], size[number, index] = start, shape
    flat = np.concatenate([level.reshape(-1, level.shape[2]) for levels in pictures for level in levels])
    return Pyramids(*(torch.from_numpy(array).to(device) for array in (flat, first, size)))
