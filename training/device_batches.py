"""Parts of a batch of samples on a device: placements, pasted objects, instances, their masks, and random numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

CROP = 96
"""Cells on each side of the grid over a visible object. They are half pixels, or larger if the object is."""

T = TypeVar("T", "Placement", "Paste", "Picks")


@dataclass(frozen=True)
class Placement:
    """Placement of n pictures in their windows.

    Attributes:
        image: int64 [n], the pictures.
        source: int64 [n], their sources.
        small: float [n], size in pixels up to which objects are preferred; 0 for no preference.
        matrix: float [n, 2, 3] from picture to window, in continuous coordinates: the first pixel spans 0 to 1.
        content: float [n, 2], (width, height) of the window that the picture covers.
    """

    image: Tensor
    source: Tensor
    small: Tensor
    matrix: Tensor
    content: Tensor


@dataclass(frozen=True)
class Paste:
    """Objects pasted over the first k of n windows.

    Attributes:
        active: bool [k], whether an object is pasted.
        image: int64 [k], the picture that it comes from.
        instance: int64 [k], the object.
        matrix: float [k, 2, 3] from that picture to the window.
        cover: float [k, FINE * S, FINE * S], its coverage of the window, 0 to 1; zeros where nothing is pasted.
    """

    active: Tensor
    image: Tensor
    instance: Tensor
    matrix: Tensor
    cover: Tensor


@dataclass(frozen=True)
class Picks:
    """The prompted instances of n windows: instance int64 [n, prompts], and whether it is the pasted one."""

    instance: Tensor
    pasted: Tensor


@dataclass(frozen=True)
class Objects:
    """P instances in each of n windows.

    Attributes:
        instance: int64 [n, P].
        pasted: bool [n, P], whether it is the pasted object of its window, which nothing hides.
        matrix: float [n, P, 2, 3] from its picture to the window.
        content: float [n, 2], (width, height) of the window that the picture covers.
        hidden: float [k, FINE * S, FINE * S], coverage of what is pasted over the first k windows.
    """

    instance: Tensor
    pasted: Tensor
    matrix: Tensor
    content: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class Crops:
    """Masks of objects on grids of their own.

    Attributes:
        cover: float [n, P, CROP, CROP], 0 to 1.
        low: float [n, P, 2], (x, y) of the grid's corner in window pixels.
        step: float [n, P, 1], side of its cells in window pixels.
    """

    cover: Tensor
    low: Tensor
    step: Tensor

    def centers(self) -> tuple[Tensor, Tensor]:
        """Return the x and the y of the cells' centers in window pixels, each float [n, P, CROP]."""
        steps = (torch.arange(CROP, device=self.low.device) + 0.5) * self.step
        return self.low[..., :1] + steps, self.low[..., 1:] + steps


class Draw:
    """Random numbers of one batch: the same seeds draw the same numbers on one type of device."""

    def __init__(self, device: torch.device, *seeds: int) -> None:
        self.device = device
        self.generator = torch.Generator(device)
        self.generator.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> 1))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw uniform floats."""
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard-normal floats."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def chance(self, share: float, *shape: int) -> Tensor:
        """Draw bools that are true with probability `share`."""
        return self.uniform(*shape) < share

    def index(self, count: Tensor) -> Tensor:
        """Draw an index below each count; 0 where the count is 0."""
        drawn = (self.uniform(*count.shape) * count).long()
        return torch.minimum(drawn, count - 1).clamp(min=0)


def rows_of(data: T, keep: Tensor) -> T:
    """Return the given rows of every field."""
    return type(data)(**{field.name: getattr(data, field.name)[keep] for field in fields(data)})


def repeat_usable(usable: Tensor, count: int) -> Tensor:
    """Return `count` indices of usable entries of the last dimension, in order.

    When they are exhausted, they are repeated from the last one backwards.
    """
    order = torch.argsort(usable.int(), dim=-1, descending=True, stable=True)
    number = usable.sum(-1, keepdim=True).clamp(min=1)
    turn = torch.arange(count, device=usable.device) % (2 * number)
    return order.gather(-1, torch.minimum(turn, 2 * number - 1 - turn))
