"""Open a calibration set, by default the bundled scenes."""

from __future__ import annotations

from saqsam.data.open import SCENES, SCENES_COUNT, DatasetSource, as_dataset
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.data.types import Dataset
from saqsam.recipes.specs import Calibration

CALIBRATION_SCENES_SEED = 1_000_000
"""Added to the seed of calibration scenes, so that none of them is among the scenes of seed 0, for evaluation."""


def open_calibration(source: DatasetSource, spec: Calibration) -> Dataset:
    """Open the data to draw calibration images from.

    Args:
        source: Anything that `as_dataset` takes. `"scenes"` stands for the bundled calibration scenes, which are other
            scenes than those for evaluation.
        spec: Number of images and seed.

    Raises:
        ValueError: `source` cannot be opened.
    """
    if isinstance(source, str) and source == SCENES:
        return calibration_scenes(spec.images, spec.seed)
    return as_dataset(source)


def calibration_scenes(images: int, seed: int) -> ScenesDataset:
    """Return at least 100 bundled scenes to draw `images` calibration images from."""
    return ScenesDataset(count=max(images, SCENES_COUNT), seed=CALIBRATION_SCENES_SEED + seed)
