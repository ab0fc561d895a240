"""Detection of the format of a folder, and advice for folders that are only a part of a dataset."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saqsam.data.ade20k import AdeDataset
from saqsam.data.coco import CocoDataset
from saqsam.data.detections import load_detections
from saqsam.data.dota import DotaDataset
from saqsam.data.images import ImageFolder, list_images
from saqsam.data.label_maps import FolderLabels
from saqsam.data.mask_pairs import MaskPairDataset
from saqsam.data.open import open_dataset
from support.ade_folder import make_ade
from support.coco_folder import make_coco, picture
from support.dota_folder import make_dota

SQUARE = "10 10 30 10 30 30 10 30 plane 0"


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture((64, 64))).save(path)
    return path


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_coco(tmp_path / "coco")
    make_dota(tmp_path / "dota", {"a": [SQUARE]})
    make_ade(tmp_path / "ade")
    for folder in ("images", "masks"):
        (tmp_path / "pairs" / folder).mkdir(parents=True)
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "pairs" / folder / "a.png")
    assert isinstance(open_dataset("~/coco"), CocoDataset)
    assert isinstance(open_dataset("~/coco/annotations.json"), CocoDataset)
    assert isinstance(open_dataset(Path("~/dota")), DotaDataset)
    assert isinstance(open_dataset("~/ade"), AdeDataset)
    assert isinstance(open_dataset("~/pairs"), MaskPairDataset)
    assert isinstance(open_dataset("~/coco/images"), ImageFolder)
    names = [DotaDataset("~/dota").name, MaskPairDataset("~/pairs").name, ImageFolder("~/pairs/images").name]
    assert names == ["dota", "pairs", "images"]
    assert AdeDataset("~/ade").name == "ade20k_validation"
    assert len(list_images("~/coco/images")) == 2
    (tmp_path / "found.json").write_text("[]")
    assert load_detections("~/found.json", open_dataset("~/coco")).by_image == {}
    assert FolderLabels("~/ade/annotations/validation", AdeDataset("~/ade")).options()["labels"]
    with pytest.raises(ValueError, match="expected ~ to name a home folder, found no such user"):
        open_dataset("~no-such-user-of-this-machine/data")
    (tmp_path / "work" / "~").mkdir(parents=True)
    save(tmp_path / "work" / "~" / "a.png")
    monkeypatch.chdir(tmp_path / "work")
    assert len(open_dataset(f".{os.sep}~")) == 1


def test_yolo_is_refused_by_name(tmp_path: Path) -> None:
    for place, lines in (
        ("flat", "0 0.5 0.5 0.2 0.2\n"),
        ("split", "3 0.1 0.1 0.4 0.1 0.4 0.4\n"),
        ("obb", "0 0.1 0.1 0.4 0.1 0.4 0.4 0.1 0.4\n"),
    ):
        below = "train" if place == "split" else ""
        save(tmp_path / place / "images" / below / "a.jpg")
        (tmp_path / place / "labels" / below).mkdir(parents=True)
        (tmp_path / place / "labels" / below / "a.txt").write_text(lines)
        with pytest.raises(
            ValueError, match=r"YOLO text labels are not read \(labels.*a\.txt\); convert them"
        ):
            open_dataset(tmp_path / place)


def test_yolo_with_the_split_names_of_ade20k(tmp_path: Path) -> None:
    save(tmp_path / "images" / "validation" / "a.jpg")
    (tmp_path / "labels" / "validation").mkdir(parents=True)
    (tmp_path / "labels" / "validation" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(ValueError, match="YOLO text labels are not read"):
        open_dataset(tmp_path)


def test_folders_in_no_known_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found none; found an empty folder$"):
        open_dataset(tmp_path)
    for name in ("a.nii.gz", "b.nii.gz", "c.dcm", "._d.dcm"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "Kvasir-SEG").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    with pytest.raises(ValueError, match=r"found none; found Kvasir-SEG/, 2 x \.gz, 1 x \.dcm$"):
        open_dataset(tmp_path)
    for number in range(20):
        (tmp_path / f"folder{number:02}").mkdir()
    with pytest.raises(ValueError, match=r"folder06/, \.\.\.$"):
        open_dataset(tmp_path)


def test_parts_of_ade20k(tmp_path: Path) -> None:
    root = make_ade(tmp_path / "ade")
    with pytest.raises(ValueError, match=rf"got label maps; give {root} or {root}/images/validation$"):
        open_dataset(root / "annotations" / "validation")
    for part in ("images", "annotations"):
        with pytest.raises(
            ValueError, match=rf"expected the root of ADE20K or an image folder; give {root}$"
        ):
            open_dataset(root / part)
    save(tmp_path / "full" / "images" / "ADE" / "validation" / "urban" / "street" / "ADE_val_00000001.jpg")
    with pytest.raises(ValueError, match=r"ADEChallengeData2016\.zip, got the full ADE20K release"):
        open_dataset(tmp_path / "full")


def test_an_ignore_label_needs_masks(tmp_path: Path) -> None:
    make_coco(tmp_path / "coco")
    make_dota(tmp_path / "dota", {"a": [SQUARE]})
    make_ade(tmp_path / "ade")
    coco = tmp_path / "coco"
    for spec in (
        "scenes",
        coco,
        coco / "annotations.json",
        tmp_path / "dota",
        tmp_path / "ade",
        coco / "images",
    ):
        for label in (255, None):
            with pytest.raises(ValueError, match="expected a folder of images and masks with ignore_label"):
                open_dataset(spec, ignore_label=label)
        assert len(open_dataset(spec, ignore_label="auto")) > 0


@pytest.mark.parametrize(
    "folder",
    [
        "labelTxt-v1.0",
        "labelTxt-v1.5",
        "labelTxt_v2",
        "LabelTxt",
        "annfiles",
        "labels",
        "labelTxt-v1.5/DOTA-v1.5_val",
    ],
)
def test_folders_of_dota(tmp_path: Path, folder: str) -> None:
    make_dota(tmp_path, {"a": [SQUARE], "b": []})
    place = tmp_path / folder
    place.parent.mkdir(exist_ok=True)
    (tmp_path / "labelTxt").rename(place)
    (place / "._a.txt").write_bytes(b"\x00\x05\x16\x07")
    (place / ".DS_Store").write_bytes(b"")
    (tmp_path / "images" / "._a.png").write_bytes(b"")
    dataset = open_dataset(tmp_path)
    assert isinstance(dataset, DotaDataset)
    assert (len(dataset), dataset.index_skipped) == (2, {})
    assert dataset[0].instances[0].area == 400


def test_two_versions_of_dota(tmp_path: Path) -> None:
    make_dota(tmp_path, {"a": [SQUARE]})
    (tmp_path / "labelTxt-v1.5").mkdir()
    (tmp_path / "labelTxt-v1.5" / "a.txt").write_text(f"{SQUARE}\n{SQUARE}\n")
    assert len(open_dataset(tmp_path)[0].instances) == 1
    (tmp_path / "labelTxt").rename(tmp_path / "labelTxt-v1.0")
    with pytest.raises(ValueError, match=r"one folder of label files, got labelTxt-v1\.0/, labelTxt-v1\.5/"):
        open_dataset(tmp_path)
