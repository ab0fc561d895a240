"""Pictures and masks of the files that `pack.py` writes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


class Pack:
    """Pictures and masks of a file written by `pack.py`."""

    def __init__(self, path: Path, held_back: dict[str, list[int]], *, use_held_back: bool = False) -> None:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        self.jpeg, self.jpeg_end = arrays["jpeg"], arrays["jpeg_end"]
        self.mask, self.mask_end = arrays["mask"], arrays["mask_end"]
        self.instance, self.image, self.image_id = arrays["instance"], arrays["image"], arrays["image_id"]
        self.sources: list[str] = arrays["sources"].tolist()
        self.instances_of: list[list[int]] = [[] for _ in range(len(self.image))]
        for number, row in enumerate(self.instance):
            self.instances_of[row[0]].append(number)
        self.images_of: dict[str, np.ndarray] = {}
        for index, source in enumerate(self.sources):
            numbers = np.flatnonzero(self.image[:, 2] == index)
            held = np.isin(self.image_id[numbers], held_back.get(source, []))
            self.images_of[source] = numbers[held if use_held_back else ~held]

    def read(self, number: int) -> np.ndarray:
        """Return image `number` as HWC uint8 RGB."""
        start = self.jpeg_end[number - 1] if number else 0
        return cv2.imdecode(self.jpeg[start : self.jpeg_end[number]], cv2.IMREAD_COLOR_RGB)

    def read_mask(self, instance: int) -> tuple[np.ndarray, int, int]:
        """Return the mask of an instance inside its box as hw uint8 coverage (0..255), and the box's x, y."""
        start = self.mask_end[instance - 1] if instance else 0
        crop = cv2.imdecode(self.mask[start : self.mask_end[instance]], cv2.IMREAD_GRAYSCALE)
        return crop, int(self.instance[instance, 1]), int(self.instance[instance, 2])
