"""Reasons and notes of an evaluation: in its figures, its records, and the error where nothing is left."""

import json
from pathlib import Path
from typing import Any

import pytest

from saqsam.data.detections import load_detections
from saqsam.data.open import open_dataset
from saqsam.evaluation import EverythingTask, InstanceTask, OrientedTask, PromptTask, Task
from saqsam.evaluation.baseline import box_fill_iou
from saqsam.evaluation.compare import compare
from saqsam.evaluation.results import Evaluation
from saqsam.evaluation.run import evaluate
from saqsam.evaluation.subject import Subject
from saqsam.inference.mask_generator import GeneratorOptions
from support.blobs import Blobs
from support.coco_folder import annotation, make_coco
from support.fills_boxes import FillsBoxes
from support.tiny_sam import tiny_processor

BOX = (10, 5, 30, 25)
LOST = [
    annotation(1, 1, BOX, segmentation=[[1, 1, 2, 2]]),
    annotation(2, 1, BOX, segmentation=[[3, 3]]),
    annotation(3, 7, BOX, bbox=[1, 2, 3]),
    annotation(4, 1, BOX) | {"image_id": 5},
]
REASONS = r"; skipped: polygon without area \(2\), damaged box \(1\), unknown image id \(1\)$"


def run(folder: Path, **options: Any) -> Evaluation:
    return evaluate(FillsBoxes(), tiny_processor(), open_dataset(folder), **options)


def test_nothing_to_score_says_why_most_frequent_first(tmp_path: Path) -> None:
    dataset = open_dataset(make_coco(tmp_path, LOST))
    expected = "expected instances to score, found none in 2 images" + REASONS
    with pytest.raises(ValueError, match=expected):
        run(tmp_path)
    with pytest.raises(ValueError, match=expected):
        box_fill_iou(dataset)
    subjects = [Subject(FillsBoxes(), tiny_processor()) for _ in range(2)]
    with pytest.raises(ValueError, match=expected):
        compare(subjects, dataset, [PromptTask("box")])


@pytest.mark.parametrize("name", ["instance", "oriented", "everything"])
def test_other_tasks_say_why_too(tmp_path: Path, name: str) -> None:
    dataset = open_dataset(make_coco(tmp_path, LOST))
    (tmp_path / "found.json").write_text("[]")
    tasks: dict[str, Task] = {
        "instance": InstanceTask(load_detections(tmp_path / "found.json", dataset)),
        "oriented": OrientedTask(),
        "everything": EverythingTask(GeneratorOptions(points_per_side=1)),
    }
    backend = Blobs() if name == "everything" else FillsBoxes()
    with pytest.raises(ValueError, match=REASONS):
        evaluate(backend, tiny_processor(), dataset, tasks=[tasks[name]])


def test_crowds_and_small_objects_are_reasons(tmp_path: Path) -> None:
    make_coco(tmp_path, [annotation(1, 1, BOX, iscrowd="1"), annotation(2, 7, (0, 0, 4, 4))])
    with pytest.raises(
        ValueError, match=r"crowd region, which is never scored \(1\), mask below the minimum area \(1\)"
    ):
        run(tmp_path, min_area=100)
    with pytest.raises(
        ValueError, match=r"crowd region, which is never scored \(1\), mask below the minimum area \(1\)"
    ):
        box_fill_iou(open_dataset(tmp_path), min_area=100)


def test_data_without_objects_says_so(tmp_path: Path) -> None:
    make_coco(tmp_path, [])
    with pytest.raises(ValueError, match="found none in 2 images; no image has annotated objects"):
        run(tmp_path)
    metrics = run(tmp_path, tasks=[OrientedTask()]).metrics["oriented"]
    assert (metrics["objects"], metrics["rotated_miou"]) == (0, None)


def quirky(folder: Path) -> Path:
    objects = [
        annotation(1, 1, BOX, bbox=None),
        annotation(2, 1, BOX, bbox=None, iscrowd=False),
        annotation(3, 7, BOX, bbox=None, category_id="3"),
        annotation(4, 1, BOX) | {"image_id": "1"},
    ]
    found = [{"image_id": "1", "category_id": 3, "bbox": [10, 5, 20, 20], "score": 0.5}]
    (make_coco(folder, objects) / "found.json").write_text(json.dumps(found))
    return folder


NOTES = {
    "id written as text": 2,
    "detection: id written as text": 1,
    "box derived from segmentation": 3,
    "crowd flag not written as 0 or 1": 1,
}


def test_notes_are_summed_and_in_the_json(tmp_path: Path) -> None:
    folder = quirky(tmp_path)
    dataset = open_dataset(folder)
    found = load_detections(folder / "found.json", dataset)
    tasks = [PromptTask("box"), InstanceTask(found), OrientedTask(found)]  # two tasks share the detections
    result = run(folder, tasks=tasks)
    assert (result.notes, result.skipped) == (NOTES, {})
    content = json.loads(result.to_json())
    assert content["notes"] == NOTES
    assert content["records"][1]["notes"] == {"box derived from segmentation": 1, "id written as text": 1}
    assert run(folder, tasks=tasks).to_json() == result.to_json()
