"""Surfaces of the procedural scenes: scalar fields in [0, 1] that mix two or three colors."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, Any]
Rng = np.random.Generator
Size = tuple[int, int]
Field = Callable[[Rng, Size, float], Array]


def value_noise(rng: Rng, size: Size, cell: float | tuple[float, float]) -> Array:
    """Draw smooth noise: random values on a lattice of `cell` pixels (y, x), cubic in between.

    Returns:
        HW float32 of `size`, in [0, 1].
    """
    cell_y, cell_x = cell if isinstance(cell, tuple) else (cell, cell)
    rows, cols = (max(2, int(s / max(c, 1.0)) + 2) for s, c in zip(size, (cell_y, cell_x), strict=True))
    lattice = rng.random((rows, cols), dtype=np.float32)
    smooth = cv2.resize(lattice, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(smooth, 0.0, 1.0, out=smooth))


def fractal_noise(rng: Rng, size: Size, cell: float, octaves: int = 4, gain: float = 0.55) -> Array:
    """Sum value noises whose cells halve, stretched to [0, 1]; HW float32."""
    total = np.zeros(size, dtype=np.float32)
    weight = 1.0
    for _ in range(octaves):
        total += np.float32(weight) * value_noise(rng, size, cell)
        weight, cell = weight * gain, cell / 2
        if cell < 1:
            break
    low, high = float(total.min()), float(total.max())
    return (total - np.float32(low)) * np.float32(1.0 / max(high - low, 1e-6))


def ramp(rng: Rng, size: Size) -> tuple[Array, Array]:
    """Return pixel coordinates in a randomly rotated frame: along (H1 or HW) and across, float32, in pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    y = np.arange(size[0], dtype=np.float32)[:, None]
    x = np.arange(size[1], dtype=np.float32)[None, :]
    return cos * x + sin * y, cos * y - sin * x


def _unit(field: Array) -> Array:
    low, high = float(field.min()), float(field.max())
    return (field - np.float32(low)) * np.float32(1.0 / max(high - low, 1e-6))


def flat(rng: Rng, size: Size, scale: float) -> Array:
    """Draw nearly uniform values."""
    return np.asarray(np.float32(0.15) * value_noise(rng, size, max(size) / 3))


def gradient(rng: Rng, size: Size, scale: float) -> Array:
    """Draw a linear or radial transition."""
    along, across = ramp(rng, size)
    if rng.random() < 0.6:
        return _unit(along)
    cy, cx = rng.uniform(0, 1, 2)
    dx = along - np.float32(along.min() + cx * (along.max() - along.min()))
    dy = across - np.float32(across.min() + cy * (across.max() - across.min()))
    return _unit(np.sqrt(dx * dx + dy * dy))


def clouds(rng: Rng, size: Size, scale: float) -> Array:
    """Draw fractal noise."""
    return fractal_noise(rng, size, scale * 2, octaves=int(rng.integers(2, 6)), gain=rng.uniform(0.4, 0.75))


def stripes(rng: Rng, size: Size, scale: float) -> Array:
    """Draw soft to hard stripes, straight or wavy."""
    along, _ = ramp(rng, size)
    phase: Array = along * np.float32(2 * np.pi / max(scale, 3.0))
    if rng.random() < 0.5:
        phase = phase + np.float32(rng.uniform(2, 8)) * value_noise(rng, size, scale * 4)
    return np.asarray(np.clip(np.sin(phase) * np.float32(rng.uniform(0.5, 4.0)) + np.float32(0.5), 0, 1))


def checker(rng: Rng, size: Size, scale: float) -> Array:
    """Draw a rotated, slightly soft chequerboard."""
    along, across = ramp(rng, size)
    k = np.float32(np.pi / max(scale, 3.0))
    waves = np.sin(along * k) * np.sin(across * k)
    return np.asarray(np.clip(waves * np.float32(6.0) + np.float32(0.5), 0, 1))


def blotches(rng: Rng, size: Size, scale: float) -> Array:
    """Draw islands: noise pushed through a steep threshold."""
    noise = fractal_noise(rng, size, scale * 2, octaves=3)
    level, steep = rng.uniform(0.35, 0.65), rng.uniform(4, 20)
    return np.asarray(np.clip((noise - np.float32(level)) * np.float32(steep) + np.float32(0.5), 0, 1))


def brushed(rng: Rng, size: Size, scale: float) -> Array:
    """Draw noise stretched along one random direction, like brushed metal, hair or grass."""
    side = int(np.hypot(*size)) + 4
    noise = np.float32(0.6) * value_noise(rng, (side, side), (max(scale / 6, 1.0), scale * 4))
    noise += np.float32(0.4) * value_noise(rng, (side, side), (1.0, max(scale, 6.0)))
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), float(rng.uniform(0, 180)), 1.0)
    turn[:, 2] += (size[1] - side) / 2, (size[0] - side) / 2
    return _unit(cv2.warpAffine(noise, turn, (size[1], size[0]), borderMode=cv2.BORDER_REFLECT))


def spots(rng: Rng, size: Size, scale: float) -> Array:
    """Draw dots on a jittered lattice."""
    step = max(scale * 1.2, 5.0)
    field = np.zeros(size, dtype=np.uint8)
    fill = rng.uniform(0.2, 0.42)
    rows, cols = int(size[0] / step) + 2, int(size[1] / step) + 2
    jitter = rng.uniform(-0.25, 0.25, (rows, cols, 2)) * rng.uniform(0, 1)
    for row in range(rows):
        for col in range(cols):
            x = (col + 0.5 * (row % 2) + jitter[row, col, 0]) * step
            y = (row + jitter[row, col, 1]) * step
            center = (round(x * 16), round(y * 16))
            cv2.circle(field, center, round(fill * step * 16), 255, -1, cv2.LINE_AA, 4)
    return field.astype(np.float32) * np.float32(1 / 255)


def grain(rng: Rng, size: Size, scale: float) -> Array:
    """Draw fine uncorrelated speckle, such as sand, gravel or cloth."""
    noise = rng.integers(0, 256, size, dtype=np.uint8)
    blur = int(rng.choice([1, 3, 5]))
    noise = cv2.GaussianBlur(noise, (blur, blur), 0) if blur > 1 else noise
    return _unit(noise.astype(np.float32))


def veins(rng: Rng, size: Size, scale: float) -> Array:
    """Draw contour lines of noise, like wood or marble."""
    noise = fractal_noise(rng, size, scale * 4, octaves=3)
    return np.float32(0.5) + np.float32(0.5) * np.sin(noise * np.float32(rng.uniform(12, 40)))


def bricks(rng: Rng, size: Size, scale: float) -> Array:
    """Draw axis-aligned cells of individual brightness with joints."""
    step = max(scale, 6.0)
    tall = step * rng.uniform(0.4, 1.0)
    y = np.arange(size[0], dtype=np.float32)[:, None] / np.float32(tall)
    row = np.floor(y).astype(np.int64)
    x = np.arange(size[1], dtype=np.float32)[None, :] / np.float32(step)
    x = x + np.float32(0.5 * rng.integers(0, 2)) * (row % 2).astype(np.float32)
    col = np.floor(x).astype(np.int64)
    tone = rng.random((int(row.max()) + 1, int(col.max()) + 1), dtype=np.float32)
    field = np.float32(0.5) + np.float32(0.3) * (tone[row, col] - np.float32(0.5))
    joint = np.minimum((y - row) * np.float32(tall), (x - col) * np.float32(step)) < np.float32(
        rng.uniform(0.8, 1.8)
    )
    return np.where(joint, np.float32(rng.choice([0.0, 1.0])), field)


FIELDS: dict[str, Field] = {
    "flat": flat,
    "gradient": gradient,
    "clouds": clouds,
    "stripes": stripes,
    "checker": checker,
    "blotches": blotches,
    "brushed": brushed,
    "spots": spots,
    "grain": grain,
    "veins": veins,
    "bricks": bricks,
}
_OBJECT_WEIGHTS = np.array([5, 4, 5, 2, 1, 2, 3, 1.2, 2, 1.5, 0.8])
_GROUND_WEIGHTS = np.array([2, 4, 6, 1, 0.7, 2, 3, 0.5, 2, 1.5, 0.8])


def random_color(rng: Rng, vivid: float = 0.5) -> Array:
    """Draw an RGB color, (3,) float32 in [0, 255]; `vivid` in [0, 1] bounds the usual saturation."""
    saturation = float(rng.random()) * (vivid if rng.random() < 0.75 else 1.0)
    rgb = colorsys.hsv_to_rgb(float(rng.random()), saturation, 1.0 - 0.92 * float(rng.random()) ** 1.3)
    return np.asarray(np.array(rgb) * 255, dtype=np.float32)


def near(rng: Rng, color: Array, spread: float) -> Array:
    """Draw a color within about `spread` levels of `color`: one common lightness step and a small tint."""
    shift = rng.normal(0, spread, 1) + rng.normal(0, spread * 0.4, 3)
    return np.asarray(np.clip(color + shift, 0, 255), dtype=np.float32)


@dataclass(frozen=True)
class Material:
    """Material of a surface.

    Args:
        field: Key of `FIELDS`.
        base: RGB at field 0, (3,) float32 in [0, 255].
        other: RGB at field 1.
        scale: Feature size in pixels.
        tint: Amplitude in levels of slow color drift (0 switches it off).
        speckle: Amplitude in levels of fine brightness texture.
    """

    field: str
    base: Array
    other: Array
    scale: float
    tint: float = 0.0
    speckle: float = 0.0


def random_material(rng: Rng, extent: float, base: Array | None = None, ground: bool = False) -> Material:
    """Draw a material for a surface of `extent` pixels across."""
    weights = _GROUND_WEIGHTS if ground else _OBJECT_WEIGHTS
    field = list(FIELDS)[int(rng.choice(len(FIELDS), p=weights / weights.sum()))]
    base = random_color(rng) if base is None else base
    other = near(rng, base, rng.uniform(8, 55)) if rng.random() < 0.75 else random_color(rng)
    scale = float(np.exp(rng.uniform(np.log(4.0), np.log(max(extent * 0.35, 5.0)))))
    tint = float(rng.uniform(5, 45)) if rng.random() < 0.6 else 0.0
    speckle = float(rng.uniform(2, 22)) if rng.random() < 0.5 else 0.0
    return Material(field, base, other, scale, tint, speckle)


def paint(rng: Rng, material: Material, size: Size) -> Array:
    """Render a material.

    Returns:
        HWC float32 of `size`; values may leave [0, 255] slightly.
    """
    mix = FIELDS[material.field](rng, size, material.scale)
    light = np.zeros(size, dtype=np.float32)
    drifts: list[Array] = []
    if material.tint:
        cell = max(size) / float(rng.uniform(1.0, 4.0))
        drifts = [np.float32(0.45 * material.tint) * value_noise(rng, size, cell) for _ in range(3)]
        light += np.float32(1.2 * material.tint) * value_noise(rng, size, cell)
        light -= np.float32(0.82 * material.tint)
    if material.speckle:
        fine = value_noise(rng, size, float(rng.uniform(1.0, 3.0)))
        light += np.float32(2 * material.speckle) * (fine - np.float32(0.5))
    # Plane by plane: broadcasting over a last axis of three is several times slower.
    planes = [mix * (b - a) + (light + a) for a, b in zip(material.base, material.other, strict=True)]
    for plane, drift in zip(planes, drifts, strict=False):
        plane += drift
    return np.asarray(cv2.merge(planes))
