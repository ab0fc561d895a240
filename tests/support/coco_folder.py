"""A small COCO folder on disk for tests: two images, four objects, one crowd."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle_codec
from PIL import Image

from saqsam.data.coco import CocoDataset
from saqsam.data.open import open_dataset
from saqsam.data.types import Dataset, Sample

SIZES = {1: (40, 60), 7: (50, 30)}  # (height, width) by image id
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """HWC uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def rectangle(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """HW bool, true inside xyxy."""
    mask = np.zeros(size, dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths as JSON can hold them."""
    rle = rle_codec.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths as a list of integers, the first of them of background."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges.tolist(), flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def annotation(
    annotation_id: int, image_id: int, box: tuple[int, int, int, int], **changes: Any
) -> dict[str, Any]:
    """A rectangle that fills its box, unless `changes` say otherwise."""
    content = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 3,
        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        "segmentation": compressed(rectangle(SIZES[image_id], box)),
        "iscrowd": 0,
    }
    return content | changes


def good_annotations() -> list[dict[str, Any]]:
    """Each way of writing a mask once, and a crowd."""
    triangle = [[5.0, 5.0, 25.0, 5.0, 5.0, 45.0]]
    return [
        annotation(11, 1, (10, 5, 30, 25)),
        annotation(12, 1, (0, 0, 8, 8), segmentation=uncompressed(rectangle(SIZES[1], (0, 0, 8, 8)))),
        annotation(13, 1, (30, 20, 60, 40), iscrowd=1, category_id=9),
        annotation(20, 7, (5, 5, 25, 45), segmentation=triangle, category_id=9),
    ]


def make_coco(folder: Path, annotations: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """Write `images/` and `annotations.json` into `folder` and return it; `changes` replace JSON fields."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    records = []
    for image_id, size in SIZES.items():
        Image.fromarray(picture(size, image_id)).save(images / f"{image_id}.png")
        records.append({"id": image_id, "file_name": f"{image_id}.png", "height": size[0], "width": size[1]})
    content: dict[str, Any] = {
        "images": records,
        "annotations": good_annotations() if annotations is None else annotations,
        "categories": CATEGORIES,
    }
    content.update(changes)
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def read_all(dataset: Dataset) -> list[Sample]:
    """Return all samples of a dataset."""
    return [dataset[index] for index in range(len(dataset))]


def read_coco(
    content: dict[str, Any], folder: Path, *, encoding: str = "utf-8"
) -> tuple[list[Sample], CocoDataset]:
    """Write the annotation file of a folder, and return all samples and the data set."""
    (folder / "annotations.json").write_text(json.dumps(content), encoding=encoding)
    dataset = open_dataset(folder)
    assert isinstance(dataset, CocoDataset)
    return read_all(dataset), dataset


def assert_same_samples(samples: list[Sample], others: list[Sample]) -> None:
    """Fail unless images, objects and what was left out are equal; notes may differ."""
    assert len(samples) == len(others)
    for sample, other in zip(samples, others, strict=True):
        for name in ("image_id", "file_name", "skipped", "instances", "judged", "incomplete"):
            assert getattr(sample, name) == getattr(other, name), name
        np.testing.assert_array_equal(sample.image, other.image)
