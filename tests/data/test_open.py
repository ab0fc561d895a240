"""Open datasets by name or path, or from a list of images."""

import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saqsam.data.coco import CocoDataset
from saqsam.data.image_list import ImageList
from saqsam.data.images import ImageFolder
from saqsam.data.open import as_dataset, open_dataset
from support.coco_folder import make_coco, picture


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


def test_a_list_of_images(tmp_path: Path) -> None:
    path = make_coco(tmp_path) / "images" / "1.png"
    for images in (
        [picture((4, 5)), path],
        (Image.new("RGB", (5, 4)), str(path)),
        deque([picture((4, 5)), path]),
    ):
        dataset = open_dataset(images)
        assert isinstance(dataset, ImageList)
        assert [dataset[index].image.shape for index in range(2)] == [(4, 5, 3), (40, 60, 3)]
    assert len(open_dataset([picture((4, 5)), path], limit=1)) == 1


def test_an_open_dataset_is_passed_through() -> None:
    dataset = open_dataset("scenes", limit=1)
    assert open_dataset(dataset) is dataset
    assert as_dataset(dataset) is dataset
    with pytest.raises(ValueError, match="got an open dataset with limit; pass limit where it is opened"):
        open_dataset(dataset, limit=1)


def test_as_dataset_takes_names_paths_and_lists(tmp_path: Path) -> None:
    make_coco(tmp_path / "pets")
    assert as_dataset("scenes").name == "scenes"
    assert as_dataset(tmp_path / "pets").name == "pets"
    assert len(as_dataset([picture((4, 5))])) == 1


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            (image for image in [picture((4, 5))]),
            r"got a generator, which can be read only once; pass list\(images\)",
        ),
        (map(str, ["a.png"]), r"got a map, .* pass list\(images\)"),
        (picture((4, 5)), r"got one image; pass \[image\]"),
        (Image.new("RGB", (4, 5)), r"got one image; pass \[image\]"),
        (torch.zeros(2, 4, 5, 3), r"got a batch; pass list\(batch\)"),
        ({"a": picture((4, 5))}, "got dict"),
        ({"a.png"}, "got set"),
        (None, "got NoneType"),
        (7, "got int"),
        (b"scenes", "got bytes"),
    ],
)
def test_other_objects_are_refused(source: Any, problem: str) -> None:
    for call in (open_dataset, as_dataset):
        message = f"^data: expected a name, a path, a list of images or a dataset, {problem}$"
        with pytest.raises(ValueError, match=message):
            call(source)


def test_a_list_has_no_ignore_label() -> None:
    with pytest.raises(ValueError, match="expected a folder of images and masks with ignore_label"):
        open_dataset([picture((4, 5))], ignore_label=255)


def test_the_path_of_one_image_suggests_a_list(tmp_path: Path) -> None:
    path = make_coco(tmp_path) / "images" / "1.png"
    with pytest.raises(ValueError, match=r"it is one image; pass a list of paths, such as \['.*1.png'\]"):
        open_dataset(path)
