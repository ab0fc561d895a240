"""Camera model of the procedural scenes: light fall-off, tone, blur, noise and JPEG artefacts."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from saqsam.data.scenes.textures import ramp

Array = np.ndarray[Any, Any]
Rng = np.random.Generator


def _uneven_light(rng: Rng, image: Array) -> Array:
    size = (image.shape[0], image.shape[1])
    if rng.random() < 0.6:
        along, _ = ramp(rng, size)
        along = (along - along.min()) / np.float32(max(float(along.max() - along.min()), 1.0))
        falloff = np.float32(1.0) - np.float32(rng.uniform(0.1, 0.5)) * along
    else:
        y = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, size[1], dtype=np.float32)[None, :]
        falloff = np.float32(1.0) - np.float32(rng.uniform(0.1, 0.35)) * (x * x + y * y)
    return np.asarray(image * falloff[..., None])


def _expose(rng: Rng, image: Array) -> Array:
    """Bring a picture that is washed out, clipped or nearly one tone back into the range of the sensor."""
    sample = image[::3, ::3].reshape(-1)
    ranks = np.sort(sample)
    low, high = float(ranks[len(ranks) // 100]), float(ranks[len(ranks) - 1 - len(ranks) // 100])
    if low > -5 and high < 260 and high - low > 70:
        return image
    span = rng.uniform(100, 220)
    floor = rng.uniform(5, 245 - span)
    return (image - np.float32(low)) * np.float32(span / max(high - low, 25.0)) + np.float32(floor)


def _tone(rng: Rng, image: Array) -> Array:
    """Apply gamma, contrast and color cast by one lookup table per channel; HWC uint8 in and out."""
    gamma = np.exp(rng.uniform(-0.35, 0.35)) * np.exp(rng.normal(0, 0.05, 3))
    gain = rng.uniform(0.75, 1.06) * np.exp(rng.normal(0, 0.05, 3))
    lift = rng.uniform(0, 30) * float(rng.random() < 0.3)
    levels = (np.arange(256)[:, None] / 255.0) ** gamma
    table = np.clip(np.round(lift + (255 - lift) * levels * gain), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, table.reshape(1, 256, 3)))


def _blur(rng: Rng, image: Array) -> Array:
    if rng.random() < 0.7:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.6))))
    # The kernel is centered, so that edges stay at those of the masks.
    length = int(rng.choice([3, 5]))
    kernel = np.zeros((length, length), dtype=np.float32)
    half, angle = length // 2, rng.uniform(0, np.pi)
    tip = (round(half * np.cos(angle)), round(half * np.sin(angle)))
    cv2.line(kernel, (half - tip[0], half - tip[1]), (half + tip[0], half + tip[1]), 1.0)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()))


def _sensor_noise(rng: Rng, image: Array) -> Array:
    sigma = np.exp(rng.uniform(np.log(1.0), np.log(12.0)))
    channels = 1 if rng.random() < 0.4 else 3
    noise = rng.standard_normal((*image.shape[:2], channels), dtype=np.float32) * np.float32(sigma)
    return np.clip(np.rint(image.astype(np.float32) + noise), 0, 255).astype(np.uint8)


def _jpeg(rng: Rng, image: Array) -> Array:
    quality = int(rng.integers(25, 92))
    ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def shoot(rng: Rng, image: Array) -> Array:
    """Photograph a scene: each effect is drawn at random, and edges keep their position.

    Args:
        rng: Source of randomness.
        image: HWC float32 RGB around [0, 255].

    Returns:
        HWC uint8 RGB.
    """
    if rng.random() < 0.5:
        image = _uneven_light(rng, image)
    picture = np.clip(np.rint(_expose(rng, image)), 0, 255).astype(np.uint8)
    if rng.random() < 0.7:
        picture = _tone(rng, picture)
    if rng.random() < 0.1:
        picture = np.repeat(np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))[..., None], 3, axis=2)
    if rng.random() < 0.45:
        picture = _blur(rng, picture)
    if rng.random() < 0.5:
        picture = _sensor_noise(rng, picture)
    if rng.random() < 0.45:
        picture = _jpeg(rng, picture)
    return np.ascontiguousarray(picture)
