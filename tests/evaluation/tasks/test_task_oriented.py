"""Task `oriented`: with a backend that fills boxes, so that rectangles are known."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saqsam.data.coco import CocoDataset
from saqsam.data.detections import Detections, ImageDetections, load_detections
from saqsam.data.open import open_dataset
from saqsam.data.rle import decode_mask, encode_mask
from saqsam.data.simulated_detections import SimulatedDetections
from saqsam.data.types import Instance, Sample
from saqsam.evaluation.results import Evaluation
from saqsam.evaluation.run import evaluate
from saqsam.evaluation.tasks.instance import InstanceTask
from saqsam.evaluation.tasks.oriented import OrientedTask, true_polygon
from saqsam.evaluation.tasks.prompt import PromptTask
from support.coco_folder import annotation, make_coco, rectangle
from support.dota_folder import make_dota
from support.fills_boxes import FillsBoxes
from support.tiny_sam import tiny_processor, tiny_sam

Box = tuple[float, float, float, float]


class InMemory:
    name = "made"

    def __init__(self, *samples: Sample) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def instance(number: int, box: tuple[int, int, int, int], category: int = 1, **changes: Any) -> Instance:
    mask = encode_mask(rectangle((64, 64), box))
    return Instance(number, mask, tuple(map(float, box)), category, **changes)


def diamond(number: int, x: int, y: int, reach: int, **changes: Any) -> Instance:
    corners = ((x - reach, y), (x, y - reach), (x + reach, y), (x, y + reach))
    box = (x - reach, y - reach, x + reach, y + reach)
    return instance(number, box, corners=corners, **changes)


def sample(image_id: int, *instances: Instance) -> Sample:
    return Sample(image_id, f"{image_id}.png", np.zeros((64, 64, 3), dtype=np.uint8), instances)


def detected(*entries: tuple[Box, float, int]) -> ImageDetections:
    boxes, scores, categories = zip(*entries, strict=True)
    return ImageDetections(np.array(boxes, dtype=np.float64), np.array(scores), np.array(categories))


def run(dataset: Any, task: OrientedTask | None = None, backend: Any = None, **options: Any) -> Evaluation:
    return evaluate(
        backend or FillsBoxes(), tiny_processor(), dataset, tasks=[task or OrientedTask()], **options
    )


def test_boxes_of_the_objects() -> None:
    dataset = InMemory(sample(4, instance(1, (8, 8, 24, 40)), diamond(2, 40, 24, 16)), sample(9))
    result = run(dataset)
    metrics = result.metrics["oriented"]
    # The first comes back as it is; of the second its box, twice as large as the diamond.
    assert metrics["rotated_miou"] == pytest.approx((1 + 0.5) / 2)
    assert metrics["rotated_ap50"] == pytest.approx(0.5)  # 0.5 is not above 0.5
    assert (metrics["objects"], metrics["boxes"], metrics["ignored"]) == (2, 2, 0)
    first, second = result.records[0]["oriented"]["found"]
    assert (first["id"], first["score"], first["predicted_iou"]) == (1, 0.5, 0.5)
    assert {tuple(corner) for corner in first["corners"]} == {(8, 8), (24, 8), (24, 40), (8, 40)}
    assert {tuple(corner) for corner in second["corners"]} == {(24, 8), (56, 8), (56, 40), (24, 40)}
    assert result.records[1]["oriented"] == {"truth": [], "mended": 0, "found": []}
    assert OrientedTask().values(result.records[0]["oriented"]) == pytest.approx({"1": 1, "2": 0.5})
    assert OrientedTask().masks(result.records[0]["oriented"]) == {}
    assert result.to_json() == run(dataset).to_json()


def test_true_polygons() -> None:
    plain = instance(1, (8, 8, 24, 40))
    polygon, is_mended = true_polygon(plain)
    assert ({tuple(c) for c in polygon.tolist()}, is_mended) == (
        {(8, 8), (24, 8), (24, 40), (8, 40)},
        False,
    )
    trapezoid = ((10.0, 10.0), (30.0, 10.0), (25.0, 20.0), (15.0, 20.0))
    polygon, is_mended = true_polygon(instance(1, (8, 8, 24, 40), corners=trapezoid))
    assert ({tuple(c) for c in polygon.tolist()}, is_mended) == (set(trapezoid), False)
    # Another number of corners: the smallest rectangle around them.
    polygon, _ = true_polygon(instance(1, (8, 8, 24, 40), corners=(*trapezoid, (20.0, 22.0))))
    assert {tuple(c) for c in polygon.tolist()} == {(10, 10), (30, 10), (30, 22), (10, 22)}
    crossed = (trapezoid[0], trapezoid[2], trapezoid[1], trapezoid[3])
    dented = (trapezoid[0], trapezoid[1], (20.0, 12.0), trapezoid[3])
    for corners, number in ((crossed, 4), (dented, 3)):
        polygon, is_mended = true_polygon(instance(1, (8, 8, 24, 40), corners=corners))
        assert (len(polygon), is_mended) == (number, True)
    # Corners without area say nothing; the mask does.
    polygon, is_mended = true_polygon(instance(1, (8, 8, 24, 40), corners=((1.0, 1.0), (5.0, 5.0)) * 2))
    assert (polygon.max(), is_mended) == (40, False)


def test_difficult_objects_and_crowds_are_no_prompts_and_neither_right_nor_wrong() -> None:
    objects = (
        instance(1, (0, 0, 16, 16)),
        instance(2, (32, 0, 48, 16), is_difficult=True),
        instance(3, (0, 32, 64, 64), is_crowd=True),
    )
    metrics = run(InMemory(sample(1, *objects))).metrics["oriented"]
    assert (metrics["objects"], metrics["ignored"], metrics["boxes"]) == (1, 2, 1)
    boxes = [((32, 0, 48, 16), 0.9, 1), ((4, 36, 12, 44), 0.8, 1), ((0, 0, 16, 16), 0.5, 1)]
    task = OrientedTask(Detections({1: detected(*boxes)}))
    metrics = run(InMemory(sample(1, *objects)), task).metrics["oriented"]
    assert (metrics["rotated_ap"], metrics["rotated_miou"], metrics["boxes"]) == (1, 1, 3)


def test_an_object_s_value_is_what_its_own_box_gave() -> None:
    # The box of the second would be better for the first: IoU 368 / 544.
    dataset = InMemory(sample(1, diamond(1, 32, 32, 16), instance(2, (22, 22, 42, 42))))
    record = run(dataset).records[0]["oriented"]
    assert OrientedTask().values(record) == pytest.approx({"1": 0.5, "2": 1})
    for found in record["found"]:
        found["id"] = None  # as if they were a detector's
    assert OrientedTask().values(record) == pytest.approx({"1": 368 / 544, "2": 1})


def test_a_detector_s_boxes_scores_and_classes() -> None:
    dataset = InMemory(
        sample(1, instance(1, (0, 0, 16, 16), 1), instance(2, (32, 0, 48, 16), 2)),
        sample(2, instance(3, (0, 0, 16, 16), 1)),
    )
    found = Detections({1: detected(((0, 0, 16, 16), 0.4, 1), ((32, 0, 48, 16), 0.8, 1))}, {"x": 2})
    task = OrientedTask(found, category_names={1: "plane"})
    result = run(dataset, task)
    metrics = result.metrics["oriented"]
    assert [one["score"] for one in result.records[0]["oriented"]["found"]] == [0.2, 0.4]
    # Class 1: a wrong one, then one of two objects; class 2: nothing.
    assert metrics["rotated_ap50/plane"] == pytest.approx(0.25)
    assert metrics["rotated_ap50/2"] == 0
    assert metrics["rotated_ap50"] == pytest.approx(0.125)
    assert metrics["rotated_ap50_agnostic"] == pytest.approx(2 / 3)
    assert [task.values(record["oriented"]) for record in result.records] == [{"1": 1, "2": 0}, {"3": 0}]
    assert metrics["rotated_miou"] == pytest.approx(1 / 3)
    assert result.skipped == {"detection: x": 2}
    assert task.options()["detections"] == found.digest
    both = evaluate(FillsBoxes(), tiny_processor(), dataset, tasks=[task, InstanceTask(found)])
    assert both.skipped == {"detection: x": 2}  # once, though two tasks ask
    nothing = run(dataset, OrientedTask(Detections({}))).metrics["oriented"]
    assert (nothing["rotated_ap"], nothing["rotated_miou"], nothing["boxes"]) == (0, 0, 0)


def test_predicted_ious_below_zero_and_empty_masks() -> None:
    dataset = InMemory(sample(1, instance(1, (0, 0, 16, 16))))
    (found,) = run(dataset, backend=FillsBoxes(-0.5)).records[0]["oriented"]["found"]
    assert (found["score"], found["predicted_iou"]) == (0, -0.5)
    result = run(dataset, backend=FillsBoxes(is_empty=True))
    assert result.records[0]["oriented"]["found"][0]["corners"] is None
    metrics = result.metrics["oriented"]
    assert (metrics["empty_masks"], metrics["rotated_miou"], metrics["rotated_ap50"]) == (1, 0, 0)
    with pytest.raises(ValueError, match="expected finite masks and predicted IoUs"):
        run(dataset, backend=FillsBoxes(math.nan))


def test_large_images_are_segmented_in_tiles(tmp_path: Path) -> None:
    lines = [
        "10 10 30 10 30 20 10 20 plane 0",
        "170 50 190 50 190 60 170 60 plane 0",
        "60 30 68 30 68 38 60 38 ship 0",  # across the border of the first tile
    ]
    make_dota(tmp_path, {"a": lines}, {"a": (64, 200)})
    backend = FillsBoxes()
    task = OrientedTask(tile=64, keep_masks=True)
    dataset = open_dataset(tmp_path)
    result = run(dataset, task, backend)
    assert len(backend.encoded) == 3
    record = result.records[0]["oriented"]
    # Tiles start at 0, 52, 104 and 136: the last object comes back whole from the second tile.
    assert [{tuple(c) for c in one["corners"]} for one in record["found"]] == [
        {(10, 10), (30, 10), (30, 20), (10, 20)},
        {(170, 50), (190, 50), (190, 60), (170, 60)},
        {(60, 30), (68, 30), (68, 38), (60, 38)},
    ]
    assert result.metrics["oriented"]["rotated_ap"] == 1
    for instance_, (key, counts) in zip(dataset[0].instances, task.masks(record).items(), strict=True):
        assert key == str(instance_.id)
        mask = decode_mask({"size": [64, 200], "counts": counts.encode()})
        np.testing.assert_array_equal(mask, instance_.mask())


def test_a_whole_image_is_encoded_once_for_all_tasks() -> None:
    backend = FillsBoxes()
    dataset = InMemory(sample(1, instance(1, (0, 0, 16, 16))))
    evaluate(backend, tiny_processor(), dataset, tasks=[PromptTask(), OrientedTask()])
    assert len(backend.encoded) == 1


def test_coco_polygons_keep_their_corners(tmp_path: Path) -> None:
    quadrilateral = [10.0, 20.0, 20.0, 10.0, 30.0, 20.0, 20.0, 30.0]
    parts = [[40.0, 0.0, 50.0, 0.0, 50.0, 5.0], [55.0, 0.0, 60.0, 0.0, 60.0, 5.0]]
    make_coco(
        tmp_path,
        [
            annotation(1, 1, (10, 10, 30, 30), segmentation=[quadrilateral]),
            annotation(2, 1, (40, 0, 60, 5), segmentation=parts),
            annotation(3, 1, (0, 0, 8, 8)),
        ],
    )
    one, two, three = CocoDataset(tmp_path / "images", tmp_path / "annotations.json")[0].instances
    assert one.corners == ((10, 20), (20, 10), (30, 20), (20, 30))
    assert two.corners is not None
    assert len(two.corners) == 6
    assert three.corners is None
    assert {tuple(c) for c in true_polygon(two)[0].tolist()} == {(40, 0), (60, 0), (60, 5), (40, 5)}


def test_unfinished_runs_go_on_and_other_options_do_not(tmp_path: Path) -> None:
    folder = make_coco(tmp_path / "data")
    dataset = open_dataset(folder)
    tasks = [OrientedTask(SimulatedDetections())]
    model = tiny_sam()
    whole = evaluate(model, None, dataset, tasks=tasks, resume_dir=tmp_path / "kept")
    again = evaluate(model, None, dataset, tasks=tasks, resume_dir=tmp_path / "kept")
    assert whole.to_json() == again.to_json()
    assert json.loads(whole.to_json())["tasks"]["oriented"]["options"]["detections"].startswith("simulated")
    for other in (OrientedTask(), OrientedTask(SimulatedDetections(seed=1))):
        with pytest.raises(ValueError, match="unfinished evaluation that differs in tasks"):
            evaluate(model, None, dataset, tasks=[other], resume_dir=tmp_path / "kept")


def test_images_without_detections_and_data_without_objects(tmp_path: Path) -> None:
    folder = make_coco(
        tmp_path, [annotation(1, 1, (0, 0, 8, 8)) | {"image_id": 99}, annotation(2, 1, (8, 8, 9, 30))]
    )
    (tmp_path / "found.json").write_text("[]")
    dataset = open_dataset(folder)
    result = run(dataset, OrientedTask(load_detections(tmp_path / "found.json", dataset)))
    assert result.skipped == {"unknown image id": 1}
    assert (result.metrics["oriented"]["objects"], result.metrics["oriented"]["rotated_ap"]) == (1, 0)
    empty = run(InMemory(sample(1))).metrics["oriented"]
    assert (empty["rotated_miou"], empty["rotated_ap50"], empty["objects"]) == (None, None, 0)


def test_a_tile_has_pixels() -> None:
    with pytest.raises(ValueError, match="tile: expected at least 1 px, got 0"):
        OrientedTask(tile=0)
