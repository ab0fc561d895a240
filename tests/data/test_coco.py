"""COCO instance files: images, boxes, masks, and skipped entries by reason."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saqsam.data.coco import CocoDataset
from saqsam.data.open import open_dataset
from support.coco_folder import SIZES, annotation, compressed, make_coco, picture, rectangle


def open_folder(folder: Path, **options: Any) -> CocoDataset:
    return CocoDataset(folder / "images", folder / "annotations.json", **options)


def test_images_boxes_and_masks(tmp_path: Path) -> None:
    dataset = open_folder(make_coco(tmp_path / "pets"))
    assert (dataset.name, len(dataset), dataset.image_ids) == ("pets", 2, (1, 7))
    assert dataset.category_names == {3: "cat", 9: "dog"}
    first, second = dataset[0], dataset[1]
    assert (first.image_id, first.file_name) == (1, "1.png")
    np.testing.assert_array_equal(first.image, picture(SIZES[1], 1))
    assert [instance.id for instance in first.instances] == [11, 12, 13]
    assert [instance.is_crowd for instance in first.instances] == [False, False, True]
    assert [instance.category_id for instance in first.instances] == [3, 3, 9]
    for instance in first.instances:
        x0, y0, x1, y1 = (int(edge) for edge in instance.box)
        np.testing.assert_array_equal(instance.mask(), rectangle(SIZES[1], (x0, y0, x1, y1)))
        assert instance.mask().dtype == bool
        assert instance.area == (x1 - x0) * (y1 - y0)
    (triangle,) = second.instances
    assert triangle.box == (5.0, 5.0, 25.0, 45.0)
    assert triangle.area == pytest.approx(20 * 40 / 2, rel=0.05)
    assert dataset.skipped == {}


def test_images_are_read_on_access(tmp_path: Path) -> None:
    dataset = open_folder(make_coco(tmp_path))
    (tmp_path / "images" / "1.png").write_bytes(b"damaged")
    assert dataset[1].image_id == 7
    with pytest.raises(ValueError, match=r"1\.png: expected a readable image"):
        dataset[0]
    with pytest.raises(IndexError):
        dataset[2]


def test_limit_takes_the_first_images_that_exist(tmp_path: Path) -> None:
    make_coco(tmp_path)
    assert open_folder(tmp_path, limit=1).image_ids == (1,)
    (tmp_path / "images" / "1.png").unlink()
    dataset = open_folder(tmp_path, limit=1)
    assert dataset.image_ids == (7,)
    assert dataset.skipped == {"missing image file": 1}


def test_an_absent_box_is_derived_from_the_mask(tmp_path: Path) -> None:
    lone = annotation(1, 1, (10, 5, 30, 25))
    del lone["bbox"], lone["category_id"], lone["iscrowd"]
    (instance,) = open_folder(make_coco(tmp_path, [lone], categories=None))[0].instances
    assert instance.box == (10.0, 5.0, 30.0, 25.0)
    assert (instance.category_id, instance.is_crowd) == (1, False)


def test_unusable_entries_are_counted_once(tmp_path: Path) -> None:
    box = (10, 5, 30, 25)
    dataset = open_folder(
        make_coco(
            tmp_path,
            [
                annotation(1, 1, box),
                annotation(2, 1, box, segmentation=[]),
                annotation(3, 1, box, segmentation=None),
                annotation(4, 1, box, segmentation=compressed(np.zeros(SIZES[1], dtype=bool))),
                annotation(5, 1, box, segmentation={"size": list(SIZES[1]), "counts": [3]}),
                annotation(6, 1, box, segmentation=compressed(np.ones((60, 40), dtype=bool))),
                annotation(7, 1, box, bbox=[10, 5, 0, 20]),
                annotation(8, 1, box, bbox=[10, 5, 20]),
                annotation(9, 1, box, bbox=[10, 5, float("nan"), 20]),
                annotation(10, 1, box, bbox=[61, 5, 10, 10]),
                annotation(11, 1, box) | {"image_id": 99},
                annotation(12, 1, box) | {"image_id": [1]},
            ],
        )
    )
    assert dataset.index_skipped == {"unknown image id": 2}
    for _ in range(2):  # reading an image again must not count again
        sample = dataset[0]
        assert [instance.id for instance in sample.instances] == [1]
        assert sample.skipped == {
            "empty mask": 3,
            "damaged mask": 1,
            "mask of another size than the image": 1,
            "box without area": 1,
            "damaged box": 2,
            "box outside the image": 1,
        }
        assert dataset.skipped == {**sample.skipped, "unknown image id": 2}


def test_image_of_another_size_than_stated(tmp_path: Path) -> None:
    make_coco(tmp_path)
    Image.fromarray(picture((41, 60))).save(tmp_path / "images" / "1.png")
    sample = open_folder(tmp_path)[0]
    assert sample.instances == ()
    assert sample.skipped == {"mask of another size than the image": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "a list 'images'"),
        ({"images": []}, "expected images in .*, found none of 0"),
        ({"images": [{"id": 1, "file_name": "1.png", "height": 0, "width": 5}]}, "image 0: expected"),
        ({"images": [{"id": "one", "file_name": "1.png", "height": 4, "width": 5}]}, "image 0: expected"),
        (
            {"images": [{"id": 1, "file_name": "1.png", "height": 4, "width": 5}] * 2},
            "unique image ids, got 1",
        ),
        ({"annotations": {}}, "'annotations' to be a list"),
        ({"annotations": [{"image_id": 1}]}, "annotation 0: expected"),
        ({"annotations": [annotation(5, 1, (0, 0, 2, 2))] * 2}, "unique annotation ids, got 5"),
        ({"categories": [{"name": "cat"}]}, "category to have an integer id"),
    ],
)
def test_files_in_other_formats_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make_coco(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path)


def test_missing_and_unparsable_files(tmp_path: Path) -> None:
    make_coco(tmp_path)
    with pytest.raises(ValueError, match="expected the folder of the images"):
        CocoDataset(tmp_path / "absent", tmp_path / "annotations.json")
    with pytest.raises(ValueError, match="found nothing"):
        CocoDataset(tmp_path / "images", tmp_path / "absent.json")
    for content in (b"{", b"\xff\xfe\xfd", json.dumps([1]).encode(), b"[" * 100_000):
        (tmp_path / "annotations.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"annotations\.json: expected"):
            open_folder(tmp_path)


# ---- LVIS, and annotation files given alone


def make_lvis(root: Path) -> Path:
    """A COCO root with LVIS annotations: no file names, and of image 1 what was looked for."""
    made = json.loads((make_coco(root / "made") / "annotations.json").read_text())
    folder = root / "val2017"
    folder.mkdir()
    for record in made["images"]:
        name = record.pop("file_name")
        (root / "made" / "images" / name).rename(folder / name)
        record["coco_url"] = f"http://images.cocodataset.org/val2017/{name}"
        record |= {"neg_category_ids": [9], "not_exhaustive_category_ids": [3]} if record["id"] == 1 else {}
    for category, frequency in zip(made["categories"], "fr", strict=True):
        category["frequency"] = frequency
    (root / "annotations").mkdir()
    path = root / "annotations" / "lvis_v1_val.json"
    path.write_text(json.dumps(made))
    return path


def test_lvis_in_a_coco_root(tmp_path: Path) -> None:
    dataset = open_dataset(make_lvis(tmp_path))
    assert isinstance(dataset, CocoDataset)
    assert (dataset.name, len(dataset)) == ("lvis_v1_val", 2)
    assert dataset.category_frequencies == {3: "f", 9: "r"}
    first, second = dataset[0], dataset[1]
    assert first.file_name == "val2017/1.png"
    assert (first.judged, first.incomplete) == (frozenset({3, 9}), frozenset({3}))
    assert (second.judged, second.incomplete) == (None, frozenset())
    np.testing.assert_array_equal(first.image, picture(SIZES[1], 1))


@pytest.mark.parametrize("place", ["images", ".", "../val2017"])
def test_images_of_an_annotation_file_are_found(tmp_path: Path, place: str) -> None:
    made = make_coco(tmp_path / "made")
    own = tmp_path / "annotations"
    (own / place).mkdir(parents=True, exist_ok=True)
    for image in (made / "images").iterdir():
        image.rename(own / place / image.name)
    (made / "annotations.json").rename(own / "instances_val2017.json")
    dataset = open_dataset(own / "instances_val2017.json")
    assert (dataset.name, len(dataset)) == ("instances_val2017", 2)
    assert dataset[0].instances


def test_an_annotation_file_without_its_images_names_the_searched_folders(tmp_path: Path) -> None:
    path = make_lvis(tmp_path)
    for image in (tmp_path / "val2017").iterdir():
        image.unlink()
    with pytest.raises(ValueError, match=r"expected its images, such as \['val2017/1\.png'\], in one of: "):
        open_dataset(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="expected COCO instance JSON with a list 'images'"):
        open_dataset(path)
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match="expected images, the file lists none"):
        open_dataset(path)


def test_lists_of_categories_are_checked(tmp_path: Path) -> None:
    path = make_lvis(tmp_path)
    content = json.loads(path.read_text())
    content["images"][0]["neg_category_ids"] = ["nine"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="image 0: expected neg_category_ids to be a list of integers"):
        open_dataset(path)
