"""Bimodal integration: the two peaks of the keys of token-to-image attention are folded into one.

PTQ4SAM (arXiv 2405.03144): in these attentions the channels of K sit around two values of opposite sign, which one
uniform grid has to span. With g the sign of each channel's mean,

    W_q <- g W_q,  b_q <- g b_q,  W_k <- g W_k,  b_k <- g b_k       (rows of the projections),

leaves Q K^T exactly as it was, since g * g = 1, and moves all channels of K to one side.

Whether there are two peaks is asked of a Gaussian kernel density estimate of K at 128 points: at least two peaks, 32 or
more points apart, each at least 1 % high. Deviation: the estimate is made from the calibration histogram rather than
from samples, and heights are relative to the highest peak, so that the test does not depend on the unit of K.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import SamModel

from saqsam.convert.prepare import Observer
from saqsam.models.family import ModelStructure
from saqsam.quant.range_observers import ChannelHistogramObserver, HistogramObserver

POINTS, APART, HEIGHT = 128, 32, 0.01


def find_signs(structure: ModelStructure, observers: Mapping[str, Observer]) -> dict[str, Tensor]:
    """The sign of each channel of every token-to-image attention.

    Args:
        structure: The model's structure.
        observers: What was seen, by slot name; queries and keys of these attentions by channel.

    Returns:
        +1 or -1, float32 [C], by name of the attention; all +1 where the keys have one peak.
    """
    found = {}
    for site in structure.attentions:
        keys = observers.get(f"{site.name}.key_quantizer")
        if isinstance(keys, ChannelHistogramObserver):
            means = keys.means()
            signs = torch.where(means < 0, -1.0, 1.0) if is_bimodal(keys.pooled()) else torch.ones(len(means))
            found[site.name] = signs
    return found


@torch.no_grad()
def integrate_bimodal(model: SamModel, signs: Mapping[str, Tensor]) -> None:
    """Multiply the channels of queries and keys by their signs, in place; the model computes the same as before.

    Args:
        model: Prepared model with float weights.
        signs: Of `find_signs`.
    """
    for name, sign in signs.items():
        for projection in ("q_proj", "k_proj"):
            layer = model.get_submodule(f"{name}.{projection}")
            flip = sign.to(layer.weight)
            layer.weight.mul_(flip[:, None])
            layer.bias.mul_(flip)


def merged_observers(observers: Mapping[str, Observer], signs: Mapping[str, Tensor]) -> dict[str, Observer]:
    """What the observers would have seen of the model after `integrate_bimodal`."""
    merged = dict(observers)
    for name, sign in signs.items():
        for slot in (f"{name}.query_quantizer", f"{name}.key_quantizer"):
            observer = observers[slot]
            assert isinstance(observer, ChannelHistogramObserver)
            merged[slot] = observer.pooled(sign)
    return merged


def is_bimodal(observer: HistogramObserver) -> bool:
    """Whether the density of what was seen has two separate peaks."""
    density = kernel_density(observer, POINTS)
    inner = density[1:-1]
    peaks = torch.nonzero((inner > density[:-2]) & (inner >= density[2:]))[:, 0] + 1
    peaks = peaks[density[peaks] >= HEIGHT * density.max()]
    # The highest stand; lower ones too near to a standing one fall.
    standing: list[int] = []
    for peak in peaks[density[peaks].argsort(descending=True, stable=True)].tolist():
        if all(abs(peak - other) >= APART for other in standing):
            standing.append(peak)
    return len(standing) >= 2


def kernel_density(observer: HistogramObserver, points: int) -> Tensor:
    """Gaussian kernel density estimate at evenly spaced points from the lowest to the highest value, float64 [points].

    The bandwidth is Scott's, std * n**(-1/5), at least half a step of the points. Within a bin the values are taken as
    spread evenly: with millions of them the kernel is narrower than a bin, and a bin at one point would be a peak.
    """
    low, high, counts = observer.histogram()
    center, count = (low + high) / 2, counts.sum()
    mean = (center * counts).sum() / count
    std = ((center - mean).square() * counts).sum().div(count).sqrt()
    grid = torch.linspace(observer.low, observer.high, points, dtype=torch.float64)
    step = (observer.high - observer.low) / (points - 1)
    bandwidth = max(float(std * count ** (-0.2)), 0.5 * step, 1e-12)
    # In units of the bandwidth; a bin that holds one value alone is given a little width.
    half = ((high - low) / (2 * bandwidth)).clamp_min(1e-3)
    distance = (grid[:, None] - center) / bandwidth
    inside = torch.special.ndtr(distance + half) - torch.special.ndtr(distance - half)
    density: Tensor = inside @ (counts / (2 * half)) / (count * bandwidth)
    return density
