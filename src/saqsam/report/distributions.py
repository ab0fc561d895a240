"""Distributions of activations in the float model beside the ranges of a checkpoint's quantizers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import SamModel

from saqsam.convert.plan import plan_quantization
from saqsam.convert.quantizer_kinds import Observer
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.range_observers import ChannelHistogramObserver, HistogramObserver
from saqsam.recipes.recipe import Recipe
from saqsam.report.content import Distribution

STEPS = 72
"""Number of histogram bins."""


def find_distributions(
    quantized: SamModel, recipe: Recipe, observers: Mapping[str, Observer]
) -> tuple[Distribution, ...]:
    """Return the distribution of each activation with a static uniform range, the largest share outside first.

    Inputs that a layer scales by channel are observed scaled, as they are quantized.

    Args:
        quantized: Model of the checkpoint.
        recipe: Recipe of the checkpoint.
        observers: Observers from `make_reference`.
    """
    distributions = []
    for slot in plan_quantization(quantized.config, recipe).slots:
        quantizer, observer = quantized.get_submodule(slot.name), observers.get(slot.name)
        if isinstance(observer, ChannelHistogramObserver):
            observer = observer.pooled()
        if not isinstance(quantizer, AffineQuantizer) or not isinstance(observer, HistogramObserver):
            continue
        if observer.is_empty:
            continue
        low, high = quantizer.range
        distributions.append(
            Distribution(
                slot.name,
                slot.part,
                slot.bits,
                (observer.low, observer.high),
                (low, high),
                share_outside(observer, *clipped_beyond((low, high), slot.bits)),
                tuple(equal_steps(observer, STEPS).tolist()),
            )
        )
    return tuple(sorted(distributions, key=lambda entry: -entry.outside))


def clipped_beyond(range: tuple[float, float], bits: int) -> tuple[float, float]:
    """Return a range extended by half a step on both sides: values up to there are rounded, not clipped."""
    half = (range[1] - range[0]) / (2**bits - 1) / 2
    return range[0] - half, range[1] + half


def cumulative(observer: HistogramObserver, points: torch.Tensor) -> torch.Tensor:
    """Return the share of values below each of `points`, float64 [K], with values spread evenly in each bin."""
    low, high, counts = observer.histogram()
    width = (high - low).clamp_min(1e-300)
    inside = ((points[:, None] - low) / width).clamp(0, 1)
    # A bin that holds one value alone lies below every point above it.
    inside = torch.where(high > low, inside, (points[:, None] > low).double())
    return (inside @ counts) / counts.sum()


def share_outside(observer: HistogramObserver, low: float, high: float) -> float:
    """Return the share of values outside [low, high]."""
    ends = cumulative(observer, torch.tensor([low, high], dtype=torch.float64))
    below, to_high = float(ends[0]), float(ends[1])
    # The largest value is not outside a range that ends with it.
    return max(0.0, below + (0.0 if high >= observer.high else 1 - to_high))


def equal_steps(observer: HistogramObserver, steps: int) -> torch.Tensor:
    """Return the share of values in each of equal steps from the smallest to the largest, float64 [steps]."""
    edges = torch.linspace(observer.low, observer.high, steps + 1, dtype=torch.float64)
    below = cumulative(observer, edges)
    below[0], below[-1] = 0, 1
    return below.diff()
