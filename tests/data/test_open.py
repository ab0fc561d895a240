"""Opening data sets by name or path."""

import json
from pathlib import Path

import numpy as np
import pytest

from saqsam.data.coco import CocoDataset
from saqsam.data.images import ImageFolder
from saqsam.data.open import open_dataset
from support.coco_folder import make_coco


def test_scenes_are_the_same_whatever_the_limit() -> None:
    whole, few = open_dataset("scenes"), open_dataset("scenes", limit=2)
    assert (whole.name, len(whole), len(few)) == ("scenes", 100, 2)
    np.testing.assert_array_equal(whole[1].image, few[1].image)
    assert [instance.box for instance in whole[1].instances] == [
        instance.box for instance in few[1].instances
    ]


def test_scenes_depend_on_the_seed() -> None:
    first, other = open_dataset("scenes", limit=1)[0], open_dataset("scenes", limit=1, seed=1)[0]
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_folder_with_annotations(tmp_path: Path) -> None:
    dataset = open_dataset(make_coco(tmp_path / "pets"), limit=1)
    assert isinstance(dataset, CocoDataset)
    assert (dataset.name, len(dataset)) == ("pets", 1)


def test_coco_root_with_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_coco(tmp_path)
    (tmp_path / "images").rename(tmp_path / "val2017")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations.json").rename(tmp_path / "annotations" / "instances_val2017.json")
    dataset = open_dataset(str(tmp_path / "val2017"))
    assert isinstance(dataset, CocoDataset)
    assert (dataset.name, len(dataset)) == ("val2017", 2)
    monkeypatch.chdir(tmp_path / "val2017")
    assert open_dataset(".").name == "val2017"


def test_folder_of_images(tmp_path: Path) -> None:
    make_coco(tmp_path)
    dataset = open_dataset(tmp_path / "images", limit=1)
    assert isinstance(dataset, ImageFolder)
    assert (dataset.name, len(dataset)) == ("images", 1)


def test_neither_name_nor_folder(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data 'scene': expected 'scenes', a folder of images, .*no such folder"
    ):
        open_dataset("scene")
    (tmp_path / "a.txt").write_text("1")
    with pytest.raises(ValueError, match="it is a file"):
        open_dataset(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"expected images .*, found none"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        open_dataset("scenes", limit=0)


def test_annotations_without_images(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "1.png", "height": 4, "width": 5}]
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images}))
    with pytest.raises(ValueError, match=r"expected its images, such as \['1\.png'\], .*; found none of 1"):
        open_dataset(tmp_path)
