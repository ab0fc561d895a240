"""Lookup of image files by the names in annotations, and never outside their folder."""

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from saqsam.data.coco import CocoDataset
from saqsam.data.open import open_dataset
from support.coco_folder import picture


def name_images(folder: Path, *names: str) -> CocoDataset:
    """Open a folder whose annotation file names its images so; ids count from 1."""
    images = [{"id": i, "file_name": name, "height": 4, "width": 5} for i, name in enumerate(names, start=1)]
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": []}))
    dataset = open_dataset(folder)
    assert isinstance(dataset, CocoDataset)
    return dataset


def save(path: Path, size: tuple[int, int] = (4, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(size)).save(path)


@pytest.mark.parametrize(
    ("on_disk", "named"),
    [
        ("a b.png", "a%20b.png"),
        ("a%20b.png", "a b.png"),
        (unicodedata.normalize("NFD", "é.png"), unicodedata.normalize("NFC", "é.png")),
        (unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "images/é.png")),
        ("Sub/A.png", "sub/a.PNG"),
        ("a.png", " a.png"),
        pytest.param("a.png", "x/" * 20_000 + "a.png", id="a long path"),
        ("sub/a.png", "x/y/sub/a.jpeg"),
        ("sub/a.png", "sub\\a.png"),
        ("a.png", "/data/local-files/?d=images/a.png"),
        ("a.png", "file:///C:/pictures/a.png"),
        ("frame.0001.png", "frame.0001.jpg"),
        ("frame.0001.png", "frame.0001"),
    ],
)
def test_spellings_of_a_name(tmp_path: Path, on_disk: str, named: str) -> None:
    save(tmp_path / "images" / on_disk)
    dataset = name_images(tmp_path, named)
    assert dataset[0].file_name == on_disk
    assert sum(dataset.index_notes.values()) == 1
    assert name_images(tmp_path, on_disk).index_notes == {}


def test_names_with_backslashes_on_disk(tmp_path: Path) -> None:
    save(tmp_path / "images" / "images\\a.png")
    dataset = name_images(tmp_path, "images\\a.png")
    assert (dataset[0].file_name, dataset.index_notes) == ("images\\a.png", {})


def test_ambiguous_names_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "b.jpg", "C.png", "c.png"):
        save(tmp_path / "images" / name)
    dataset = name_images(tmp_path, "a.png", "a.jpg", "b.webp", "C.PNG", "c.png", "train/d.png", "b.png")
    assert [dataset[index].file_name for index in range(len(dataset))] == ["a.png", "c.png", "b.png"]
    assert dataset.index_skipped == {
        "image name that fits the file of another image": 1,
        "image name that fits several files": 2,
        "missing image file": 1,
    }
    with pytest.raises(ValueError, match=r"such as \['train/x.png'\], .*skipped: missing image file \(2\)"):
        name_images(tmp_path, "train/x.png", "val/x.png")
    with pytest.raises(ValueError, match=r"skipped: image name that fits several files \(1\)"):
        name_images(tmp_path, "b.gif")
    for name in ("train/a.png", "val/a.png"):  # each could be the file
        assert len(name_images(tmp_path, name)) == 1
    with pytest.raises(
        ValueError, match=r"none of 2; skipped: image name that fits the file of another image \(2\)"
    ):
        name_images(tmp_path, "train/a.png", "val/a.png")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "{root}/secret.png",
        "images/../../secret.png",
        "..\\secret.png",
        "x/%2e%2e/secret.png",
    ],
)
def test_no_file_outside_the_image_folder_is_read(tmp_path: Path, name: str) -> None:
    save(tmp_path / "secret.png")
    folder = tmp_path / "set"
    save(folder / "images" / "a.png")
    dataset = name_images(folder, "a.png", name.format(root=tmp_path))
    assert (len(dataset), dataset.index_skipped) == (1, {"missing image file": 1})
    explicit = CocoDataset(folder / "images", folder / "annotations.json")
    assert explicit.image_ids == (1,)
