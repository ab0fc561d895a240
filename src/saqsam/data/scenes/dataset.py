"""Procedural scenes: labelled pictures from a seed, the data set that comes with the package.

A scene is drawn back to front from textured shapes (`shapes`, `textures`), in one of several styles
(`layouts`), with every pixel's owner known (`canvas`), and then photographed (`camera`). The same seed and
size give the same bytes: all randomness is one PCG64 stream and all drawing is NumPy and OpenCV on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from saqsam.data.scenes.camera import shoot
from saqsam.data.scenes.layouts import STYLES
from saqsam.data.types import Instance, Sample

Array = np.ndarray[Any, Any]

MIN_SIDE = 32
_RANDOM_SIDE = (192, 384)
_KINDS = (
    *("ellipse", "polygon", "star", "blob", "rectangle", "ring", "crescent", "stroke", "composite"),
    *("section", "cell", "nucleus", "building", "tank", "tree", "vehicle"),
)
CATEGORIES: dict[str, int] = {kind: index for index, kind in enumerate(_KINDS, start=1)}
"""Category id of each kind of object that a scene can hold."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture with exact instance masks.

    Args:
        image: HWC uint8 RGB.
        masks: NHW bool, N >= 1: what is visible of each instance, each with at least 48 pixels and a quarter
            of the instance's full area. Masks of top-level instances are pairwise disjoint, and so are
            those of parts; a part lies inside its whole.
        kinds: N keys of `CATEGORIES`.
        parents: N positions of each part's whole within `masks`, -1 for a top-level instance.
        style: Key of `layouts.STYLES` that drew the scene.
    """

    image: Array
    masks: Array
    kinds: tuple[str, ...]
    parents: tuple[int, ...]
    style: str


def _check_int(name: str, value: object, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
    return int(value)


def _check_size(size: object) -> tuple[int, int]:
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(f"size must be (height, width), got {size!r}")
    return _check_int("height", size[0], MIN_SIDE), _check_int("width", size[1], MIN_SIDE)


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    low, high = _RANDOM_SIDE
    height, width = rng.integers(low, high + 1, 2)
    return int(height), int(width)


def generate_scene(seed: int, *, size: tuple[int, int] | None = None, style: str | None = None) -> Scene:
    """Draw the scene of a seed.

    Args:
        seed: Non-negative integer of any size.
        size: (height, width) in pixels, each at least 32. None draws both from the seed, in 192..384.
        style: Key of `layouts.STYLES`; None draws it from the seed.

    Returns:
        The scene; equal arguments give equal bytes.

    Raises:
        ValueError: If the seed is not a non-negative integer, a side is below 32, or the style is unknown.
    """
    seed = _check_int("seed", seed, 0)
    wanted = None if size is None else _check_size(size)
    if style is not None and style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    names = list(STYLES)
    weights = np.array([share for _, share in STYLES.values()])
    attempt = 0
    while True:
        # Nothing large enough may be left in sight, in tiny images above all: the next attempt starts afresh.
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(attempt,))))
        drawn_size = _draw_size(rng)
        drawn_style = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        chosen = style or drawn_style
        canvas = STYLES[chosen][0](rng, wanted or drawn_size)
        found = canvas.visible()
        if found:
            break
        attempt += 1
    return Scene(
        image=shoot(rng, canvas.image),
        masks=np.stack([mask for _, _, mask in found]),
        kinds=tuple(entry.kind for entry, _, _ in found),
        parents=tuple(whole for _, whole, _ in found),
        style=chosen,
    )


def _instance(index: int, mask: Array, kind: str) -> Instance:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1))
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return Instance(id=index, rle=rle, box=box, category_id=CATEGORIES[kind])


class ScenesDataset:
    """Scenes as a data set of `count` samples; nothing is stored, each access draws its scene.

    Args:
        count: Number of samples.
        seed: Which split; samples of different seeds come from unrelated streams.
        size: (height, width) of all images, or None for sizes in 192..384.

    Raises:
        ValueError: If an argument is out of range.
    """

    name = "scenes"
    category_names: Mapping[int, str] = {number: kind for kind, number in CATEGORIES.items()}

    def __init__(self, count: int = 100, seed: int = 0, size: tuple[int, int] | None = None) -> None:
        self.count = _check_int("count", count, 1)
        self.seed = _check_int("seed", seed, 0)
        self.size = None if size is None else _check_size(size)

    def __len__(self) -> int:
        return self.count

    @property
    def digest(self) -> str:
        """What the scenes are made from, beside their number."""
        return f"seed {self.seed}, size {self.size}"

    def scene_seed(self, i: int) -> int:
        """The seed given to `generate_scene` for sample `i`: 64 bits hashed from the split's seed and `i`."""
        return int(np.random.SeedSequence(self.seed, spawn_key=(i,)).generate_state(1, np.uint64)[0])

    def __getitem__(self, i: int) -> Sample:
        """Sample `i`; instance ids are unique over the data set. IndexError past the end."""
        if not 0 <= i < self.count:
            raise IndexError(f"sample {i} of {self.count}")
        scene = generate_scene(self.scene_seed(i), size=self.size)
        instances = tuple(
            _instance(1000 * i + k + 1, mask, kind)
            for k, (mask, kind) in enumerate(zip(scene.masks, scene.kinds, strict=True))
        )
        return Sample(i, f"scene_{self.seed}_{i:06d}.png", scene.image, instances)
