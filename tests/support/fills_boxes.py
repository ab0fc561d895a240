"""A backend with known masks for tests: each mask fills its box prompt."""

import torch

from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from support.tiny_sam import GRID, IMAGE_SIZE

_SIDE = 4 * GRID


class FillsBoxes:
    """Fills each box; its predicted IoUs are given. Boxes at even coordinates of a 64 px input come back exactly.

    Args:
        own_iou: The predicted IoU of every mask.
        is_empty: Give empty masks instead.
    """

    def __init__(self, own_iou: float = 0.5, *, is_empty: bool = False) -> None:
        self.own_iou, self.is_empty = own_iou, is_empty
        self.encoded: list[torch.Tensor] = []

    def encode(self, pixel_values: torch.Tensor) -> Features:
        self.encoded.append(pixel_values)
        return Features(torch.zeros(1, 8, GRID, GRID))

    def decode(
        self, features: Features, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert prompts.boxes is not None
        assert not multimask_output
        centers = (torch.arange(_SIDE) + 0.5) * (IMAGE_SIZE / _SIDE)
        y, x = centers[:, None], centers[None, :]
        masks = [(x >= x0) & (x < x1) & (y >= y0) & (y < y1) for x0, y0, x1, y1 in prompts.boxes.tolist()]
        logits = torch.stack(masks)[:, None].float() * 20 - 10
        if self.is_empty:
            logits = logits * 0 - 10
        return logits, torch.full((len(prompts), 1), self.own_iou)
