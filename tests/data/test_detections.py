"""COCO results files as box prompts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saqsam.data.coco import CocoDataset
from saqsam.data.detections import Detections, ImageDetections, load_detections
from saqsam.data.images import ImageFolder
from saqsam.data.open import open_dataset
from support.coco_folder import SIZES, compressed, make_coco, rectangle


def entry(**changes: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 20], "score": 0.5, **changes}


def load(folder: Path, content: Any, *, limit: int | None = None) -> Detections:
    make_coco(folder)
    path = folder / "found.json"
    path.write_text(json.dumps(content))
    dataset = CocoDataset(folder / "images", folder / "annotations.json", limit=limit)
    return load_detections(path, dataset)


def test_boxes_by_image(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        [
            entry(),
            entry(image_id=7, bbox=[0, 0, 5, 5], score=1),
            entry(bbox=[50, 30, 20, 20], category_id=9, score=0),
        ],
    )
    assert set(found.by_image) == {1, 7}
    first = found.by_image[1]
    # The second reaches over the border of the 60 x 40 image, which is allowed.
    np.testing.assert_array_equal(first.boxes, [[1, 2, 11, 22], [50, 30, 70, 50]])
    np.testing.assert_array_equal(first.scores, [0.5, 0])
    np.testing.assert_array_equal(first.category_ids, [3, 9])
    assert (first.boxes.dtype, first.scores.dtype) == (np.float64, np.float64)
    assert found.skipped == {}


def test_skipped_entries_are_counted(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        [
            entry(),
            entry(image_id=99),
            entry(image_id=98),
            entry(category_id=4),
            entry(bbox=[1, 2, 0, 20]),
            entry(bbox=[1, 2, 10, -1]),
            entry(bbox=[60, 2, 10, 10]),
            entry(bbox=[-10, 2, 10, 10]),
        ],
    )
    assert found.by_image[1].boxes.tolist() == [[1, 2, 11, 22]]
    assert found.skipped == {
        "unknown image id": 2,
        "unknown category id": 1,
        "box without area": 2,
        "box outside the image": 2,
    }


def test_images_beyond_the_limit_are_not_unknown(tmp_path: Path) -> None:
    found = load(tmp_path, [entry(), entry(image_id=7)], limit=1)
    assert set(found.by_image) == {1}
    assert found.skipped == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "a JSON list, got dict"),
        ([entry(), 5], "entry 1: expected an object, got int"),
        ([entry(image_id="one")], "entry 0: expected an integer image_id, got 'one'"),
        ([entry(image_id=1.5)], "entry 0: expected an integer image_id, got 1.5"),
        ([entry(category_id=None)], "entry 0: expected an integer category_id, got None"),
        ([entry(category_id=10**30)], "expected an integer category_id"),
        ([entry(image_id=True)], "expected an integer image_id, got True"),
        ([entry(bbox=[1, 2, 3])], "bbox as four finite numbers"),
        ([entry(bbox=[1, 2, 3, float("inf")])], "bbox as four finite numbers"),
        ([entry(bbox=[1, 2, 3, 10**400])], "bbox as four finite numbers"),
        ([entry(bbox=[1, 2, 3, "four"])], "bbox as four finite numbers"),
        ([entry(score=float("nan"))], r"a score in \[0, 1\], got nan"),
        ([entry(score=1.01)], r"a score in \[0, 1\], got 1.01"),
        ([entry(score=-0.1)], r"a score in \[0, 1\], got -0.1"),
        ([{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}], r"a score in \[0, 1\], got None"),
    ],
)
def test_damaged_files(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, content)


def test_only_coco_data_has_detections(tmp_path: Path) -> None:
    make_coco(tmp_path)
    with pytest.raises(ValueError, match="expected a dataset in COCO format or DOTA's, got 'images'"):
        load_detections(tmp_path / "found.json", ImageFolder(tmp_path / "images"))


def test_the_best_detections_keep_their_order() -> None:
    found = ImageDetections(
        boxes=np.arange(12, dtype=np.float64).reshape(3, 4),
        scores=np.array([0.2, 0.9, 0.5]),
        category_ids=np.array([1, 2, 3]),
    )
    detections = Detections({7: found, 8: found}, {"x": 1})
    best = detections.best(2)
    assert best.by_image[7].category_ids.tolist() == [2, 3]
    assert best.by_image[8].boxes[:, 0].tolist() == [4, 8]
    assert best.skipped == {"x": 1}
    assert detections.best(5).by_image[7].scores.tolist() == [0.2, 0.9, 0.5]


# ---- forms


def detected(folder: Path, content: Any, encoding: str = "utf-8") -> Any:
    path = folder / "found.json"
    path.write_text(json.dumps(content), encoding=encoding)
    return load_detections(path, open_dataset(make_coco(folder)))


ENTRY = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 20], "score": 0.5}
FORMS: dict[str, tuple[Any, dict[str, int]]] = {
    "ids as text": ([ENTRY | {"image_id": "1", "category_id": "3"}], {"id written as text": 2}),
    "ids as floats": ([ENTRY | {"image_id": 1.0, "category_id": 3.0}], {"id written as a float": 2}),
    "box as text": ([ENTRY | {"bbox": ["1", "2", "10", "20"]}], {"number written as text": 1}),
    "score as text": ([ENTRY | {"score": "0.5"}], {"number written as text": 1}),
    "in an object": (
        {"info": {}, "annotations": [ENTRY]},
        {"list of detections read from a field of an object": 1},
    ),
    "in a field": ({"detections": [ENTRY]}, {"list of detections read from a field of an object": 1}),
    "polygon": (
        [ENTRY | {"bbox": None, "segmentation": [[1, 2, 11, 2, 11, 22]]}],
        {"box derived from segmentation": 1},
    ),
    "run lengths": (
        [ENTRY | {"bbox": [], "segmentation": compressed(rectangle(SIZES[1], (1, 2, 11, 22)))}],
        {"box derived from segmentation": 1},
    ),
}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_forms_of_detections(tmp_path: Path, form: str) -> None:
    content, notes = FORMS[form]
    expected, found = detected(tmp_path, [ENTRY]), detected(tmp_path, content)
    assert found.by_image[1].boxes.tolist() == [[1, 2, 11, 22]]
    assert found.digest == expected.digest
    assert (expected.notes, found.notes, found.skipped) == ({}, notes, {})
    assert found.best(1).notes == notes


def test_detections_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert detected(tmp_path, [ENTRY], "utf-8-sig").notes == {"file with a byte-order mark": 1}


def test_a_file_without_any_usable_entry_is_refused_with_the_reasons(tmp_path: Path) -> None:
    lost = [ENTRY | {"image_id": 99}, ENTRY | {"image_id": 98}, ENTRY | {"bbox": [1, 2, 0, 0]}]
    with pytest.raises(
        ValueError,
        match=r"none that can be used among 3; skipped: unknown image id \(2\), box without area \(1\)",
    ):
        detected(tmp_path, lost)
    assert detected(tmp_path, []).by_image == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": []}, "the form of an annotation file"),
        ({"detections": [], "results": []}, "a JSON list, got dict"),
        ([ENTRY | {"bbox": None}], "entry 0: expected bbox as four finite numbers, got None"),
        ([ENTRY | {"bbox": None, "segmentation": [[1, 1]]}], "got a polygon without area"),
        ([ENTRY | {"score": "high"}], r"a score in \[0, 1\], got 'high'"),
        ([ENTRY | {"image_id": 1.5}], "integer image_id, got 1.5"),
    ],
)
def test_ambiguous_detections_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detected(tmp_path, content)
