"""Balance queries and keys: give each head of a decoder attention a basis in which both are equally large.

The logits Q K^T of a head do not change if its queries are multiplied by any invertible matrix T, and its keys by the
transposed inverse of T. `equalization.py` uses diagonal T: one factor per channel. That is no help against outliers
along a direction that is oblique to the channels, as in SAM: every channel, and every row of the projection's weights,
has a share of them.

Here T is a balancing transformation, as in balanced model reduction (Moore, 1981): in the new basis, the second moments
of queries and keys are the same diagonal matrix. A direction in which queries are huge while keys hardly vary, which
attention does not see, becomes small in both. A Hadamard matrix (QuaRot, arXiv 2404.00456) then spreads what is left
evenly over the channels, because all of them share one grid. Both matrices are folded into the projections, so that the
model computes the same masks and nothing is added at run time.

Keys lose their mean first: it adds the same to all logits of a row, which the softmax ignores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.models.family import DecoderAttention, Features
from saqsam.models.structure import ModelStructure
from saqsam.ptq.calibration import run_image
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.utils import ranks
from saqsam.utils.progress import Progress

MAX_IMAGES = 8
"""Most images that moments are summed over."""
DAMPING = 1e-6
"""Added to the diagonal of second moments, relative to its mean: a dead direction must not make weights huge."""
MIN_BALANCE = 1e-12
"""Smallest product of the moments of query and key in a direction, relative to the largest."""


@dataclass(frozen=True)
class HeadMoments:
    """Sums over the tokens of all prompts, for N heads of d channels.

    Attributes:
        count: Number of tokens.
        total: Sum of the values, float64 [N, d].
        squares: Sum of outer products, float64 [N, d, d].
    """

    count: int
    total: Tensor
    squares: Tensor

    @classmethod
    def of(cls, heads: Tensor) -> HeadMoments:
        """Return the moments of values [B, N, T, d]."""
        values = heads.double().movedim(1, 0).flatten(1, 2)  # [N, B * T, d]
        return cls(values.shape[1], values.sum(1).cpu(), (values.mT @ values).cpu())

    def __add__(self, other: HeadMoments) -> HeadMoments:
        return HeadMoments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> Tensor:
        """Mean value, float64 [N, d]."""
        return self.total / self.count

    def second(self, *, centered: bool) -> Tensor:
        """Return the second moments, damped, float64 [N, d, d]; about the mean if `centered`."""
        moments = self.squares / self.count
        if centered:
            moments = moments - self.mean[:, :, None] * self.mean[:, None]
        scale = moments.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float32).tiny)
        return moments + DAMPING * scale[:, None, None] * torch.eye(moments.shape[-1], dtype=torch.float64)


@torch.inference_mode()
def observe_heads(
    model: SamModel,
    structure: ModelStructure,
    images: CalibrationImages,
    progress: Progress | None = None,
    *,
    features: dict[int, Features] | None = None,
) -> dict[str, HeadMoments]:
    """Return the moments of queries and keys in the decoder's attentions, by name of the projection.

    Several ranks share the images, at most `MAX_IMAGES`.

    Args:
        model: Prepared model with empty slots.
        structure: Structure of the model.
        images: Calibration images; evenly spaced ones are used.
        progress: Progress callback.
        features: Features of images by index, which need no run of the encoder; those of other images are added.
    """
    count = min(len(images), MAX_IMAGES)
    known = {} if features is None else features

    def observe(number: int) -> dict[str, HeadMoments]:
        return _observe(model, structure, images, number * len(images) // count, known)

    moments: dict[str, HeadMoments] = {}
    # Sums depend on the order, which is that of the images for any number of ranks.
    for by_name in ranks.shared_map(observe, count, "balancing heads", progress):
        for name, found in by_name.items():
            moments[name] = moments[name] + found if name in moments else found
    return moments


def _observe(
    model: SamModel,
    structure: ModelStructure,
    images: CalibrationImages,
    index: int,
    features: dict[int, Features],
) -> dict[str, HeadMoments]:
    """Return the moments on one image."""
    found: dict[str, HeadMoments] = {}

    def hook(name: str, attention: DecoderAttention) -> Any:
        def observe(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            found[name] = HeadMoments.of(attention.split_heads(output))

        return observe

    handles = []
    for site in structure.decoder_attentions:
        attention = cast(DecoderAttention, model.get_submodule(site.name))
        for name in (site.query, site.key):
            handles.append(model.get_submodule(name).register_forward_hook(hook(name, attention)))
    try:
        run_image(model, images, index, features)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def balance_heads(model: SamModel, structure: ModelStructure, moments: Mapping[str, HeadMoments]) -> None:
    """Balance queries and keys of the decoder's attentions in place; the model's output is unchanged.

    Args:
        model: Float model.
        structure: Structure of the model.
        moments: Moments of `observe_heads`.
    """
    for site in structure.decoder_attentions:
        queries, keys = moments[site.query], moments[site.key]
        query, key = (
            cast(nn.Linear, model.get_submodule(site.query)),
            cast(nn.Linear, model.get_submodule(site.key)),
        )
        key.bias.sub_(keys.mean.flatten().to(key.bias))
        for_query, for_key = balancing_matrices(queries.second(centered=False), keys.second(centered=True))
        _transform(query, for_query)
        _transform(key, for_key)


def balancing_matrices(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrices that give queries and keys the same second moments, evenly over the channels.

    Args:
        queries: Second moments of N heads, symmetric and positive definite, float64 [N, d, d].
        keys: Those of the keys.

    Returns:
        Matrices for queries and for keys, float64 [N, d, d]; one is the transposed inverse of the other.
    """
    root = torch.linalg.cholesky(queries)
    values, vectors = torch.linalg.eigh(root.mT @ keys @ root)
    values = torch.maximum(values, MIN_BALANCE * values[:, -1:])
    even = _even_rotation(queries.shape[-1])
    quarter = values.pow(0.25)[:, :, None]
    for_queries = even @ (quarter * (vectors.mT @ torch.linalg.inv(root)))
    for_keys = even @ ((vectors.mT @ root.mT) / quarter)
    return for_queries, for_keys


def _even_rotation(size: int) -> Tensor:
    """Return an orthogonal matrix, float64 [size, size], whose entries are about equally large."""
    # Imported late: scipy takes a while.
    from scipy.fft import dct
    from scipy.linalg import hadamard

    is_power_of_two = size & (size - 1) == 0
    matrix = hadamard(size) / size**0.5 if is_power_of_two else dct(np.eye(size), norm="ortho")
    return torch.as_tensor(matrix, dtype=torch.float64)


def _transform(layer: nn.Linear, matrices: Tensor) -> None:
    """Multiply the outputs of a layer, split into heads, by a matrix for each head, in place."""
    heads, size, _ = matrices.shape
    matrices = matrices.to(layer.weight.device)
    weight = matrices @ layer.weight.double().reshape(heads, size, -1)
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    layer.bias.copy_((matrices @ layer.bias.double().reshape(heads, size, 1)).flatten())
