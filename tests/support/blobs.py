"""A backend whose masks are known: discs around places on a raster, as a model that finds things would give them."""

import torch

from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from support.tiny_sam import GRID, IMAGE_SIZE

SIDE = 4 * GRID


class Blobs:
    """Three discs around the place of a raster nearest to a point; points near one place give the same masks.

    How steep their edges are and how high they are rated depends on the place and the disc. With flaws
    every disc has a hole of one logit in its middle and an island of one in a corner.
    """

    def __init__(self, raster: float = 13.0, *, flaws: bool = True) -> None:
        self.raster, self.flaws = raster, flaws
        self.encoded = 0

    def encode(self, pixel_values: torch.Tensor) -> Features:
        self.encoded += 1
        return Features(torch.zeros(1, 8, GRID, GRID))

    def decode(
        self, features: Features, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert prompts.points is not None
        assert multimask_output
        centers = (torch.arange(SIDE) + 0.5) * (IMAGE_SIZE / SIDE)
        places = (prompts.points[:, 0] / self.raster).floor()  # [P, 2]
        x, y = ((places + 0.5) * self.raster).unbind(1)
        away = torch.hypot(centers - x[:, None, None], centers[:, None] - y[:, None, None])
        radii = torch.tensor([5.0, 9.0, 14.0])
        kinds = places @ torch.tensor([3.0, 7.0])
        slopes = 0.4 + 5 * ((kinds[:, None] + torch.arange(3)) % 4)  # [P, 3]
        logits = slopes[:, :, None, None] * (radii[:, None, None] - away[:, None])
        if self.flaws:
            self._add_flaws(logits, away)
        rated = 0.5 + ((kinds[:, None] * 5 + torch.arange(3) * 3) % 11) / 22
        return logits.float(), rated.float()

    def _add_flaws(self, logits: torch.Tensor, away: torch.Tensor) -> None:
        middle = away[:, None] <= away.amin(dim=(1, 2), keepdim=True)[:, None]
        logits.copy_(torch.where(middle, -logits, logits))
        logits[:, :, 1, 1] = 0.5
