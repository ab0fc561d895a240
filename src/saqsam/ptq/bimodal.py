"""Bimodal integration (BIG): fold the two peaks of the keys of token-to-image attention into one.

PTQ4SAM (arXiv 2405.03144): in these attentions, the channels of K cluster around two values of opposite sign, and one
uniform grid has to span both. With g the sign of each channel's mean,

    W_q <- g W_q,  b_q <- g b_q,  W_k <- g W_k,  b_k <- g b_k       (rows of the projections),

leaves Q K^T exactly unchanged, since g * g = 1, and moves all channels of K to one side.

Keys are bimodal if a Gaussian kernel density estimate of K at 128 points has at least two peaks, 32 or more points
apart, each at least 1 % high. Deviation: the estimate comes from the calibration histogram rather than from samples,
and heights are relative to the highest peak, so that the test does not depend on the scale of K.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import SamModel

from saqsam.convert.quantizer_kinds import Observer
from saqsam.models.structure import ModelStructure
from saqsam.quant.range_observers import ChannelHistogramObserver, HistogramObserver

POINTS = 128
"""Points of the density estimate."""
MIN_DISTANCE = 32
"""Smallest distance of two peaks, in points."""
MIN_HEIGHT = 0.01
"""Smallest height of a peak, relative to the highest."""


def find_signs(structure: ModelStructure, observers: Mapping[str, Observer]) -> dict[str, Tensor]:
    """Find the sign of each channel of every token-to-image attention.

    Args:
        structure: Structure of the model.
        observers: Observers by slot name; those of queries and keys of these attentions count by channel.

    Returns:
        +1 or -1, float32 [C], by name of the attention; all +1 where the keys have one peak.
    """
    signs_by_attention = {}
    for site in structure.attentions:
        keys = observers.get(f"{site.name}.key_quantizer")
        if isinstance(keys, ChannelHistogramObserver):
            means = keys.means()
            signs = torch.where(means < 0, -1.0, 1.0) if is_bimodal(keys.pooled()) else torch.ones(len(means))
            signs_by_attention[site.name] = signs
    return signs_by_attention


@torch.no_grad()
def integrate_bimodal(model: SamModel, structure: ModelStructure, signs: Mapping[str, Tensor]) -> None:
    """Multiply the channels of queries and keys by their signs; the model's output is unchanged.

    The weights get new storage, so that another model that shares the old one stays as it is.

    Args:
        model: Prepared model with float weights.
        structure: Structure of the model.
        signs: Signs from `find_signs`.
    """
    attentions = {site.name: site for site in structure.attentions}
    for name, sign in signs.items():
        for projection in (attentions[name].query, attentions[name].key):
            layer = model.get_submodule(projection)
            flip = sign.to(layer.weight)
            layer.weight.data = layer.weight * flip[:, None]
            layer.bias.data = layer.bias * flip


def merged_observers(observers: Mapping[str, Observer], signs: Mapping[str, Tensor]) -> dict[str, Observer]:
    """Return the observers as they would be had the model been calibrated after `integrate_bimodal`.

    Args:
        observers: Observers by slot name, of the model before.
        signs: Signs from `find_signs`.
    """
    merged = dict(observers)
    for name, sign in signs.items():
        for slot in (f"{name}.query_quantizer", f"{name}.key_quantizer"):
            observer = observers[slot]
            assert isinstance(observer, ChannelHistogramObserver)
            merged[slot] = observer.pooled(sign)
    return merged


def is_bimodal(observer: HistogramObserver) -> bool:
    """Return whether the density of the observed values has two separate peaks."""
    density = kernel_density(observer, POINTS)
    inner = density[1:-1]
    peaks = torch.nonzero((inner > density[:-2]) & (inner >= density[2:]))[:, 0] + 1
    peaks = peaks[density[peaks] >= MIN_HEIGHT * density.max()]
    # Highest first: a peak too close to a kept one is dropped.
    kept: list[int] = []
    for peak in peaks[density[peaks].argsort(descending=True, stable=True)].tolist():
        if all(abs(peak - other) >= MIN_DISTANCE for other in kept):
            kept.append(peak)
    return len(kept) >= 2


def kernel_density(observer: HistogramObserver, points: int) -> Tensor:
    """Return a Gaussian kernel density estimate, float64 [points], at evenly spaced points of the observed range.

    The bandwidth is Scott's, std * n**(-1/5), and at least half the distance of two points. Values are assumed to be
    spread evenly within a bin: with millions of them the kernel is narrower than a bin, and each bin would be a peak.
    """
    low, high, counts = observer.histogram()
    center, count = (low + high) / 2, counts.sum()
    mean = (center * counts).sum() / count
    std = ((center - mean).square() * counts).sum().div(count).sqrt()
    grid = torch.linspace(observer.low, observer.high, points, dtype=torch.float64)
    step = (observer.high - observer.low) / (points - 1)
    bandwidth = max(float(std * count ** (-0.2)), 0.5 * step, 1e-12)
    # In units of the bandwidth; a bin that holds a single value gets a small width.
    half = ((high - low) / (2 * bandwidth)).clamp_min(1e-3)
    distance = (grid[:, None] - center) / bandwidth
    inside = torch.special.ndtr(distance + half) - torch.special.ndtr(distance - half)
    density: Tensor = inside @ (counts / (2 * half)) / (count * bandwidth)
    return density
