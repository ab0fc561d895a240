"""Outlines of the procedural scenes: vector shapes and their antialiased rasterization.

A shape is a list of `Piece`s in a unit frame (about radius 1 around the origin). `place` moves it into image
pixels and `rasterize` renders it at four times the resolution and averages down, so that `alpha` is the
covered share of each pixel and `alpha > 0.5` is the mask that belongs to the drawn picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

Array = np.ndarray[Any, Any]
Rng = np.random.Generator

_SUPERSAMPLE = 4
_SHIFT = 4  # fractional bits of the fixed-point vertices given to OpenCV


@dataclass(frozen=True)
class Piece:
    """One drawing step of a shape.

    Args:
        points: N2 float64 vertices (x, y).
        mode: `fill` adds the polygon, `cut` removes it from what was drawn before, `stroke` adds a polyline.
        width: Line width of a stroke, in the units of `points`.
    """

    points: Array
    mode: Literal["fill", "cut", "stroke"] = "fill"
    width: float = 0.0


Shape = list[Piece]


@dataclass(frozen=True)
class Raster:
    """A rendered shape: `alpha` (hw float32 in [0, 1]) whose first pixel is image pixel (`top`, `left`)."""

    top: int
    left: int
    alpha: Array


def place(shape: Shape, center: tuple[float, float], radius: float, angle: float, aspect: float) -> Shape:
    """Scale by `radius` (y also by `aspect`), turn by `angle` radians and move to `center` (x, y)."""
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[cos, sin], [-sin, cos]]) * np.array([[radius], [radius * aspect]])
    offset = np.asarray(center, dtype=np.float64)
    return [Piece(p.points @ linear + offset, p.mode, p.width * radius) for p in shape]


def rasterize(shape: Shape) -> Raster:
    """Render a placed shape; the raster encloses it entirely, also where it leaves the image.

    OpenCV fills the outline's own pixels too, so a shape comes out about 1/8 pixel wide of its vertices;
    picture and mask share that.
    """
    reach = [p for p in shape if p.mode != "cut"]
    low = np.min([p.points.min(axis=0) - p.width / 2 for p in reach], axis=0)
    high = np.max([p.points.max(axis=0) + p.width / 2 for p in reach], axis=0)
    left, top = (int(v) for v in np.floor(low) - 1)
    right, bottom = (int(v) for v in np.ceil(high) + 1)
    fine = np.zeros(((bottom - top) * _SUPERSAMPLE, (right - left) * _SUPERSAMPLE), dtype=np.uint8)
    for piece in shape:
        # OpenCV puts integer coordinates on pixel centers, ours are on pixel corners.
        scaled = (piece.points - (left, top)) * _SUPERSAMPLE - 0.5
        vertices = np.round(scaled * (1 << _SHIFT)).astype(np.int32).reshape(-1, 1, 2)
        if piece.mode == "stroke":
            thickness = max(1, round(piece.width * _SUPERSAMPLE))
            cv2.polylines(fine, [vertices], False, 255, thickness, cv2.LINE_8, _SHIFT)
        else:
            cv2.fillPoly(fine, [vertices], 255 if piece.mode == "fill" else 0, cv2.LINE_8, _SHIFT)
    coarse = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return Raster(top, left, coarse.astype(np.float32) * np.float32(1 / 255))


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform, so that each octave of sizes is as common as the next."""
    return float(np.exp(rng.uniform(np.log(low), np.log(max(high, low * 1.01)))))


def random_light(rng: Rng) -> tuple[float, float]:
    """Draw a unit vector (x, y), the direction of shadows."""
    angle = rng.uniform(0, 2 * np.pi)
    return float(np.cos(angle)), float(np.sin(angle))


def random_spot(rng: Rng, size: tuple[int, int], margin: float = -0.03) -> tuple[float, float]:
    """Draw a point (x, y) in an image of `size` (height, width), at least the fraction `margin` from its border."""
    height, width = size
    return float(rng.uniform(margin, 1 - margin) * width), float(rng.uniform(margin, 1 - margin) * height)


def touches(shape: Shape, size: tuple[int, int]) -> bool:
    """Return whether the bounding box of a placed shape meets an image of `size` (height, width)."""
    points = np.concatenate([p.points for p in shape if p.mode != "cut"])
    pad = max(p.width for p in shape) / 2
    low, high = points.min(axis=0) - pad, points.max(axis=0) + pad
    return bool(high[0] > 0 and high[1] > 0 and low[0] < size[1] and low[1] < size[0])


def _polar(radii: Array, angles: Array) -> Array:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _turn(count: int) -> Array:
    return np.arange(count) * (2 * np.pi / count)


def ellipse(rng: Rng) -> Shape:
    """Return a disc; the aspect of `place` makes it an ellipse."""
    return [Piece(_polar(np.ones(72), _turn(72)))]


def polygon(rng: Rng) -> Shape:
    """Draw a convex or concave polygon with 3 to 9 corners."""
    count = int(rng.integers(3, 10))
    angles = _turn(count) + rng.uniform(-0.4, 0.4, count) * (2 * np.pi / count)
    low = rng.choice([0.35, 0.95])
    return [Piece(_polar(rng.uniform(low, 1.0, count), angles))]


def star(rng: Rng) -> Shape:
    """Draw a star with 4 to 9 tips."""
    tips = int(rng.integers(4, 10))
    radii = np.ones(2 * tips)
    radii[1::2] = rng.uniform(0.3, 0.7)
    return [Piece(_polar(radii, _turn(2 * tips)))]


def blob(rng: Rng, roughness: float | None = None) -> Shape:
    """Draw a smooth closed curve: a random radial Fourier series."""
    angles = _turn(96)
    amount = rng.uniform(0.1, 0.45) if roughness is None else roughness
    radii = np.ones(96)
    for order in range(2, int(rng.integers(4, 9))):
        radii += amount / order**0.7 * rng.normal() * np.cos(order * angles + rng.uniform(0, 2 * np.pi))
    radii = np.clip(radii, 0.25, None)
    return [Piece(_polar(radii / radii.max(), angles))]


def rectangle(rng: Rng, rounding: float | None = None) -> Shape:
    """Draw a square with rounded corners; the aspect of `place` makes it a rectangle."""
    r = float(rng.choice([0.0, 0.08, 0.25, 0.5]) if rounding is None else rounding)
    arcs = _turn(32)  # eight directions for each corner, which lie in its quadrant
    quadrants = np.sign(_polar(np.ones(32), arcs + np.pi / 32))
    return [Piece(_polar(np.full(32, r), arcs + np.pi / 32) + quadrants * (0.8 - r))]


def ring(rng: Rng) -> Shape:
    """Draw a disc, blob or rectangle with one hole, through which the background shows."""
    maker: Callable[[Rng], Shape] = (ellipse, blob, rectangle)[int(rng.integers(3))]
    outer = maker(rng)
    hole = outer if rng.random() < 0.6 else ellipse(rng)
    inner = hole[0].points * rng.uniform(0.3, 0.75) + rng.uniform(-0.08, 0.08, 2)
    return [*outer, Piece(inner, "cut")]


def crescent(rng: Rng) -> Shape:
    """Draw a crescent: a disc minus a shifted disc."""
    disc = _polar(np.ones(72), _turn(72))
    return [Piece(disc), Piece(disc * rng.uniform(0.75, 1.05) + (rng.uniform(0.35, 0.8), 0.0), "cut")]


def stroke(rng: Rng) -> Shape:
    """Draw a thin curved line: a quadratic spline through a random walk."""
    steps = int(rng.integers(3, 7))
    headings = np.cumsum(rng.normal(0, 0.9, steps)) + rng.uniform(0, 2 * np.pi)
    knots = np.cumsum(_polar(rng.uniform(0.5, 1.0, steps), headings), axis=0)
    mids = (knots[:-1] + knots[1:]) / 2
    t = np.linspace(0, 1, 12)[:, None]
    curve = [knots[:1]]
    for a, b, c in zip(mids[:-1], knots[1:-1], mids[1:], strict=True):
        curve.append((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c)
    points = np.concatenate([*curve, knots[-1:]])
    points -= (points.min(axis=0) + points.max(axis=0)) / 2
    points /= max(float(np.abs(points).max()), 1e-6)
    return [Piece(points, "stroke", float(np.exp(rng.uniform(np.log(0.05), np.log(0.3)))))]


def composite(rng: Rng) -> Shape:
    """Draw the union of two to five connected simple shapes (a body with limbs, a tool, a vehicle)."""
    body = (ellipse, rectangle, blob, polygon)[int(rng.integers(4))]
    shape = place(body(rng), (0, 0), 0.6, rng.uniform(0, np.pi), rng.uniform(0.5, 1.0))
    limb = (ellipse, rectangle, polygon, blob)[int(rng.integers(4))]
    thin = rng.uniform(0.2, 0.9)
    for _ in range(int(rng.integers(1, 5))):
        heading, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.7)
        center = (far * np.cos(heading), far * np.sin(heading))
        shape += place(limb(rng), center, rng.uniform(0.2, 0.5), heading, thin)
    return shape


SHAPES: dict[str, Callable[[Rng], Shape]] = {
    "ellipse": ellipse,
    "polygon": polygon,
    "star": star,
    "blob": blob,
    "rectangle": rectangle,
    "ring": ring,
    "crescent": crescent,
    "stroke": stroke,
    "composite": composite,
}
