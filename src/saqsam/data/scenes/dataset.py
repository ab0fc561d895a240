"""The scenes as a dataset: sample `i` of a split is drawn from a seed of its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from saqsam.data.rle import encode_mask
from saqsam.data.scenes.generate import CATEGORIES, check_int, check_size, generate_scene
from saqsam.data.tight_box import tight_box
from saqsam.data.types import Instance, Sample


def _instance(index: int, mask: NDArray[np.bool_], kind: str) -> Instance:
    box = tight_box(mask)
    assert box is not None  # every object of a scene is visible
    return Instance(id=index, rle=encode_mask(mask), box=box, category_id=CATEGORIES[kind])


class ScenesDataset:
    """A dataset of `count` scenes. Nothing is stored; each access draws its scene.

    Args:
        count: Number of samples.
        seed: Seed of the split; different seeds give unrelated samples.
        size: (height, width) of all images, or None for sizes in 192..384.

    Raises:
        ValueError: If an argument is out of range.
    """

    name = "scenes"
    category_names: Mapping[int, str] = {number: kind for kind, number in CATEGORIES.items()}

    def __init__(self, count: int = 100, seed: int = 0, size: tuple[int, int] | None = None) -> None:
        self.count = check_int("count", count, 1)
        self.seed = check_int("seed", seed, 0)
        self.size = None if size is None else check_size(size)

    def __len__(self) -> int:
        return self.count

    @property
    def digest(self) -> str:
        """Seed and size of the scenes, which identify them together with their number."""
        return f"seed {self.seed}, size {self.size}"

    def scene_seed(self, i: int) -> int:
        """Return the seed of `generate_scene` for sample `i`: 64 bits hashed from the split's seed and `i`."""
        return int(np.random.SeedSequence(self.seed, spawn_key=(i,)).generate_state(1, np.uint64)[0])

    def __getitem__(self, i: int) -> Sample:
        """Draw sample `i`; instance ids are unique in the dataset.

        Raises:
            IndexError: `i` is negative or past the end.
        """
        if not 0 <= i < self.count:
            raise IndexError(f"sample {i} of {self.count}")
        scene = generate_scene(self.scene_seed(i), size=self.size)
        instances = tuple(
            _instance(1000 * i + k + 1, mask, kind)
            for k, (mask, kind) in enumerate(zip(scene.masks, scene.kinds, strict=True))
        )
        return Sample(i, f"scene_{self.seed}_{i:06d}.png", scene.image, instances)
