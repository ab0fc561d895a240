"""Task `instance` on a set whose images are each annotated for some classes only."""

import json
from pathlib import Path

import pytest
from PIL import Image

from saqsam.data.coco import CocoDataset
from saqsam.data.detections import load_detections
from saqsam.data.open import open_dataset
from saqsam.evaluation import Evaluation, InstanceTask, evaluate
from support.coco_folder import compressed, picture, rectangle
from support.fills_boxes import FillsBoxes
from support.tiny_sam import tiny_processor

SIZE = (64, 64)
TRUE, FALSE = (0, 0, 20, 20), (30, 30, 60, 60)


def make_lvis(folder: Path, **fields: object) -> CocoDataset:
    """One image with an object of class 3; classes 3, 5 and 7 exist."""
    (folder / "val2017").mkdir(parents=True)
    Image.fromarray(picture(SIZE)).save(folder / "val2017" / "1.png")
    image = {"id": 1, "coco_url": "http://x/val2017/1.png", "height": 64, "width": 64, **fields}
    mask = compressed(rectangle(SIZE, TRUE))
    thing = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 20, 20], "segmentation": mask}
    categories = [{"id": k, "name": str(k), "frequency": f} for k, f in ((3, "r"), (5, "c"), (7, "f"))]
    content = {"images": [image], "annotations": [thing], "categories": categories}
    (folder / "lvis.json").write_text(json.dumps(content))
    dataset = open_dataset(folder / "lvis.json")
    assert isinstance(dataset, CocoDataset)
    return dataset


def scored(dataset: CocoDataset, folder: Path) -> Evaluation:
    """A detector that finds the object and, surer of them, one of each class where there is none."""
    x0, y0, x1, y1 = FALSE
    found = [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 20, 20], "score": 0.5}] + [
        {"image_id": 1, "category_id": k, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": 0.9} for k in (3, 5, 7)
    ]
    (folder / "found.json").write_text(json.dumps(found))
    task = InstanceTask(load_detections(folder / "found.json", dataset), dataset.category_frequencies)
    return evaluate(FillsBoxes(), tiny_processor(), dataset, tasks=[task])


def test_boxes_of_classes_nobody_looked_for_are_not_asked(tmp_path: Path) -> None:
    result = scored(make_lvis(tmp_path, neg_category_ids=[5]), tmp_path)
    (record,) = result.records
    assert [category for category, *_ in record["instance"]["found"]] == [3, 3, 5]
    assert result.skipped == {"detection: of a class that the image is not annotated for": 1}
    assert result.options["instance"]["federated"] is True
    figures = result.metrics["instance"]
    assert figures["segm_ap"] == figures["segm_ap_rare"] == pytest.approx(0.5)
    assert "segm_ap_agnostic" not in figures


def test_an_incomplete_class_forgives(tmp_path: Path) -> None:
    result = scored(make_lvis(tmp_path, neg_category_ids=[], not_exhaustive_category_ids=[3]), tmp_path)
    assert result.metrics["instance"]["segm_ap"] == pytest.approx(1)


def test_nothing_is_left_when_no_box_is_of_a_judged_class(tmp_path: Path) -> None:
    dataset = make_lvis(tmp_path, neg_category_ids=[])
    boxes = [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 20, 20], "score": 0.5}]
    (tmp_path / "found.json").write_text(json.dumps(boxes))
    task = InstanceTask(load_detections(tmp_path / "found.json", dataset), dataset.category_frequencies)
    backend = FillsBoxes()
    result = evaluate(backend, tiny_processor(), dataset, tasks=[task])
    assert result.metrics["instance"]["segm_ap"] == 0.0
    assert backend.encoded == []
