"""Clicks: what goes into the decoder at each, and what is recorded."""

import numpy as np
import torch

from saqsam.data.rle import encode_mask
from saqsam.data.types import Instance, Sample
from saqsam.evaluation import PromptTask, evaluate
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from support.tiny_sam import GRID, IMAGE_SIZE, tiny_processor

SIDE = 4 * GRID


class Paints:
    """Paints a square of 16 px at each click on an object, or wipes one, on the mask that it gets."""

    def __init__(self) -> None:
        self.calls: list[tuple[Prompts, bool]] = []

    def encode(self, pixel_values: torch.Tensor) -> Features:
        return Features(torch.zeros(1, 8, GRID, GRID))

    def decode(
        self, features: Features, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.append((prompts, multimask_output))
        assert prompts.points is not None
        assert prompts.labels is not None
        logits = (
            torch.full((len(prompts), SIDE, SIDE), -10.0)
            if prompts.mask_inputs is None
            else prompts.mask_inputs.clone()
        )
        logits = logits.reshape(len(prompts), SIDE, SIDE)
        centers = (torch.arange(SIDE) + 0.5) * (IMAGE_SIZE / SIDE)
        for row in range(len(prompts)):
            x, y = prompts.points[row, -1].tolist()
            near = ((centers[None] - x).abs() < 8) & ((centers[:, None] - y).abs() < 8)
            logits[row][near] = 10.0 if prompts.labels[row, -1] == 1 else -10.0
        count = 3 if multimask_output else 1
        own = torch.tensor([0.9, 0.1, 0.1])[:count].repeat(len(prompts), 1)
        masks = torch.stack([logits] + [torch.full_like(logits, -10.0)] * (count - 1), 1)
        return masks, own


def wide(number: int, x0: int, x1: int) -> Instance:
    mask = np.zeros((64, 64), dtype=bool)
    mask[24:40, x0:x1] = True
    return Instance(number, encode_mask(mask), (float(x0), 24.0, float(x1), 40.0), 1)


def test_each_click_mends_the_largest_error() -> None:
    backend = Paints()
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    samples = [Sample(1, "a.png", image, (wide(1, 0, 64), wide(2, 24, 40)))]

    class Data:
        name = "made"

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            return samples[index]

    result = evaluate(backend, tiny_processor(), Data(), tasks=[PromptTask("clicks", clicks=4)])
    long, short = result.records[0]["prompt"]["instances"]
    assert long["ious"] == sorted(long["ious"])
    assert long["ious"][0] < 0.4
    assert long["iou"] == long["ious"][-1] > 0.75
    assert short["ious"][0] > 0.7  # one square is the object; the clicks that follow must not undo it
    metrics = result.metrics["prompt"]
    for click in range(4):
        assert metrics[f"miou_{click + 1}"] == (long["ious"][click] + short["ious"][click]) / 2
    assert metrics["miou"] == metrics["miou_4"]
    assert [prompts.points.shape[1] for prompts, _ in backend.calls if prompts.points is not None] == [
        1,
        2,
        3,
        4,
    ]
    assert [multimask for _, multimask in backend.calls] == [True, False, False, False]
    assert backend.calls[0][0].mask_inputs is None
    assert all(prompts.mask_inputs is not None for prompts, _ in backend.calls[1:])
    first, second = (prompts.points for prompts, _ in backend.calls[:2])
    assert first is not None
    assert second is not None
    torch.testing.assert_close(second[:, :1], first)  # earlier clicks go in again
