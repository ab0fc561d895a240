"""A small folder in DOTA's format for tests."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

HEADER = ("imagesource:GoogleEarth", "gsd:0.146343590398")


def make_dota(
    folder: Path, labels: Mapping[str, list[str] | None], sizes: Mapping[str, tuple[int, int]] | None = None
) -> Path:
    """Write an image of 64 x 64, or of its size (height, width), for each name, and its lines; None: no file."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labelTxt").mkdir(exist_ok=True)
    for number, (name, lines) in enumerate(labels.items()):
        size = (sizes or {}).get(name, (64, 64))
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        if lines is not None:
            (folder / "labelTxt" / f"{name}.txt").write_text("\n".join([*HEADER, *lines]) + "\n")
    return folder
