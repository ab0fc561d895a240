"""Canvas on which objects are drawn back to front, with the owner of every pixel.

Mask rule: a pixel belongs to the top-level object that was last drawn over it with `alpha > 0.5`. A part
belongs to one top-level object (its whole), lies inside it, and is occluded by later parts of the same whole
and by later objects. The visible masks of top-level objects are therefore pairwise disjoint, those of parts are
pairwise disjoint, and each part is contained in its whole. Shadows belong to no object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from saqsam.data.scenes.shapes import Raster, Shape, rasterize
from saqsam.data.scenes.textures import Material, paint

Array = np.ndarray[Any, Any]
Rng = np.random.Generator

MIN_VISIBLE_PIXELS = 48
MIN_VISIBLE_SHARE = 0.25
_MAX_PART_SHARE = 0.9  # a part that covers nearly its whole would duplicate the mask


@dataclass(frozen=True)
class Look:
    """Appearance of an object under light.

    Args:
        outline: RGB of a rim drawn inside the object, or None.
        outline_width: Width of the rim in pixels.
        pillow: Brightness change in levels from the edge to the middle (negative: bright edge).
        slope: Brightness change in levels across the object, along `light`.
        light: Unit vector (x, y) pointing away from the light; shadows fall along it.
        shadow: Opacity of the cast shadow in [0, 1].
        shadow_reach: Displacement of the shadow in pixels.
        opacity: Opacity of the object itself in (0, 1]; the mask does not depend on it.
    """

    outline: Array | None = None
    outline_width: int = 1
    pillow: float = 0.0
    slope: float = 0.0
    light: tuple[float, float] = (0.7, 0.7)
    shadow: float = 0.0
    shadow_reach: float = 0.0
    opacity: float = 1.0


@dataclass(frozen=True)
class Entry:
    """A drawn object or part: kind, pixel count before occlusion, index of its whole (-1: top level)."""

    kind: str
    area: int
    whole: int


class Canvas:
    """An image being composed, with exact ownership.

    Args:
        rng: Source of all randomness of the surfaces.
        ground: HWC float32 background in [0, 255].
    """

    def __init__(self, rng: Rng, ground: Array) -> None:
        self.rng = rng
        self.image = ground
        self.size: tuple[int, int] = (ground.shape[0], ground.shape[1])
        self.entries: list[Entry] = []
        self._owner = np.full(self.size, -1, dtype=np.int16)
        self._part = np.full(self.size, -1, dtype=np.int16)

    def _window(self, raster: Raster) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
        """Return the overlap with the image as slices into image and raster; None if there is none."""
        (height, width), (h, w) = self.size, raster.alpha.shape
        y0, y1 = max(raster.top, 0), min(raster.top + h, height)
        x0, x1 = max(raster.left, 0), min(raster.left + w, width)
        if y0 >= y1 or x0 >= x1:
            return None
        inner = (slice(y0 - raster.top, y1 - raster.top), slice(x0 - raster.left, x1 - raster.left))
        return (slice(y0, y1), slice(x0, x1)), inner

    def color_at(self, x: float, y: float) -> Array:
        """Return the mean RGB around a point of the canvas, (3,) float32."""
        row = int(np.clip(y, 0, self.size[0] - 1))
        col = int(np.clip(x, 0, self.size[1] - 1))
        patch = self.image[max(row - 4, 0) : row + 5, max(col - 4, 0) : col + 5]
        color: Array = patch.mean(axis=(0, 1))
        return color

    def _blend(self, raster: Raster, surface: Array | float, opacity: float) -> None:
        window = self._window(raster)
        if window is None:
            return
        here, inner = window
        alpha = raster.alpha[inner] * np.float32(opacity)
        weight = np.asarray(cv2.merge([alpha, alpha, alpha]))
        over = surface[inner] if isinstance(surface, np.ndarray) else np.float32(surface)
        self.image[here] += weight * (over - self.image[here])

    def _cast_shadow(self, raster: Raster, look: Look) -> None:
        pad = 2 + round(look.shadow_reach)
        soft = cv2.copyMakeBorder(raster.alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0.0)
        sigma = 0.4 + look.shadow_reach / 4
        soft = cv2.GaussianBlur(soft, (0, 0), sigma)
        dx, dy = (round(look.shadow_reach * v) for v in look.light)
        self._blend(Raster(raster.top - pad + dy, raster.left - pad + dx, soft), 0.0, look.shadow)

    def _surface(self, alpha: Array, material: Material, look: Look) -> Array:
        height, width = alpha.shape
        surface = paint(self.rng, material, (height, width))
        if look.slope:
            y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
            x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
            gradient = x * np.float32(look.light[0]) + y * np.float32(look.light[1])
            surface -= (np.float32(look.slope) * gradient)[..., None]
        if look.pillow:
            depth = cv2.distanceTransform((alpha > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
            deepest = max(float(depth.max()), 1.0)
            round_ = np.sqrt(depth * np.float32(1.0 / deepest)) - np.float32(0.6)
            surface += (np.float32(look.pillow) * round_)[..., None]
        if look.outline is not None:
            side = 2 * look.outline_width + 1
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
            rim = (alpha - cv2.erode(alpha, kernel))[..., None]
            surface += rim * (look.outline - surface)
        return surface

    def decorate(self, shape: Shape, material: Material, opacity: float = 1.0) -> None:
        """Draw scenery that is not an object, such as a road or a field; call this before adding objects there."""
        raster = rasterize(shape)
        self._blend(raster, self._surface(raster.alpha, material, Look()), opacity)

    def add(self, kind: str, shape: Shape, material: Material, look: Look) -> tuple[int, Raster]:
        """Draw a top-level object on top of everything so far.

        Returns:
            Index and raster of the object; parts are clipped to the raster.
        """
        raster = rasterize(shape)
        index = len(self.entries)
        mask = raster.alpha > 0.5
        self.entries.append(Entry(kind, int(mask.sum()), -1))
        window = self._window(raster)
        if window is None:
            return index, raster
        if look.shadow > 0:
            self._cast_shadow(raster, look)
        self._blend(raster, self._surface(raster.alpha, material, look), look.opacity)
        here, inner = window
        self._owner[here][mask[inner]] = index
        self._part[here][mask[inner]] = -1
        return index, raster

    def add_part(
        self, whole: int, within: Raster, kind: str, shape: Shape, material: Material, look: Look
    ) -> None:
        """Draw a part of `whole` (the object drawn last), clipped to its raster `within`."""
        raster = rasterize(shape)
        h, w = raster.alpha.shape
        dy, dx = raster.top - within.top, raster.left - within.left
        clip = np.zeros((h, w), dtype=np.float32)
        y0, x0 = max(dy, 0), max(dx, 0)
        y1, x1 = min(dy + h, within.alpha.shape[0]), min(dx + w, within.alpha.shape[1])
        if y0 >= y1 or x0 >= x1:
            return
        clip[y0 - dy : y1 - dy, x0 - dx : x1 - dx] = within.alpha[y0:y1, x0:x1]
        inside = raster.alpha * clip
        mask = (raster.alpha > 0.5) & (clip > 0.5)
        area = int(mask.sum())
        if area == 0:
            return
        index = len(self.entries)
        self.entries.append(Entry(kind, area, whole))
        clipped = Raster(raster.top, raster.left, inside)
        self._blend(clipped, self._surface(inside, material, look), look.opacity)
        window = self._window(clipped)
        if window is not None:
            here, inner = window
            self._part[here][mask[inner]] = index

    def visible(self) -> list[tuple[Entry, int, Array]]:
        """Return the entries that are visible enough.

        Returns:
            For each entry: the entry, the position of its whole in this list (-1: none), and its HW bool mask.
        """
        kept: list[tuple[Entry, int, Array]] = []
        position: dict[int, int] = {}
        shown: dict[int, int] = {}
        for index, entry in enumerate(self.entries):
            is_part = entry.whole >= 0
            if is_part and entry.whole not in position:
                continue
            mask = (self._part if is_part else self._owner) == index
            count = int(np.count_nonzero(mask))
            shown[index] = count
            if count < MIN_VISIBLE_PIXELS or count < MIN_VISIBLE_SHARE * entry.area:
                continue
            if is_part and count > _MAX_PART_SHARE * shown[entry.whole]:
                continue
            position[index] = len(kept)
            kept.append((entry, position.get(entry.whole, -1), mask))
        return kept
