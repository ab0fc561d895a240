"""A small ADE20K root on disk for tests: three pictures with label maps, one without, and one that is no picture."""

from pathlib import Path

import numpy as np
from PIL import Image

from support.coco_folder import picture

SIZES = {"ADE_val_00000001": (40, 60), "ADE_val_00000002": (50, 30), "ADE_val_00000003": (24, 24)}
"""(height, width) by stem."""


def ade_labels(stem: str) -> np.ndarray:
    """HW uint8: a left half of class 1, a right one of class 150, a top row of none."""
    labels = np.ones(SIZES[stem], dtype=np.uint8)
    labels[:, SIZES[stem][1] // 2 :] = 150
    labels[0] = 0
    return labels


def make_ade(root: Path, split: str = "validation", *, names: bool = True) -> Path:
    images, annotations = root / "images" / split, root / "annotations" / split
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for seed, (stem, size) in enumerate(SIZES.items()):
        Image.fromarray(picture(size, seed)).save(images / f"{stem}.jpg")
        Image.fromarray(ade_labels(stem)).save(annotations / f"{stem}.png")
    Image.fromarray(picture((20, 20))).save(images / "ADE_val_00000004.jpg")
    (root / "sceneCategories.txt").write_text("ADE_val_00000001 street\n")
    if names:
        rows = ["Idx\tRatio\tTrain\tVal\tName"]
        rows += [f"{k}\t0.1\t100\t10\tthing {k}, thing" for k in range(1, 151)]
        (root / "objectInfo150.txt").write_text("\n".join(rows) + "\n")
    return root
