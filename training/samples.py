"""Augmented training samples: a window of a picture, objects in it, and a prompt for each.

The model sees a `frame` of 256 px. A window may be smaller than the frame: then it stands for a crop of the frame at
the same pixel scale, which costs a fraction of the time (see `forward.py`). Sample number i of a seed is always the
same sample, so a resumed run continues exactly where it stopped and workers need no shared state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

BOX_LABELS = (2, 3)
NOT_A_POINT = -1

MIN_PIXELS = 8
"""Smaller objects (in window pixels) are left out."""


class Pack:
    """Pictures and masks of one file written by `pack.py`."""

    def __init__(self, path: Path, held_back: dict[str, list[int]], *, use_held_back: bool = False) -> None:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        self.jpeg, self.jpeg_end = arrays["jpeg"], arrays["jpeg_end"]
        self.mask, self.mask_end = arrays["mask"], arrays["mask_end"]
        self.instance, self.image, self.image_id = arrays["instance"], arrays["image"], arrays["image_id"]
        self.sources: list[str] = arrays["sources"].tolist()
        self.instances_of: list[list[int]] = [[] for _ in range(len(self.image))]
        for number, row in enumerate(self.instance):
            self.instances_of[row[0]].append(number)
        self.images_of: dict[str, np.ndarray] = {}
        for index, source in enumerate(self.sources):
            numbers = np.flatnonzero(self.image[:, 2] == index)
            held = np.isin(self.image_id[numbers], held_back.get(source, []))
            self.images_of[source] = numbers[held if use_held_back else ~held]

    def read(self, number: int) -> np.ndarray:
        """Image `number` as HWC uint8 RGB."""
        start = self.jpeg_end[number - 1] if number else 0
        return cv2.imdecode(self.jpeg[start : self.jpeg_end[number]], cv2.IMREAD_COLOR_RGB)

    def read_mask(self, instance: int) -> tuple[np.ndarray, int, int]:
        """Mask of an instance inside its box as hw uint8 coverage (0..255), and the box's x, y."""
        start = self.mask_end[instance - 1] if instance else 0
        crop = cv2.imdecode(self.mask[start : self.mask_end[instance]], cv2.IMREAD_GRAYSCALE)
        return crop, int(self.instance[instance, 1]), int(self.instance[instance, 2])


@dataclass(frozen=True)
class SampleSpec:
    """What a sample looks like.

    Attributes:
        window: Side of the square window in pixels; a multiple of the patch size, at most the frame.
        frame: Side of the model's input.
        prompts: Prompts a window.
        weights: Share of each source.
        box_share: Share of box prompts; the rest are points.
        whole: Share of samples that show the whole picture, placed as the processor places it (windows as large as
            the frame only).
    """

    window: int
    frame: int
    prompts: int
    weights: dict[str, float]
    box_share: float = 0.65
    whole: float = 0.0


class SampleSet(Dataset[dict[str, torch.Tensor]]):
    """Endless deterministic samples; index = number of the sample since the beginning of the training."""

    def __init__(self, packs: list[Pack], spec: SampleSpec, seed: int, length: int) -> None:
        self.packs, self.spec, self.seed, self.length = packs, spec, seed, length
        known = {source for pack in packs for source in pack.images_of}
        self.sources = [s for s in spec.weights if s in known]
        shares = np.array([spec.weights[s] for s in self.sources])
        self.shares = shares / shares.sum()

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

    def _pick(self, rng: np.random.Generator, source: str) -> tuple[Pack, int]:
        pack = next(p for p in self.packs if source in p.images_of)
        return pack, int(rng.choice(pack.images_of[source]))

    def _make(self, rng: np.random.Generator) -> dict[str, torch.Tensor] | None:
        spec = self.spec
        source = str(rng.choice(self.sources, p=self.shares))
        pack, number = self._pick(rng, source)
        instances = pack.instances_of[number]
        matrix, content = self._placement(rng, pack, number, source)
        image = warp_image(pack.read(number), matrix, spec.window)
        masks = warp_masks(pack, instances, matrix, content, spec.window)
        if rng.random() < 0.3 and source != "nuclei_train":
            image, masks = self._paste(rng, image, masks, content)
        masks = [m for m in masks if cv2.countNonZero((m > 127).astype(np.uint8)) >= MIN_PIXELS]
        if not masks:
            return None
        image = photometric(rng, image, microscopy=source == "nuclei_train")
        pixels = (image.astype(np.float32) / 255 - MEAN) / STD
        inside = np.zeros((spec.window, spec.window, 1), np.float32)
        x1, y1 = content
        inside[:y1, :x1] = 1
        pixels *= inside  # the processor pads with zeros after normalization
        chosen = pick_instances(rng, masks, spec.prompts)
        grid = spec.window // 2
        targets = np.stack([cv2.resize(masks[i], (grid, grid), interpolation=cv2.INTER_AREA) for i in chosen])
        prompts = [self._prompt(rng, masks[i], k) for k, i in enumerate(chosen)]
        return {
            "pixels": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
            "targets": torch.from_numpy(targets),
            "coords": torch.from_numpy(np.stack([p[0] for p in prompts])),
            "labels": torch.from_numpy(np.stack([p[1] for p in prompts])),
        }

    def _placement(
        self, rng: np.random.Generator, pack: Pack, number: int, source: str
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """A 2x3 matrix from picture to window pixels, and (width, height) of the window that holds picture."""
        spec = self.spec
        height, width = (int(v) for v in pack.image[number, :2])
        long_side = max(height, width)
        flip = rng.random() < 0.5
        turns = int(rng.integers(4)) if source in ("nuclei_train", "scenes") else 0
        angle = 90.0 * turns + (rng.normal(0, 8) if rng.random() < 0.35 else 0.0)
        if rng.random() < spec.whole:
            angle = 90.0 * turns
            scale = spec.window / long_side
            turned = (height, width) if turns % 2 == 0 else (width, height)
            content = (max(1, round(turned[1] * scale)), max(1, round(turned[0] * scale)))
            center_to = (content[0] / 2, content[1] / 2)
            center_from = (width / 2, height / 2)
        else:
            low, high = (0.6, 1.7) if source != "objects_train" else (0.4, 1.5)
            scale = spec.frame / long_side * float(np.exp(rng.uniform(np.log(low), np.log(high))))
            content = (spec.window, spec.window)
            row = pack.instance[rng.choice(pack.instances_of[number])]
            center_from = (row[1] + row[3] / 2, row[2] + row[4] / 2)
            shift = rng.uniform(-0.4, 0.4, 2) * spec.window
            center_to = (spec.window / 2 + shift[0], spec.window / 2 + shift[1])
        cos, sin = np.cos(np.deg2rad(angle)) * scale, np.sin(np.deg2rad(angle)) * scale
        linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if flip else 1.0, 1.0])
        offset = np.array(center_to) - linear @ np.array(center_from)
        if content == (spec.window, spec.window):
            corners = linear @ np.array([[0, width, 0, width], [0, 0, height, height]]) + offset[:, None]
            offset += fill_window(rng, corners.min(1), corners.max(1), spec.window)
        return np.concatenate([linear, offset[:, None]], 1), content

    def _paste(
        self, rng: np.random.Generator, image: np.ndarray, masks: list[np.ndarray], content: tuple[int, int]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Paste an object of another picture over this one (copy-paste augmentation, arXiv 2012.07177)."""
        pack, number = self._pick(
            rng, "objects_train" if "objects_train" in self.sources else self.sources[0]
        )
        instance = int(rng.choice(pack.instances_of[number]))
        x, y, w, h = (int(v) for v in pack.instance[instance, 1:])
        side = float(np.exp(rng.uniform(np.log(12), np.log(self.spec.window * 0.6))))
        scale = side / max(w, h)
        to = rng.uniform(0, 1, 2) * np.array(content)
        matrix = np.array([[scale, 0, to[0] - (x + w / 2) * scale], [0, scale, to[1] - (y + h / 2) * scale]])
        found = warp_masks(pack, [instance], matrix, content, self.spec.window)
        if not found:  # mostly outside of the window
            return image, masks
        (mask,) = found
        alpha = mask[..., None].astype(np.float32) / 255
        pasted = warp_image(pack.read(number), matrix, self.spec.window)
        image = (image * (1 - alpha) + pasted * alpha).astype(np.uint8)
        keep = []
        for other in masks:
            visible = (other * (1 - alpha[..., 0])).astype(np.uint8)
            if visible.sum(dtype=np.int64) > 0.4 * other.sum(dtype=np.int64):
                keep.append(visible)
        return image, [*keep, mask]

    def _prompt(
        self, rng: np.random.Generator, mask: np.ndarray, order: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Two (x, y) in window pixels and their labels: the corners of a box, or a point and a padding."""
        hard = (mask > 127).astype(np.uint8)
        x, y, w, h = cv2.boundingRect(hard)
        if rng.random() < self.spec.box_share:
            # Users draw boxes loosely, detectors less so, annotations fit exactly.
            relative = (0.0, 0.015, 0.08)[int(rng.choice(3, p=(0.35, 0.35, 0.3)))]
            noise = np.clip(rng.normal(0, relative, 4), -0.2, 0.2) * np.array([w, h, w, h])
            corners = np.array([x, y, x + w, y + h], np.float32) + noise
            if corners[2] - corners[0] < 2 or corners[3] - corners[1] < 2:
                corners = np.array([x, y, x + w, y + h], np.float32)
            return corners.reshape(2, 2).astype(np.float32), np.array(BOX_LABELS, np.int64)
        if rng.random() < 0.5:
            distance = cv2.distanceTransform(np.pad(hard, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
            row, column = np.unravel_index(int(distance.argmax()), distance.shape)
        else:
            rows, columns = np.nonzero(hard)
            pick = int(rng.integers(len(rows)))
            row, column = rows[pick], columns[pick]
        return np.array([[column, row], [0, 0]], np.float32), np.array([1, NOT_A_POINT], np.int64)


def fill_window(rng: np.random.Generator, low: np.ndarray, high: np.ndarray, window: int) -> np.ndarray:
    """Shift (x, y) of a picture spanning low..high that leaves no margin empty, or places a smaller one inside."""
    shift = np.zeros(2)
    for axis in range(2):
        if high[axis] - low[axis] <= window:
            shift[axis] = -low[axis] + rng.random() * (window - high[axis] + low[axis])
        else:
            shift[axis] = max(0.0, window - high[axis]) + min(0.0, -low[axis])
    return shift


def warp_image(image: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """Map a picture into the window; large reductions are averaged first so that they do not alias."""
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.75:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        matrix = np.concatenate([matrix[:, :2] / scale, matrix[:, 2:]], 1)
    border = tuple(float(v) for v in MEAN * 255)
    return cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderValue=border)


def warp_masks(
    pack: Pack, instances: list[int], matrix: np.ndarray, content: tuple[int, int], side: int
) -> list[np.ndarray]:
    """Masks of the instances that lie in the window to at least a quarter: HW uint8 coverage (0..255)."""
    area_scale = abs(float(np.linalg.det(matrix[:, :2])))
    masks = []
    for instance in instances:
        x, y, w, h = (float(v) for v in pack.instance[instance, 1:])
        corners = matrix[:, :2] @ np.array([[x, x + w, x, x + w], [y, y, y + h, y + h]]) + matrix[:, 2:]
        if corners[0].max() < 4 or corners[1].max() < 4 or corners.min(1).max() > side - 4:
            continue
        crop, x0, y0 = pack.read_mask(instance)
        full = int(np.count_nonzero(crop > 127)) * area_scale
        scale = area_scale**0.5
        local = matrix.copy()
        local[:, 2] += matrix[:, :2] @ np.array([x0, y0])
        if scale < 0.6 and min(crop.shape) * scale >= 2:
            crop = cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            local = np.concatenate([local[:, :2] / scale, local[:, 2:]], 1)
        mask = cv2.warpAffine(crop, local, (side, side), flags=cv2.INTER_LINEAR)
        mask[content[1] :] = 0
        mask[:, content[0] :] = 0
        if np.count_nonzero(mask > 127) >= max(MIN_PIXELS, 0.25 * full):
            masks.append(mask)
    return masks


def photometric(rng: np.random.Generator, image: np.ndarray, *, microscopy: bool) -> np.ndarray:
    """Colour, contrast, blur and noise."""
    x = image.astype(np.float32)
    if rng.random() < 0.8:
        x = (x - 128) * rng.uniform(0.65, 1.35) + 128 + rng.uniform(-30, 30)
    if rng.random() < 0.5:
        x = x * rng.uniform(0.8, 1.2, 3).astype(np.float32)
    if rng.random() < 0.15:
        x = np.repeat(x.mean(2, keepdims=True), 3, 2)
    if microscopy and rng.random() < 0.25:
        x = 255 - x
    x = np.clip(x, 0, 255)
    if rng.random() < 0.3:
        x = 255 * (x / 255) ** np.float32(rng.uniform(0.6, 1.6))
    if rng.random() < 0.2:
        x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.4, 1.3)))
    if rng.random() < 0.2:
        x = x + rng.standard_normal(x.shape, np.float32) * np.float32(rng.uniform(2, 12))
    return np.clip(x, 0, 255).astype(np.uint8)


def pick_instances(rng: np.random.Generator, masks: list[np.ndarray], count: int) -> list[int]:
    """`count` indices into masks: each once in random order, then again."""
    order: list[int] = []
    while len(order) < count:
        order += rng.permutation(len(masks)).tolist()
    return order[:count]
