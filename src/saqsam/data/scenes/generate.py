"""Generate one labeled scene from a seed.

A scene is drawn back to front from textured shapes (`shapes`, `textures`), in one of several styles (`layouts`). The
canvas records which object owns each pixel (`canvas`), and a camera model adds blur and noise (`camera`). The same seed
and size give the same bytes: all randomness is one PCG64 stream, and all drawing is NumPy and OpenCV on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from saqsam.data.scenes.camera import shoot
from saqsam.data.scenes.layouts import STYLES

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


def check_int(name: str, value: object, low: int) -> int:
    """Return `value` as an int; raise ValueError unless it is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
    return int(value)


def check_size(size: object) -> tuple[int, int]:
    """Return `size` as (height, width); raise ValueError unless both are integers of at least `MIN_SIDE`."""
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(f"size must be (height, width), got {size!r}")
    return check_int("height", size[0], MIN_SIDE), check_int("width", size[1], MIN_SIDE)


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
    seed = check_int("seed", seed, 0)
    fixed_size = None if size is None else check_size(size)
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
        canvas = STYLES[chosen][0](rng, fixed_size or drawn_size)
        visible = canvas.visible()
        if visible:
            break
        attempt += 1
    return Scene(
        image=shoot(rng, canvas.image),
        masks=np.stack([mask for _, _, mask in visible]),
        kinds=tuple(entry.kind for entry, _, _ in visible),
        parents=tuple(whole for _, whole, _ in visible),
        style=chosen,
    )
