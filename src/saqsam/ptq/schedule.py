"""Schedule of a reconstruction: which image and prompts each learning step sees, drawn before anything is captured.

All units follow the same schedule, each as far as its number of steps. Only what the schedule uses is captured: a quick
run sees a quarter of the prompts of its images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """Image and prompts of one learning step.

    Attributes:
        image: Index of the calibration image.
        prompts: Indices of its prompts, ascending, int64 [p].
    """

    image: int
    prompts: Tensor


def draw_schedule(prompt_counts: Sequence[int], steps: int, max_prompts: int, seed: int) -> list[Draw]:
    """Draw images and prompts for a number of steps.

    Every image is drawn once before any is drawn again, in a random order. The prompts of an image are drawn likewise,
    so that few steps see as many different ones as possible.

    Args:
        prompt_counts: Number of prompts of each image, at least 1.
        steps: Number of steps.
        max_prompts: Largest number of prompts per step.
        seed: Seed of the draws.

    Returns:
        One draw per step.
    """
    generator = torch.Generator().manual_seed(seed)
    images = _endless(len(prompt_counts), generator)
    prompts = [_endless(count, generator) for count in prompt_counts]
    schedule = []
    for _ in range(steps):
        image = next(images)
        # An epoch of the prompts may end within a step, so its last ones could repeat.
        wanted = min(max_prompts, prompt_counts[image])
        chosen: set[int] = set()
        while len(chosen) < wanted:
            chosen.add(next(prompts[image]))
        schedule.append(Draw(image, torch.tensor(sorted(chosen))))
    return schedule


def _endless(count: int, generator: torch.Generator) -> Iterator[int]:
    """Yield the numbers below `count` in a random order, again and again."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def used_prompts(schedule: Sequence[Draw], images: int) -> list[Tensor]:
    """Return the prompts of each image that a schedule uses, ascending, int64 [p]; p may be 0."""
    used: list[set[int]] = [set() for _ in range(images)]
    for draw in schedule:
        used[draw.image].update(draw.prompts.tolist())
    return [torch.tensor(sorted(prompts), dtype=torch.int64) for prompts in used]
