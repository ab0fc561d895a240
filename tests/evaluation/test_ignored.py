"""Pixels that count neither as object nor as background, in the tasks that ask for a mask of an object."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saqsam.data.detections import Detections, ImageDetections
from saqsam.data.open import open_dataset
from saqsam.data.rle import decode_mask, rle_from_text
from saqsam.data.types import Dataset
from saqsam.evaluation import InstanceTask, PromptTask, box_fill_iou, evaluate
from support.coco_folder import picture, rectangle
from support.fills_boxes import FillsBoxes
from support.tiny_sam import tiny_processor, tiny_sam

SIZE = (64, 64)
BOX = (8, 8, 40, 40)


def corner_ignored(folder: Path, value: int) -> Dataset:
    """One image with a square object, of which a corner of a quarter has the given value."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    values = rectangle(SIZE, BOX).astype(np.uint8)
    values[24:40, 24:40] = value
    Image.fromarray(picture(SIZE)).save(folder / "images" / "a.png")
    Image.fromarray(values).save(folder / "masks" / "a.png")
    return open_dataset(folder)


@pytest.mark.parametrize(("value", "iou"), [(255, 1.0), (0, 0.75)])
def test_a_filled_box(tmp_path: Path, value: int, iou: float) -> None:
    dataset = corner_ignored(tmp_path, value)
    assert dataset[0].instances[0].box == BOX
    assert box_fill_iou(dataset) == iou
    found = ImageDetections(np.array([BOX], dtype=np.float64), np.array([0.9]), np.array([1]))
    tasks = [PromptTask(), InstanceTask(Detections({1: found}))]
    result = evaluate(FillsBoxes(), tiny_processor(), dataset, tasks=tasks)
    assert result.metrics["prompt"]["miou"] == iou
    assert result.metrics["prompt"]["boundary_iou"] == (1.0 if value else pytest.approx(0.7, abs=0.1))
    # Of the ten thresholds 0.5 to 0.95, those up to 0.75 are met.
    assert result.metrics["instance"]["segm_ap"] == pytest.approx(1.0 if value else 0.6)


@pytest.mark.parametrize("prompt", ["point", "clicks"])
def test_masks_hold_no_ignored_pixel(tmp_path: Path, prompt: str) -> None:
    dataset = corner_ignored(tmp_path, 255)
    task = PromptTask(prompt, clicks=2, keep_masks=True)  # type: ignore[arg-type]
    result = evaluate(tiny_sam(), tiny_processor(), dataset, tasks=[task])
    (instance,) = result.records[0]["prompt"]["instances"]
    mask = decode_mask(rle_from_text(instance["mask"], SIZE))
    assert not mask[24:40, 24:40].any()
    truth = dataset[0].instances[0].mask()
    assert instance["iou"] == pytest.approx((mask & truth).sum() / (mask | truth).sum())
