"""Annotation files of labeling tools in their places, and files that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from saqsam.data.coco import CocoDataset
from saqsam.data.open import open_dataset
from support.coco_folder import assert_same_samples, make_coco, read_all, read_coco


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "got a list, which is the form of a detections file"),
        ('{"images": null}', "'images' is None"),
        ('{"annotations": []}', "found 'annotations'"),
        ('{"a": 1}\n{"a": 2}\n', "found more after the first value, as in JSON lines"),
        ("[" * 100_000, "too many levels of nesting"),
        ('{"images": ' + "9" * 5000 + "}", "expected JSON"),
        ('"text"', "got str"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        open_dataset(tmp_path)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("changes", [{"annotations": None}, {}])
def test_files_without_annotations(tmp_path: Path, changes: dict[str, Any]) -> None:
    make_coco(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    del content["annotations"]
    samples, dataset = read_coco(content | changes, tmp_path)
    assert [sample.instances for sample in samples] == [(), ()]
    assert dataset.index_notes == {"annotation file without annotations": 1}


@pytest.mark.parametrize(
    ("annotations", "images", "opened", "name"),
    [
        ("train/_annotations.coco.json", "train", "train", "train"),  # Roboflow
        ("train/_annotations.coco.json", "train", ".", "train"),
        ("result.json", "images", ".", "ours"),  # Label Studio
        ("annotations/instances_default.json", "images", ".", "ours"),  # CVAT
        ("annotations/instances_default.json", "images/default", ".", "ours"),
        ("annotations/instances_part.json", "part", ".", "instances_part"),
        ("annotations.json", ".", ".", "ours"),
    ],
)
def test_exports_of_labeling_tools(
    tmp_path: Path, annotations: str, images: str, opened: str, name: str
) -> None:
    made = make_coco(tmp_path / "made")
    root = tmp_path / "ours"
    for path in (made / "images").iterdir():
        target = root / images / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    target = root / annotations
    target.parent.mkdir(parents=True, exist_ok=True)
    (made / "annotations.json").rename(target)
    dataset, alone = open_dataset(root / opened), open_dataset(target)
    assert isinstance(dataset, CocoDataset)
    assert dataset.name == alone.name == name
    assert_same_samples(read_all(dataset), read_all(alone))
    assert [len(dataset[index].instances) for index in (0, 1)] == [3, 1]
    is_usual = target.name == "annotations.json"
    assert dataset.index_notes == ({} if is_usual else {f"annotation file {target.name} read": 1})


def test_several_annotation_files_are_refused(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "_annotations.coco.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"found train/_annotations\.coco\.json, valid/_annotations\.coco\.json"
    ):
        open_dataset(tmp_path)
