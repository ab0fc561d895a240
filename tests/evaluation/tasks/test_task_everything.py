"""Task `everything`: what is kept of an image, and figures that are known from records alone."""

from typing import Any

import numpy as np
import pycocotools.mask as rle_codec
import pytest
import torch

from saqsam.data.rle import encode_mask
from saqsam.data.types import Instance, Sample
from saqsam.evaluation import evaluate
from saqsam.evaluation.task import ImageSession
from saqsam.evaluation.tasks.everything import EverythingTask
from saqsam.inference.mask_generator import GeneratorOptions, MaskGenerator
from saqsam.inference.predictor import Predictor
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from support.blobs import Blobs
from support.coco_folder import picture
from support.tiny_sam import tiny_processor

OPTIONS = GeneratorOptions(9, 0.6, 0.5)
IMAGE = picture((110, 150))
SIZE = (100, 200)


def counts(x: int, y: int, width: int = 10, height: int = 10) -> str:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return encode_mask(mask)["counts"].decode()


def session(*instances: Instance, backend: Blobs | None = None) -> ImageSession:
    predictor = Predictor(backend or Blobs(), tiny_processor())
    return ImageSession(predictor, Sample(3, "3.png", IMAGE, instances))


def record(truth: list[Any], found: list[Any]) -> dict[str, Any]:
    return {"size": list(SIZE), "truth": truth, "found": found}


def test_masks_are_ranked_by_the_mean_of_rating_and_stability() -> None:
    masks = MaskGenerator(Predictor(Blobs(), tiny_processor()), OPTIONS).generate(IMAGE)
    found = EverythingTask(OPTIONS).score(session())["found"]
    assert len(found) == len(masks) > 5
    scores = [score for score, _ in found]
    assert scores == sorted(scores, reverse=True)
    expected = {one.rle["counts"].decode(): (one.predicted_iou + one.stability_score) / 2 for one in masks}
    assert {mask: score for score, mask in found} == expected


def test_objects_that_are_among_the_masks_are_recalled() -> None:
    masks = MaskGenerator(Predictor(Blobs(), tiny_processor()), OPTIONS).generate(IMAGE)
    objects = tuple(
        Instance(7 + k, one.rle, tuple(map(float, one.box)), k) for k, one in enumerate(masks[:3])
    )
    crowd = Instance(99, masks[4].rle, tuple(map(float, masks[4].box)), 1, is_crowd=True)
    backend = Blobs()
    task = EverythingTask(OPTIONS)
    scored = task.score(session(*objects, crowd, backend=backend))
    assert backend.encoded == 1
    assert task.values(scored) == {"7": 1.0, "8": 1.0, "9": 1.0}
    figures = task.reduce([scored])
    assert figures["ar1000"] == pytest.approx(1)
    assert figures["objects"] == 3
    assert figures["masks_per_image"] == len(masks)
    assert task.masks(scored) == {}


def test_recall_depends_on_how_many_masks_count() -> None:
    # 11 masks beside the object, 11 more and then the object, or 200 more.
    beside = [[0.9 - 0.001 * k, counts(100 + k % 80, 50)] for k in range(300)]
    task = EverythingTask()
    found = {n: [*beside[:n], [0.1, counts(0, 0)]] for n in (0, 11, 200)}
    truth = [[1, 0, counts(0, 0)]]
    expected = {0: (1, 1, 1), 11: (0, 1, 1), 200: (0, 0, 1)}
    for n, recalls in expected.items():
        figures = task.reduce([record(truth, found[n])])
        assert tuple(figures[f"ar{k}"] for k in (10, 100, 1000)) == pytest.approx(recalls)
    both = task.reduce([record(truth, found[0]), record(truth, found[200])])
    assert (both["ar10"], both["ar1000"], both["masks_per_image"]) == pytest.approx((0.5, 1, 101))


def test_recall_by_hand() -> None:
    # IoU 80/100: right at 0.50 to 0.80, seven of ten thresholds; the other object, of 40 x 40 pixels, not at all.
    truth = [[1, 0, counts(0, 0)], [2, 0, counts(50, 50, 40, 40)], [3, 1, counts(150, 0, 50, 50)]]
    found = [[0.5, counts(0, 0, 8)], [0.4, counts(160, 10)]]  # the second lies in the crowd
    task = EverythingTask()
    figures = task.reduce([record(truth, found)])
    assert figures["ar1000"] == figures["ar10"] == pytest.approx(0.35)
    assert figures["ar1000_small"] == pytest.approx(0.7)
    assert (figures["ar1000_medium"], figures["ar1000_large"]) == (0, None)
    # One detection that is right and one that does not count: precision 1 up to recall 1/2, of 101 points 51.
    assert figures["segm_ap50_agnostic"] == figures["segm_ap75_agnostic"] == pytest.approx(51 / 101)
    assert figures["segm_ap_agnostic"] == pytest.approx(0.7 * 51 / 101)
    assert task.values(record(truth, found)) == {"1": pytest.approx(0.8), "2": 0.0}


def test_nothing_to_find_and_nothing_found() -> None:
    task = EverythingTask()
    assert task.reduce([record([], [])])["ar1000"] is None
    assert task.reduce([])["masks_per_image"] is None
    empty = record([[4, 0, counts(0, 0)]], [])
    assert task.reduce([empty])["ar1000"] == 0
    assert task.values(empty) == {"4": 0.0}
    assert task.values(record([], [[0.5, counts(0, 0)]])) == {}


def test_outputs_that_are_not_finite_are_refused() -> None:
    class Broken(Blobs):
        def decode(
            self, features: Features, prompts: Prompts, multimask_output: bool
        ) -> tuple[torch.Tensor, torch.Tensor]:
            logits, rated = super().decode(features, prompts, multimask_output)
            return logits, rated * torch.inf

    with pytest.raises(ValueError, match="infinity"):
        EverythingTask(OPTIONS).score(session(backend=Broken()))


def test_in_an_evaluation() -> None:
    class One:
        name = "one"

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            mask = np.zeros(IMAGE.shape[:2], dtype=bool)
            mask[20:60, 20:60] = True
            return Sample(1, "1.png", IMAGE, (Instance(1, encode_mask(mask), (20, 20, 60, 60), 5),))

    task = EverythingTask(OPTIONS)
    result = evaluate(Blobs(), tiny_processor(), One(), tasks=[task])
    assert result.options["everything"]["points_per_side"] == 9
    assert result.metrics["everything"] == task.reduce([r["everything"] for r in result.records])
    found = result.records[0]["everything"]["found"]
    assert all(rle_codec.area({"size": [110, 150], "counts": c.encode()}) > 0 for _, c in found)
