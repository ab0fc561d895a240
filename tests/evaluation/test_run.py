"""`evaluate`: what is scored, how, and what is counted; with a backend whose masks are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import SamModel

from saqsam.data.coco import CocoDataset
from saqsam.data.detections import Detections, ImageDetections
from saqsam.data.images import ImageFolder
from saqsam.data.open import open_dataset
from saqsam.data.rle import encode_mask
from saqsam.data.types import Instance, Sample
from saqsam.evaluation.baseline import box_fill_iou
from saqsam.evaluation.results import Evaluation
from saqsam.evaluation.run import evaluate
from saqsam.evaluation.tasks.prompt import InstanceScore, instance_scores
from saqsam.inference.backend import Backend
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from support.coco_folder import annotation, make_coco
from support.tiny_sam import GRID, IMAGE_SIZE, tiny_processor, tiny_sam

SIDE = 4 * GRID


class FillsBoxes:
    """A backend whose masks are the box itself, or three squares of growing size around the first point."""

    def __init__(self, own_ious: tuple[float, ...] = (0.1, 0.9, 0.5)) -> None:
        self.own_ious = own_ious
        self.encoded = 0

    def encode(self, pixel_values: torch.Tensor) -> Features:
        self.encoded += 1
        return Features(torch.zeros(1, 8, GRID, GRID))

    def decode(
        self, features: Features, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        centers = (torch.arange(SIDE) + 0.5) * (IMAGE_SIZE / SIDE)
        y, x = centers[:, None], centers[None, :]
        masks = []
        for index in range(len(prompts)):
            if prompts.boxes is not None:
                x0, y0, x1, y1 = prompts.boxes[index].tolist()
                masks.append((x >= x0) & (x < x1) & (y >= y0) & (y < y1))
            else:
                assert prompts.points is not None
                px, py = prompts.points[index, 0].tolist()
                masks.extend((x - px).abs().maximum((y - py).abs()) < r for r in (4, 11, 40))
        count = 3 if multimask_output else 1
        logits = torch.stack(masks).reshape(len(prompts), count, SIDE, SIDE).float() * 20 - 10
        return logits, torch.tensor(self.own_ious[:count]).repeat(len(prompts), 1)


class InMemory:
    """Samples in a list."""

    name = "made"

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def instance(number: int, box: tuple[int, int, int, int], crowd: bool = False) -> Instance:
    mask = np.zeros((64, 64), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return Instance(number, encode_mask(mask), tuple(float(edge) for edge in box), 1, crowd)


def sample(image_id: int, *instances: Instance, **changes: Any) -> Sample:
    return Sample(image_id, f"{image_id}.png", np.zeros((64, 64, 3), dtype=np.uint8), instances, **changes)


def run(dataset: Any, backend: Backend | None = None, **options: Any) -> Evaluation:
    return evaluate(backend or FillsBoxes(), tiny_processor(), dataset, **options)


def test_box_prompts() -> None:
    dataset = InMemory([sample(4, instance(1, (8, 8, 24, 40)), instance(2, (32, 0, 64, 20))), sample(9)])
    result = run(dataset)
    assert result == run(dataset)
    assert (result.dataset, result.metrics["prompt"]["instances"], result.images) == ("made", 2, 2)
    assert [(score.image_id, score.instance_id) for score in instance_scores(result)] == [(4, 1), (4, 2)]
    # Rectangles that fill their boxes come back but for the rounding of their corners.
    assert all(score.iou > 0.98 for score in instance_scores(result))
    assert all(score.predicted_iou == pytest.approx(0.1) for score in instance_scores(result))
    assert result.metrics["prompt"]["miou"] == pytest.approx(
        np.mean([score.iou for score in instance_scores(result)])
    )
    assert result.skipped == {}
    assert result.options == {"prompt": {"prompt": "box", "min_area": 0, "masks": False}}
    assert list(result.metrics) == ["prompt"]


@pytest.mark.parametrize(("own_ious", "radius"), [((0.9, 0.1, 0.5), 4), ((0.1, 0.9, 0.5), 11)])
def test_point_prompts_take_the_mask_with_the_highest_predicted_iou(
    own_ious: tuple[float, ...], radius: int
) -> None:
    target = instance(1, (20, 20, 41, 41))  # its deepest pixel is (30, 30)
    result = run(InMemory([sample(1, target)]), FillsBoxes(own_ious), prompt="point")
    assert result.options["prompt"]["prompt"] == "point"
    (score,) = instance_scores(result)
    assert score.predicted_iou == pytest.approx(0.9)
    side = min(2 * radius, 22)
    assert score.iou == pytest.approx(min(side, 21) ** 2 / max(side, 21) ** 2, abs=0.03)


def test_every_instance_weighs_the_same() -> None:
    ring = np.zeros((64, 64), dtype=bool)
    ring[0:32, 0:32] = True
    ring[0:16, 0:16] = False
    notched = Instance(3, encode_mask(ring), (0.0, 0.0, 32.0, 32.0), 1)
    full = instance(1, (0, 0, 32, 32))
    dataset = InMemory([sample(1, full, full, full), sample(2, notched)])
    assert run(dataset).metrics["prompt"]["miou"] == pytest.approx((3 * 1 + 0.75) / 4, abs=0.01)
    assert box_fill_iou(dataset) == (3 * 1 + 0.75) / 4
    assert box_fill_iou(dataset, limit=1) == 1


def test_crowds_and_small_instances_are_no_prompts() -> None:
    small, large = instance(1, (0, 0, 4, 4)), instance(2, (10, 10, 50, 50))
    crowd = instance(3, (30, 30, 64, 64), crowd=True)
    dataset = InMemory([sample(1, small, large, crowd)])
    assert [score.instance_id for score in instance_scores(run(dataset))] == [1, 2]
    result = run(dataset, min_area=17)
    assert [score.instance_id for score in instance_scores(result)] == [2]
    assert result.skipped == {"mask below the minimum area": 1}
    assert run(dataset, min_area=16).metrics["prompt"]["instances"] == 2


def test_limit_progress_and_images_without_instances() -> None:
    backend = FillsBoxes()
    dataset = InMemory(
        [sample(1), sample(2, instance(1, (0, 0, 9, 9))), sample(3, instance(2, (0, 0, 9, 9)))]
    )
    calls: list[tuple[object, ...]] = []
    result = run(dataset, backend, limit=2, progress=lambda *step: calls.append(step))
    assert (result.images, result.metrics["prompt"]["instances"]) == (2, 1)
    assert calls == [("evaluating", done, 2) for done in range(3)]
    assert backend.encoded == 1  # nothing to do in the first image
    assert run(dataset, limit=99).images == 3


def test_more_instances_than_prompts_at_once() -> None:
    boxes = [(x, y, x + 8, y + 8) for x in range(0, 48, 8) for y in range(0, 48, 8)]
    dataset = InMemory([sample(1, *(instance(index, box) for index, box in enumerate(boxes)))])
    result = run(dataset)
    assert [score.instance_id for score in instance_scores(result)] == list(range(36))
    assert result.metrics["prompt"]["miou"] > 0.9


def test_skipped_counts_of_files(tmp_path: Path) -> None:
    box = (10, 5, 30, 25)
    make_coco(
        tmp_path, [annotation(1, 1, box), annotation(2, 1, box, segmentation=[]), annotation(3, 7, box)]
    )
    (tmp_path / "images" / "7.png").unlink()
    result = run(CocoDataset(tmp_path / "images", tmp_path / "annotations.json"))
    assert result.metrics["prompt"]["instances"] == 1
    assert result.skipped == {"missing image file": 1, "empty mask": 1}


def detections(**by_image: ImageDetections) -> Detections:
    return Detections({int(name[1:]): found for name, found in by_image.items()}, {"unknown image id": 3})


def test_detections_give_mask_ap() -> None:
    boxes = [(8, 8, 24, 40), (32, 0, 64, 20)]
    dataset = InMemory(
        [sample(4, *(instance(index, box) for index, box in enumerate(boxes))), sample(5), sample(6)]
    )
    found = detections(
        _4=ImageDetections(np.array(boxes, dtype=float), np.array([0.9, 0.8]), np.array([1, 2])),
        _6=ImageDetections(np.array([[0.0, 0, 9, 9]]), np.array([0.1]), np.array([1])),
    )
    result = run(dataset, detections=found)
    assert result.metrics["instance"]["segm_ap50"] == pytest.approx(0.5, abs=0.01)
    assert result.metrics["instance"]["segm_ap50_agnostic"] == pytest.approx(1)
    assert result.metrics["prompt"]["instances"] == 2
    assert result.skipped == {"detection: unknown image id": 3}
    assert result.metrics["prompt"]["miou"] == run(dataset).metrics["prompt"]["miou"]


def test_detection_scores_are_multiplied_by_the_predicted_iou() -> None:
    class Distrusts(FillsBoxes):
        """Gives boxes at the left edge a high estimate and all others a low or negative one."""

        def __init__(self, low: float) -> None:
            super().__init__()
            self.low = low

        def decode(
            self, features: Features, prompts: Prompts, multimask_output: bool
        ) -> tuple[torch.Tensor, torch.Tensor]:
            logits, _ = super().decode(features, prompts, multimask_output)
            assert prompts.boxes is not None
            return logits, torch.where(prompts.boxes[:, :1] < 1, 0.9, self.low)

    truth = sample(1, instance(1, (0, 0, 32, 32)))
    found = detections(
        _1=ImageDetections(
            np.array([[0.0, 0, 32, 32], [40, 40, 60, 60]]), np.array([0.3, 0.6]), np.array([1, 1])
        )
    )

    def ap(low: float) -> float | None:
        return run(InMemory([truth]), Distrusts(low), detections=found).metrics["instance"]["segm_ap50"]

    assert ap(0.9) == pytest.approx(0.5)  # 0.27 for the right box, 0.54 for the wrong one
    assert ap(0.4) == pytest.approx(1)  # 0.27 and 0.24
    assert ap(-5.0) == pytest.approx(1)  # 0.27 and 0


def test_detections_from_a_file(tmp_path: Path) -> None:
    make_coco(tmp_path)
    path = tmp_path / "found.json"
    entries = [
        {"image_id": 1, "category_id": 3, "bbox": [10, 5, 20, 20], "score": 0.9},
        {"image_id": 99, "category_id": 3, "bbox": [10, 5, 20, 20], "score": 0.9},
    ]
    path.write_text(json.dumps(entries))
    result = run(open_dataset(tmp_path), detections=path)
    assert result.metrics["instance"]["segm_ap"] is not None
    assert result.skipped == {"detection: unknown image id": 1}


def test_json_holds_the_figures() -> None:
    dataset = InMemory([sample(4, instance(1, (8, 8, 24, 40)))])
    box = ImageDetections(np.array([[8.0, 8, 24, 40]]), np.array([0.9]), np.array([1]))
    result = run(dataset, detections=detections(_4=box))
    content = json.loads(result.to_json())
    assert content == result.to_dict()
    assert content["tasks"]["prompt"]["metrics"]["miou"] == result.metrics["prompt"]["miou"]
    assert content["images"] == 1
    assert content["tasks"]["instance"]["metrics"]["segm_ap50"] == pytest.approx(1)
    assert content["tasks"]["instance"]["metrics"]["segm_ap_large"] is None
    (record,) = content["records"]
    assert (record["image_id"], record["file_name"]) == (4, "4.png")
    (found,) = record["prompt"]["instances"]
    assert InstanceScore(4, 1, found["iou"], found["predicted_iou"]) == instance_scores(result)[0]
    assert "instance" not in json.loads(run(dataset).to_json())["tasks"]


def test_wrong_use(tmp_path: Path) -> None:
    dataset = InMemory([sample(1, instance(1, (8, 8, 24, 40)))])
    with pytest.raises(ValueError, match="expected box, point or clicks, got 'mask'"):
        run(dataset, prompt="mask")
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        run(dataset, limit=0)
    with pytest.raises(ValueError, match="data 'made': expected instances to score, found none in 1 image"):
        run(InMemory([sample(1)]))
    make_coco(tmp_path)
    with pytest.raises(ValueError, match="data 'images': expected instances"):
        run(ImageFolder(tmp_path / "images"))
    with pytest.raises(ValueError, match="COCO format or DOTA's"):
        run(dataset, detections=tmp_path / "found.json")


def test_models_that_answer_nan_are_reported() -> None:
    dataset = InMemory([sample(1, instance(1, (8, 8, 24, 40)))])
    with pytest.raises(ValueError, match="expected finite masks"):
        run(dataset, FillsBoxes((float("nan"),)))


@pytest.fixture(scope="module")
def model() -> SamModel:
    return tiny_sam(seed=1)


@pytest.mark.parametrize("prompt", ["box", "point"])
def test_a_real_model_twice(model: SamModel, prompt: str, tmp_path: Path) -> None:
    dataset = open_dataset(make_coco(tmp_path))
    model.train()
    first = evaluate(model, tiny_processor(), dataset, prompt=prompt)
    assert model.training
    second = evaluate(model.eval(), None, dataset, prompt=prompt)
    assert not model.training
    assert first == second
    assert first.metrics["prompt"]["instances"] == 3
    assert all(0 <= score.iou <= 1 for score in instance_scores(first))
    assert len(instance_scores(first)) == len({score.instance_id for score in instance_scores(first)})


def test_masks_are_compared_at_the_original_resolution() -> None:
    # 512 px are seen as 64 and answered as 32; a single pixel of the truth still counts.
    mask = np.zeros((512, 512), dtype=bool)
    mask[100:300, 200:400] = True
    notched = mask.copy()
    notched[200, 300] = False
    image = np.zeros((512, 512, 3), dtype=np.uint8)
    box = (200.0, 100.0, 400.0, 300.0)
    instances = tuple(
        Instance(index, encode_mask(truth), box, 1) for index, truth in enumerate((mask, notched))
    )
    whole, less = (
        score.iou for score in instance_scores(run(InMemory([Sample(1, "a.png", image, instances)])))
    )
    union = round(1 / (whole - less))
    assert whole - less == pytest.approx(1 / union, abs=1e-12)
    assert whole > 0.9
    assert union > 200 * 200 * 0.99


FILLED = {"coco_val": (0.589, 0.595), "nuclei_val": (0.744, 0.741), "aerial_val": (0.454, 0.472)}


@pytest.mark.parametrize("name", FILLED)
def test_filling_the_box_on_real_data(shared_data: Path, name: str) -> None:
    """The figures that the data's own README gives for its first 50 images, and those for all of it."""
    first, whole = FILLED[name]
    dataset = open_dataset(shared_data / name)
    assert box_fill_iou(dataset, limit=50, min_area=64) == pytest.approx(first, abs=6e-4)
    assert box_fill_iou(dataset, min_area=64) == pytest.approx(whole, abs=6e-4)
