"""Two scene styles seen from straight above: cells under a microscope, and streets from the air."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from saqsam.data.scenes.canvas import Canvas, Look
from saqsam.data.scenes.shapes import (
    Piece,
    Shape,
    blob,
    ellipse,
    log_uniform,
    place,
    polygon,
    random_light,
    random_spot,
    rectangle,
    touches,
)
from saqsam.data.scenes.textures import Material, near, paint, random_color, random_material

Array = np.ndarray[Any, Any]
Rng = np.random.Generator
Size = tuple[int, int]

_MAX_CELLS = 50
_MAX_PER_ROW = 14
_GROUND_TONES = np.array([[96, 112, 70], [128, 116, 92], [112, 112, 112], [70, 88, 60], [160, 148, 120]])


@dataclass(frozen=True)
class _Stain:
    """Appearance shared by the cells of one image; colors are (3,) float32 RGB, lengths are pixels."""

    body: Array
    rim: Array | None
    field: str
    speckle: float
    pillow: float
    radius: float
    jitter: float
    roughness: float
    nucleus: bool


def _pack(rng: Rng, size: Size, count: int, gap: float) -> list[Array]:
    """Draw up to `count` centers (x, y) at least `gap` apart, spread out or in clumps."""
    clumps = [np.array(random_spot(rng, size)) for _ in range(int(rng.integers(1, 5)))]
    clumped = float(rng.choice([0.0, 0.6, 0.9]))
    spread = gap * float(np.sqrt(count)) * rng.uniform(0.3, 0.7)
    centers = np.empty((0, 2))
    for _ in range(4 * count):
        center = np.array(random_spot(rng, size))
        if rng.random() < clumped:
            center = clumps[int(rng.integers(len(clumps)))] + rng.normal(0, spread, 2)
        if len(centers) == 0 or float(np.min(np.sum((centers - center) ** 2, axis=1))) >= gap * gap:
            centers = np.concatenate([centers, center[None]])
        if len(centers) == count:
            break
    return list(centers)


def cells(rng: Rng, size: Size) -> Canvas:
    """Draw many similar, touching, roundish cells that are brighter or darker than a low-contrast ground."""
    tone = random_color(rng, float(rng.uniform(0.0, 0.6)))
    dark = rng.random() < 0.4
    tone = tone * np.float32(0.15) if dark else np.float32(130) + tone * np.float32(0.4)
    ground = Material("clouds", tone, near(rng, tone, 14), log_uniform(rng, 8, 80), 16.0, 5.0)
    canvas = Canvas(rng, np.clip(paint(rng, ground, size), 0, 255))
    contrast = np.float32(rng.uniform(45, 150))
    hue = random_color(rng, 0.9) / np.float32(255)
    body = tone + contrast * (np.float32(0.4) + hue) if dark else tone - contrast * (np.float32(0.3) + hue)
    body = np.clip(body, 12, 255)
    stain = _Stain(
        body=body,
        rim=near(rng, body * np.float32(rng.choice([0.5, 1.4])), 8) if rng.random() < 0.4 else None,
        field=str(rng.choice(["clouds", "blotches", "flat", "spots"], p=[0.45, 0.2, 0.25, 0.1])),
        speckle=float(rng.uniform(2, 14)),
        pillow=float(rng.uniform(-70, 70)),
        radius=log_uniform(rng, 7, max(0.13 * min(size), 8.0)),
        jitter=float(rng.uniform(0.05, 0.35)),
        roughness=float(rng.uniform(0.02, 0.25)),
        nucleus=bool(rng.random() < 0.3),
    )
    room = size[0] * size[1] / (3.5 * stain.radius * stain.radius)
    count = int(np.clip(room * rng.uniform(0.2, 0.95), 4, _MAX_CELLS))
    for center in _pack(rng, size, count, stain.radius * rng.uniform(1.2, 2.3)):
        _cell(rng, canvas, stain, center)
    return canvas


def _cell(rng: Rng, canvas: Canvas, stain: _Stain, center: Array) -> None:
    own = near(rng, stain.body, 9)
    radius = stain.radius * float(np.exp(rng.normal(0, stain.jitter)))
    shape = place(
        blob(rng, stain.roughness), (center[0], center[1]), radius, rng.uniform(0, 7), rng.uniform(0.65, 1.0)
    )
    if not touches(shape, canvas.size):
        return
    material = Material(stain.field, own, near(rng, own, 22), max(radius * 0.5, 3.0), 6.0, stain.speckle)
    look = Look(outline=stain.rim, pillow=stain.pillow, opacity=float(rng.uniform(0.8, 1.0)))
    whole, raster = canvas.add("cell", shape, material, look)
    if stain.nucleus and radius > 10:
        core = Material("clouds", own * np.float32(0.55), near(rng, own * np.float32(0.5), 10), 4.0)
        x, y = center + rng.normal(0, 0.15 * radius, 2)
        spot = place(blob(rng, 0.1), (float(x), float(y)), radius * rng.uniform(0.35, 0.5), 0.0, 0.9)
        canvas.add_part(whole, raster, "nucleus", spot, core, Look())


@dataclass(frozen=True)
class _Streets:
    """A street grid: parallel roads at `offsets` from `middle`, along the direction `heading` (radians)."""

    middle: Array
    heading: float
    offsets: list[float]
    module: float  # the length of a vehicle in pixels
    reach: float
    light: tuple[float, float]

    def at(self, along: float, across: float) -> tuple[float, float]:
        """Return the image point (x, y) of a point of the grid."""
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        x = self.middle[0] + along * cos - across * sin
        y = self.middle[1] + along * sin + across * cos
        return float(x), float(y)


def aerial(rng: Rng, size: Size) -> Canvas:
    """Draw buildings, vehicles, tanks and trees along a street grid, with all shadows in one direction."""
    base = near(rng, _GROUND_TONES[int(rng.integers(5))].astype(np.float32), 12)
    field = str(rng.choice(["clouds", "brushed", "blotches"]))
    ground = Material(field, base, near(rng, base, 18), 20.0, 30.0, 14.0)
    canvas = Canvas(rng, np.clip(paint(rng, ground, size), 0, 255))
    reach = float(np.hypot(*size)) / 2
    module = log_uniform(rng, 10, 24)
    spacing = max(module * rng.uniform(5, 9), reach / 3)
    streets = _Streets(
        middle=np.array([size[1] / 2, size[0] / 2]),
        heading=float(rng.uniform(0, np.pi)),
        offsets=[float(v) for v in np.arange(-reach, reach, spacing) + rng.uniform(0, spacing)],
        module=module,
        reach=reach,
        light=random_light(rng),
    )
    for _ in range(int(rng.integers(0, 4))):
        radius, flat = reach * rng.uniform(0.3, 0.8), rng.uniform(0.4, 1.0)
        patch = place(polygon(rng), random_spot(rng, size), radius, streets.heading, flat)
        canvas.decorate(patch, random_material(rng, reach, near(rng, base, 25), ground=True), 0.8)
    _pave(rng, canvas, streets)
    _plots(rng, canvas, streets)
    _traffic(rng, canvas, streets)
    return canvas


def _pave(rng: Rng, canvas: Canvas, streets: _Streets) -> None:
    asphalt = near(rng, np.full(3, rng.uniform(60, 130), dtype=np.float32), 6)
    white = near(rng, np.full(3, 205, dtype=np.float32), 10)
    for offset in streets.offsets:
        ends = np.array([streets.at(-streets.reach, offset), streets.at(streets.reach, offset)])
        road = [Piece(ends, "stroke", streets.module * 1.7)]
        canvas.decorate(road, Material("flat", asphalt, asphalt, 9.0, 8.0, 8.0))
        if rng.random() < 0.5:
            canvas.decorate([Piece(ends, "stroke", 1.0)], Material("flat", white, white, 9.0), 0.7)


def _plots(rng: Rng, canvas: Canvas, streets: _Streets) -> None:
    """Draw buildings, tanks and trees beside the roads."""
    roof = np.float32(0.6) * random_color(rng, 0.6) + np.float32(50)
    shadow = float(rng.uniform(0.3, 0.7)) * float(rng.random() < 0.85)
    step = max(streets.module * rng.uniform(1.8, 3.6), 2 * streets.reach / _MAX_PER_ROW)
    for offset in streets.offsets:
        for along in np.arange(-streets.reach, streets.reach, step):
            if rng.random() < 0.35:
                continue
            spot = streets.at(
                along + rng.normal(0, 2), offset + step * 0.5 + streets.module + rng.normal(0, 2)
            )
            look = Look(
                light=streets.light, shadow=shadow, shadow_reach=streets.module * rng.uniform(0.1, 0.4)
            )
            kind, shape, material = _fixture(rng, spot, step, streets, roof)
            if touches(shape, canvas.size):
                canvas.add(kind, shape, material, look)


def _fixture(
    rng: Rng, spot: tuple[float, float], step: float, streets: _Streets, roof: Array
) -> tuple[str, Shape, Material]:
    draw = rng.random()
    if draw < 0.65:
        shape = place(rectangle(rng, 0.02), spot, step * 0.5, streets.heading, rng.uniform(0.5, 1.0))
        if rng.random() < 0.3:  # an L-shaped house
            wing = (spot[0] + step * 0.2, spot[1] + step * 0.2)
            shape += place(rectangle(rng, 0.02), wing, step * 0.35, streets.heading + np.pi / 2, 0.6)
        own = near(rng, roof, 25)
        field = str(rng.choice(["flat", "stripes", "gradient", "bricks", "grain"]))
        return "building", shape, Material(field, own, near(rng, own, 18), streets.module * 0.5, 0.0, 6.0)
    if draw < 0.75:
        own = near(rng, np.full(3, 185, dtype=np.float32), 20)
        shape = place(ellipse(rng), spot, step * rng.uniform(0.2, 0.4), 0.0, 1.0)
        return "tank", shape, Material("gradient", own, near(rng, own, 30), 9.0)
    own = near(rng, np.array([52, 84, 40], dtype=np.float32), 14)
    shape = place(blob(rng, 0.2), spot, step * rng.uniform(0.2, 0.42), rng.uniform(0, 7), 0.9)
    return "tree", shape, Material("clouds", own, near(rng, own, 35), 3.0, 0.0, 14.0)


def _traffic(rng: Rng, canvas: Canvas, streets: _Streets) -> None:
    """Draw vehicles on the roads, in two lanes."""
    module = streets.module
    density = rng.uniform(0.1, 0.6)
    step = max(1.5 * module, 2 * streets.reach / _MAX_PER_ROW)
    for offset in streets.offsets:
        for lane in (-0.42, 0.42):
            for along in np.arange(-streets.reach, streets.reach, step):
                if rng.random() > density:
                    continue
                spot = streets.at(along + rng.normal(0, 0.1 * module), offset + lane * module)
                length = module * 0.6 * (1.35 if rng.random() < 0.12 else 1.0)
                shape = place(rectangle(rng, 0.2), spot, length, streets.heading, 0.3 * module / length)
                if not touches(shape, canvas.size):
                    continue
                own = np.float32(0.85) * random_color(rng, 0.6) + np.float32(25)
                look = Look(
                    outline=own * np.float32(0.6),
                    pillow=30.0,
                    light=streets.light,
                    shadow=0.4,
                    shadow_reach=1.5,
                )
                canvas.add("vehicle", shape, Material("gradient", own, near(rng, own, 30), 5.0), look)
