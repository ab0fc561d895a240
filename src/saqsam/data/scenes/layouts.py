"""Scene styles of the procedural generator: which objects are placed where, back to front.

Each style takes a seeded generator and a size and returns a `Canvas`. `STYLES` maps a name to the style and
to how often it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from saqsam.data.scenes.canvas import Canvas, Look
from saqsam.data.scenes.shapes import (
    SHAPES,
    Piece,
    Raster,
    Shape,
    log_uniform,
    place,
    random_light,
    random_spot,
)
from saqsam.data.scenes.textures import Material, near, paint, random_color, random_material, value_noise
from saqsam.data.scenes.topdown import aerial, cells

Array = np.ndarray[Any, Any]
Rng = np.random.Generator
Size = tuple[int, int]
Point = tuple[float, float]


def _ground(rng: Rng, size: Size, base: Array | None = None) -> Canvas:
    """Draw a textured background, sometimes of several regions (a horizon, a table edge, patches)."""
    extent = float(max(size))
    surface = paint(rng, random_material(rng, extent, base, ground=True), size)
    light = value_noise(rng, size, extent / rng.uniform(1.0, 4.0))[..., None]
    surface += np.float32(rng.uniform(0, 70)) * (light - np.float32(0.5))
    canvas = Canvas(rng, np.clip(surface, 0, 255))
    if rng.random() < 0.35:
        for _ in range(int(rng.integers(1, 4))):
            canvas.decorate(_half_plane(rng, size), random_material(rng, extent, ground=True))
    return canvas


def _half_plane(rng: Rng, size: Size) -> Shape:
    """Return the region on one side of a slightly wavy line, clipped just outside the image."""
    height, width = size
    level = height * rng.uniform(0.25, 0.9)
    xs = np.linspace(-4, width + 4, 24)
    tilt = rng.normal(0, 0.25) * (xs - width / 2)
    swell = height * 0.05 * float(rng.random() < 0.5)
    wave = swell * np.sin(xs * rng.uniform(0.01, 0.06) + rng.uniform(0, 6))
    ys = np.clip(level + tilt + wave, -4, height + 4)
    edge = np.stack([xs, ys], axis=1)
    points = np.concatenate([edge, [[width + 4, height + 4], [-4, height + 4]]])
    return [Piece(points)]


def _random_look(rng: Rng, light: Point, radius: float, base: Array) -> Look:
    outline = None
    if rng.random() < 0.2:
        outline = near(rng, base * np.float32(0.35), 15) if rng.random() < 0.7 else random_color(rng)
    return Look(
        outline=outline,
        outline_width=int(rng.integers(1, 3)),
        pillow=float(rng.uniform(-25, 90)) if rng.random() < 0.4 else 0.0,
        slope=float(rng.uniform(10, 110)) if rng.random() < 0.5 else 0.0,
        light=light,
        shadow=float(rng.uniform(0.15, 0.65)) if rng.random() < 0.45 else 0.0,
        shadow_reach=float(np.clip(radius * rng.uniform(0.03, 0.3), 1.0, 16.0)),
    )


def _object_color(rng: Rng, canvas: Canvas, center: Point) -> Array:
    """Draw a random color, sometimes one that is close to the background."""
    if rng.random() < 0.25:
        return near(rng, canvas.color_at(*center), rng.uniform(12, 35))
    return random_color(rng, 0.7)


def _random_shape(rng: Rng, kind: str, center: Point, radius: float) -> Shape:
    aspect = 1.0 if rng.random() < 0.25 else log_uniform(rng, 0.3, 1.0)
    if kind == "stroke":
        aspect = float(rng.uniform(0.6, 1.0))
    return place(SHAPES[kind](rng), center, radius, rng.uniform(0, 2 * np.pi), aspect)


def _radius(rng: Rng, size: Size, low: float = 8.0, high: float = 0.7) -> float:
    """Draw half an extent, log-uniform from `low` pixels to the fraction `high` of the image's mean side.

    A shape fills its unit circle only in part and is flattened, hence the factor that makes up for it.
    """
    return 1.25 * log_uniform(rng, low, high * (size[0] + size[1]) / 2) / 2


def _scatter(rng: Rng, canvas: Canvas, radii: list[float], light: Point) -> None:
    """Draw generic objects with these radii, in this order."""
    kinds = list(SHAPES)
    weights = np.array([3, 3, 1, 4, 3, 1.5, 1, 1.5, 3])
    for radius in radii:
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        center = random_spot(rng, canvas.size)
        base = _object_color(rng, canvas, center)
        material = random_material(rng, 2 * radius, base)
        look = _random_look(rng, light, radius, base)
        canvas.add(kind, _random_shape(rng, kind, center, radius), material, look)


def objects(rng: Rng, size: Size) -> Canvas:
    """Draw two to fourteen dissimilar objects; large ones tend to be at the back."""
    canvas = _ground(rng, size)
    radii = [_radius(rng, size) for _ in range(int(rng.integers(2, 15)))]
    radii.append(_radius(rng, size, 50))  # something to look at, whatever the other sizes are
    if rng.random() < 0.7:
        radii.sort(reverse=True)
    _scatter(rng, canvas, radii, random_light(rng))
    return canvas


def clutter(rng: Rng, size: Size) -> Canvas:
    """Draw many overlapping objects, some of them copies of one another."""
    canvas = _ground(rng, size)
    light = random_light(rng)
    low, high = rng.uniform(14, 40), rng.uniform(0.25, 0.6)
    radii = [_radius(rng, size, low, high) for _ in range(int(rng.integers(9, 19)))]
    if rng.random() < 0.5:
        radii.sort(reverse=True)
    _scatter(rng, canvas, radii, light)
    if rng.random() < 0.5:
        _copies(rng, canvas, int(rng.integers(4, 14)), light)
    return canvas


def _copies(rng: Rng, canvas: Canvas, count: int, light: Point) -> None:
    """Repeat one shape and material many times, as in a bowl of fruit or a box of screws."""
    kind = list(SHAPES)[int(rng.integers(len(SHAPES)))]
    unit, base = SHAPES[kind](rng), random_color(rng, 0.8)
    radius = _radius(rng, canvas.size, 16, 0.25)
    material, look = random_material(rng, 2 * radius, base), _random_look(rng, light, radius, base)
    aspect = log_uniform(rng, 0.45, 1.0)
    heart, spread = np.array(random_spot(rng, canvas.size, 0.2)), radius * rng.uniform(1.2, 4.0)
    for _ in range(count):
        x, y = heart + rng.normal(0, spread, 2)
        shape = place(unit, (float(x), float(y)), radius * rng.uniform(0.8, 1.15), rng.uniform(0, 7), aspect)
        canvas.add(kind, shape, material, look)


def nested(rng: Rng, size: Size) -> Canvas:
    """Draw objects with differently textured parts; wholes and parts are all instances."""
    canvas = _ground(rng, size)
    light = random_light(rng)
    _scatter(rng, canvas, [_radius(rng, size, 12, 0.4) for _ in range(int(rng.integers(0, 4)))], light)
    for _ in range(int(rng.integers(1, 5))):
        radius = _radius(rng, size, 50, 0.7)
        kind = ("ellipse", "blob", "rectangle", "composite", "polygon")[int(rng.integers(5))]
        center = random_spot(rng, size, 0.15)
        base = _object_color(rng, canvas, center)
        material = random_material(rng, 2 * radius, base)
        look = _random_look(rng, light, radius, base)
        whole, raster = canvas.add(kind, _random_shape(rng, kind, center, radius), material, look)
        _add_parts(rng, canvas, whole, raster, material)
    _scatter(rng, canvas, [_radius(rng, size, 10, 0.25) for _ in range(int(rng.integers(0, 4)))], light)
    return canvas


def _add_parts(rng: Rng, canvas: Canvas, whole: int, raster: Raster, material: Material) -> None:
    depth = cv2.distanceTransform((raster.alpha > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    if rng.random() < 0.35:
        style = _part_material(rng, material, 40.0)
        canvas.add_part(whole, raster, "section", _section(rng, raster), style, Look())
    for _ in range(int(rng.integers(1, 4))):
        kind = ("ellipse", "rectangle", "blob", "polygon", "ring", "star")[int(rng.integers(6))]
        unit, aspect = SHAPES[kind](rng), log_uniform(rng, 0.4, 1.0)
        scale, angle = rng.uniform(0.35, 1.1), rng.uniform(0, 2 * np.pi)
        style = _part_material(rng, material, float(depth.max()))
        outline = near(rng, style.base * np.float32(0.4), 10) if rng.random() < 0.25 else None
        look = Look(outline=outline, pillow=float(rng.uniform(-20, 50)) if rng.random() < 0.3 else 0.0)
        for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):  # repeated parts: wheels, windows, eyes
            rows, cols = np.nonzero(depth > 0.35 * depth.max())
            pick = int(rng.integers(len(rows)))
            center = (float(raster.left + cols[pick]) + 0.5, float(raster.top + rows[pick]) + 0.5)
            radius = max(float(depth.max()) * scale * 0.8, 4.0)
            canvas.add_part(whole, raster, kind, place(unit, center, radius, angle, aspect), style, look)


def _part_material(rng: Rng, material: Material, extent: float) -> Material:
    base = near(rng, material.base, 45) if rng.random() < 0.5 else random_color(rng, 0.7)
    return random_material(rng, extent, base)


def _section(rng: Rng, raster: Raster) -> Shape:
    """Cut off the part of an object on one side of a line, such as a roof, a sleeve or a head."""
    h, w = raster.alpha.shape
    middle = np.array([raster.left + w * rng.uniform(0.35, 0.65), raster.top + h * rng.uniform(0.35, 0.65)])
    angle, far = rng.uniform(0, 2 * np.pi), float(h + w)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    corners = [middle + along * far, middle - along * far]
    corners += [corners[1] + across * far, corners[0] + across * far]
    box = np.array([raster.left, raster.top]), np.array([raster.left + w, raster.top + h])
    return [Piece(_clip_to_box(np.array(corners), *box))]


def _clip_to_box(points: Array, low: Array, high: Array) -> Array:
    """Clip a convex polygon to an axis-aligned box (Sutherland and Hodgman)."""
    for axis in (0, 1):
        for sign, bound in ((1.0, low[axis]), (-1.0, -high[axis])):
            gap = sign * points[:, axis] - bound
            out: list[Array] = []
            for i in range(len(points)):
                j = (i + 1) % len(points)
                if gap[i] >= 0:
                    out.append(points[i])
                if (gap[i] >= 0) != (gap[j] >= 0):
                    out.append(points[i] + (points[j] - points[i]) * (gap[i] / (gap[i] - gap[j])))
            points = np.array(out).reshape(-1, 2)
            if not len(points):
                return np.array([low, low, low])
    return points


STYLES: dict[str, tuple[Callable[[Rng, Size], Canvas], float]] = {
    "objects": (objects, 0.36),
    "nested": (nested, 0.22),
    "clutter": (clutter, 0.16),
    "cells": (cells, 0.14),
    "aerial": (aerial, 0.12),
}
