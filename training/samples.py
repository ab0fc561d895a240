"""Augmented training samples: a window of a picture, objects in it, and a prompt for each.

The model sees a `frame` of 256 px. A window may be smaller than the frame: then it stands for a crop of the frame at
the same pixel scale, which costs a fraction of the time (see `forward.py`). Sample number i of a seed is always the
same sample, so a resumed run continues exactly where it stopped and workers need no shared state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from augmentation import (
    FINE,
    MEAN,
    MIN_PIXELS,
    STD,
    cut_region,
    fill_window,
    photometric,
    subpixel_box,
    warp_image,
    warp_masks,
)
from packs import Pack

BOX_LABELS = (2, 3)
NOT_A_POINT = -1

SMALL = (6.0, 12.0)
"""Upper ends of the sizes of small objects: square roots of their boxes' areas, in pixels of the model's input."""


@dataclass(frozen=True)
class SampleSpec:
    """Options of the augmentation.

    Attributes:
        window: Side of the square window in pixels; a multiple of the patch size, at most the frame.
        frame: Side of the model's input.
        prompts: Prompts a window.
        weights: Share of each source.
        box_share: Share of box prompts; the rest are points.
        whole: Share of samples that show the whole picture, placed as the processor places it (windows as large as
            the frame only).
        canvas: How the processor places a picture in the frame: "pad" keeps its aspect, "stretch" fills the frame.
        mask_stride: Side of a cell of the low-resolution mask in pixels.
        small: Share of samples that favor small objects: a picture with some, at most its usual scale, around one of
            them, and small ones are prompted first.
    """

    window: int
    frame: int
    prompts: int
    weights: dict[str, float]
    box_share: float = 0.65
    whole: float = 0.0
    canvas: Literal["pad", "stretch"] = "pad"
    mask_stride: int = 2
    small: float = 0.0


@dataclass(frozen=True)
class Choice:
    """Picture of a sample.

    Attributes:
        pack: Pack that holds it.
        number: Its number there.
        centers: Instances that a window may be placed around.
        limit: Size up to which objects are prompted first, in pixels of the input; 0 if all are alike.
    """

    pack: Pack
    number: int
    centers: list[int]
    limit: float = 0.0


class SampleSet(Dataset[dict[str, torch.Tensor]]):
    """Endless deterministic samples; index = number of the sample since the beginning of the training."""

    def __init__(self, packs: list[Pack], spec: SampleSpec, seed: int, length: int) -> None:
        self.packs, self.spec, self.seed, self.length = packs, spec, seed, length
        self.pictures = {
            source: [(pack, int(number)) for pack in packs for number in pack.images_of.get(source, ())]
            for source in spec.weights
        }
        """Pictures of each source, of all packs: the pack and the number there."""
        self.sources = [source for source, pictures in self.pictures.items() if pictures]
        shares = np.array([spec.weights[s] for s in self.sources])
        self.shares = shares / shares.sum()
        self.small: dict[tuple[str, float], list[Choice]] = {}
        for source in self.sources if spec.small > 0 else []:
            for limit in SMALL:
                self.small[source, limit] = small_choices(self.pictures[source], spec.frame, limit)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        cv2.setNumThreads(0)
        for attempt in range(20):
            rng = np.random.default_rng((self.seed, index, attempt))
            made = self._make(rng)
            if made is not None:
                return made
        raise RuntimeError(f"no sample with an object in it after 20 attempts (sample {index})")

    def _picture(self, rng: np.random.Generator, source: str) -> tuple[Pack, int]:
        pictures = self.pictures[source]
        return pictures[int(rng.integers(len(pictures)))]

    def _pick(self, rng: np.random.Generator, source: str) -> Choice:
        if self.spec.small > 0 and rng.random() < self.spec.small:
            choices = self.small[source, SMALL[int(rng.integers(len(SMALL)))]]
            if choices:
                return choices[int(rng.integers(len(choices)))]
        pack, number = self._picture(rng, source)
        return Choice(pack, number, pack.instances_of[number])

    def _make(self, rng: np.random.Generator) -> dict[str, torch.Tensor] | None:
        spec = self.spec
        source = str(rng.choice(self.sources, p=self.shares))
        choice = self._pick(rng, source)
        pack, number = choice.pack, choice.number
        matrix, content = self._placement(rng, choice, source)
        image = warp_image(pack.read(number), matrix, spec.window)
        masks = warp_masks(pack, pack.instances_of[number], matrix * FINE, content, spec.window)
        if rng.random() < 0.3 and source != "nuclei_train":
            image, masks = self._paste(rng, image, masks, content)
        masks = [m for m in masks if np.count_nonzero(m > 127) >= MIN_PIXELS * FINE**2]
        if not masks:
            return None
        image = photometric(rng, image, microscopy=source == "nuclei_train")
        pixels = (image.astype(np.float32) / 255 - MEAN) / STD
        inside = np.zeros((spec.window, spec.window, 1), np.float32)
        x1, y1 = content
        inside[:y1, :x1] = 1
        pixels *= inside  # the processor pads with zeros after normalization
        chosen = pick_instances(rng, masks, spec.prompts, choice.limit)
        grid = spec.window // spec.mask_stride
        targets = np.stack([cv2.resize(masks[i], (grid, grid), interpolation=cv2.INTER_AREA) for i in chosen])
        boxes = [subpixel_box(masks[i]) for i in chosen]
        prompts = [self._prompt(rng, masks[i], box) for i, box in zip(chosen, boxes, strict=True)]
        regions = [cut_region(rng, masks[i], box) for i, box in zip(chosen, boxes, strict=True)]
        return {
            "pixels": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
            "targets": torch.from_numpy(targets),
            "coords": torch.from_numpy(np.stack([p[0] for p in prompts])),
            "labels": torch.from_numpy(np.stack([p[1] for p in prompts])),
            "regions": torch.from_numpy(np.stack([r[0] for r in regions])),
            "region_targets": torch.from_numpy(np.stack([r[1] for r in regions])),
        }

    def _placement(
        self, rng: np.random.Generator, choice: Choice, source: str
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Return a 2x3 matrix from picture to window, and the (width, height) of the window that the picture covers.

        Coordinates are continuous: the first pixel spans 0 to 1, as for prompts and for boxes.
        """
        spec = self.spec
        pack = choice.pack
        height, width = (int(v) for v in pack.image[choice.number, :2])
        long_side = max(height, width)
        flip = rng.random() < 0.5
        turns = int(rng.integers(4)) if source in ("nuclei_train", "scenes") else 0
        angle = 90.0 * turns + (rng.normal(0, 8) if rng.random() < 0.35 else 0.0)
        turned = (height, width) if turns % 2 == 0 else (width, height)
        stretch = np.array([long_side / turned[1], long_side / turned[0]])
        if spec.canvas == "pad":
            stretch[:] = 1.0
        if rng.random() < spec.whole:
            angle = 90.0 * turns
            scale = spec.window / long_side
            content = (
                max(1, round(turned[1] * scale * stretch[0])),
                max(1, round(turned[0] * scale * stretch[1])),
            )
            center_to = (content[0] / 2, content[1] / 2)
            center_from = (width / 2, height / 2)
        else:
            low, high = (0.6, 1.7) if source != "objects_train" else (0.4, 1.5)
            if choice.limit > 0:
                high = 1.0
            scale = spec.frame / long_side * float(np.exp(rng.uniform(np.log(low), np.log(high))))
            content = (spec.window, spec.window)
            row = pack.instance[rng.choice(choice.centers)]
            center_from = (row[1] + row[3] / 2, row[2] + row[4] / 2)
            shift = rng.uniform(-0.4, 0.4, 2) * spec.window
            center_to = (spec.window / 2 + shift[0], spec.window / 2 + shift[1])
        cos, sin = np.cos(np.deg2rad(angle)) * scale, np.sin(np.deg2rad(angle)) * scale
        linear = (
            np.diag(stretch) @ np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if flip else 1.0, 1.0])
        )
        offset = np.array(center_to) - linear @ np.array(center_from)
        if content == (spec.window, spec.window):
            corners = linear @ np.array([[0, width, 0, width], [0, 0, height, height]]) + offset[:, None]
            offset += fill_window(rng, corners.min(1), corners.max(1), spec.window)
        return np.concatenate([linear, offset[:, None]], 1), content

    def _paste(
        self, rng: np.random.Generator, image: np.ndarray, masks: list[np.ndarray], content: tuple[int, int]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Paste an object of another picture over this one (copy-paste augmentation, arXiv 2012.07177)."""
        source = "objects_train" if "objects_train" in self.sources else self.sources[0]
        pack, number = self._picture(rng, source)
        instance = int(rng.choice(pack.instances_of[number]))
        x, y, w, h = (int(v) for v in pack.instance[instance, 1:])
        side = float(np.exp(rng.uniform(np.log(12), np.log(self.spec.window * 0.6))))
        scale = side / max(w, h)
        to = rng.uniform(0, 1, 2) * np.array(content)
        matrix = np.array([[scale, 0, to[0] - (x + w / 2) * scale], [0, scale, to[1] - (y + h / 2) * scale]])
        covered = warp_masks(pack, [instance], matrix * FINE, content, self.spec.window)
        if not covered:  # mostly outside of the window
            return image, masks
        (mask,) = covered
        cover = mask.astype(np.float32) / 255
        alpha = cv2.resize(cover, image.shape[1::-1], interpolation=cv2.INTER_AREA)[..., None]
        pasted = warp_image(pack.read(number), matrix, self.spec.window)
        image = (image * (1 - alpha) + pasted * alpha).astype(np.uint8)
        keep = []
        for other in masks:
            visible = (other * (1 - cover)).astype(np.uint8)
            if visible.sum(dtype=np.int64) > 0.4 * other.sum(dtype=np.int64):
                keep.append(visible)
        return image, [*keep, mask]

    def _prompt(
        self, rng: np.random.Generator, mask: np.ndarray, box: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return two (x, y) in window pixels and their labels: the corners of a box, or a point and padding."""
        if rng.random() < self.spec.box_share:
            # Users draw boxes loosely, detectors less so, annotations fit exactly.
            relative = (0.0, 0.015, 0.08)[int(rng.choice(3, p=(0.5, 0.25, 0.25)))]
            size = np.tile(box[2:] - box[:2], 2)
            corners = box + np.clip(rng.normal(0, relative, 4), -0.2, 0.2) * size
            if (corners[2:] - corners[:2] < 1).any():
                corners = box
            return corners.reshape(2, 2).astype(np.float32), np.array(BOX_LABELS, np.int64)
        hard = (mask > 127).astype(np.uint8)
        if rng.random() < 0.5:
            distance = cv2.distanceTransform(np.pad(hard, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
            row, column = np.unravel_index(int(distance.argmax()), distance.shape)
        else:
            rows, columns = np.nonzero(hard)
            pick = int(rng.integers(len(rows)))
            row, column = rows[pick], columns[pick]
        # The model adds half a pixel to every prompt, as the published one does.
        point = (np.array([column, row]) + 0.5) / FINE - 0.5
        return np.stack([point, np.zeros(2)]).astype(np.float32), np.array([1, NOT_A_POINT], np.int64)


def pick_instances(
    rng: np.random.Generator, masks: list[np.ndarray], count: int, limit: float = 0.0
) -> list[int]:
    """Draw `count` indices into fine masks: each once in random order, those up to `limit` pixels first, then again."""
    is_large = [mask_side(mask) > limit for mask in masks] if limit > 0 else [False] * len(masks)
    order: list[int] = []
    while len(order) < count:
        order += sorted(rng.permutation(len(masks)).tolist(), key=is_large.__getitem__)
    return order[:count]


def mask_side(mask: np.ndarray) -> float:
    """Return the square root of the area of a fine mask's box, in pixels of the window."""
    _, _, width, height = cv2.boundingRect((mask > 127).astype(np.uint8))
    return (width * height) ** 0.5 / FINE


def small_choices(pictures: Iterable[tuple[Pack, int]], frame: int, limit: float) -> list[Choice]:
    """Return the pictures with objects of at most `limit` pixels in the frame, with these objects as centers."""
    choices = []
    for pack, number in pictures:
        scale = frame / int(pack.image[number, :2].max())
        instances = pack.instances_of[number]
        sides = [scale * float(pack.instance[i, 3:5].prod()) ** 0.5 for i in instances]
        small = [i for i, side in zip(instances, sides, strict=True) if MIN_PIXELS**0.5 <= side <= limit]
        if small:
            choices.append(Choice(pack, number, small, limit))
    return choices
