"""Search for the range of one attention operand that moves the attention's focus least (PCC, arXiv 2503.06515).

For an attention with logits L = Q K^T / sqrt(d) and A = softmax(L), the focus mask of query i in head n is

    M[n, i, j] = A[n, i, j] > theta * max_j A[n, i, :],

which equals L[n, i, j] > max_j L[n, i, :] + ln(theta): no softmax is needed. The focus deviation of a quantized
attention is the mean over prompts and heads of 1 - IoU(M, M^). Candidates for the range of a tensor are its symmetric
quantiles [q(1 - p), q(p)] for 29 values of p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from saqsam.models.family import DecoderAttention
from saqsam.models.structure import AttentionSite
from saqsam.quant.affine import AffineQuantizer, affine_parameters
from saqsam.recipes.specs import ClippingMeasure

# fmt: off
QUANTILES = (
    .85, .87, .88, .89, .90, .91, .92, .93, .94, .95, .96, .965, .97, .975, .98, .983, .985, .987, .989, .99, .993,
    .995, .997, .999, .9993, .9995, .9997, .9999, .99999,
)
# fmt: on
SEARCHED = ("query input", "key input", "query", "key")
"""Operands of an attention whose ranges are searched, in the order of the search; query and key side alternate."""


def searched_slots(site: AttentionSite) -> dict[str, str]:
    """Return the module name of the quantizer slot of each operand in `SEARCHED`."""
    slots = (
        f"{site.query}.input_quantizer",
        f"{site.key}.input_quantizer",
        f"{site.name}.query_quantizer",
        f"{site.name}.key_quantizer",
    )
    return dict(zip(SEARCHED, slots, strict=True))


AttentionInputs = tuple[Tensor, Tensor, Tensor]
"""Inputs of the query, key and value projections of an attention."""


class FocusSearch:
    """The focus of one attention on some images, and how far quantized operands move it.

    The projection of the operand that is not searched is computed once for all candidates.

    Args:
        attention: Attention with float projections; its slots are ignored.
        inputs: For each image the inputs of the query projection [P or 1, 1, Q, C], of the key projection
            [P or 1, 1, K, C] and of the value projection [P or 1, 1, K, C]; 1 where all prompts share them.
        theta: Threshold of the focus mask, as a fraction of the row's largest probability.
        measure: What candidates are compared by: the `focus`, or the attention's `output`.
    """

    def __init__(
        self,
        attention: DecoderAttention,
        inputs: Sequence[AttentionInputs],
        theta: float,
        measure: ClippingMeasure = "focus",
    ) -> None:
        self.attention, self.margin, self.measure = attention, math.log(theta), measure
        layers = attention.input_projections
        self.inputs = [
            tuple(layer.input_scale(tensor) for layer, tensor in zip(layers, tensors, strict=True))
            for tensors in inputs
        ]
        empty = {operand: nn.Identity() for operand in SEARCHED}
        sides = list(zip(self.side(0, empty), self.side(1, empty), strict=True))
        self.focus = [self._focus(query, key) for query, key in sides]
        if measure == "output":
            self.values = [self._heads(attention.input_projections[2], value) for _, _, value in self.inputs]
            self.outputs = [
                self._attend(query, key, value)
                for (query, key), value in zip(sides, self.values, strict=True)
            ]

    def side(self, index: int, quantizers: Mapping[str, nn.Module]) -> list[Tensor]:
        """Return the queries or keys of every image.

        Args:
            index: 0 for queries, 1 for keys.
            quantizers: Quantizers by operand.

        Returns:
            [P or 1, N, T, D] for each image.
        """
        return [
            self._output(index, self._project(index, i, quantizers), quantizers)
            for i in range(len(self.inputs))
        ]

    def deviation(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> float:
        """Return the focus deviation of queries and keys as from `side`, averaged over images."""
        total = 0.0
        for focus, query, key in zip(self.focus, queries, keys, strict=True):
            quantized = self._focus(query, key)
            intersection = (focus & quantized).sum((-2, -1))
            union = (focus | quantized).sum((-2, -1))
            total += float((1 - intersection / union).mean())
        return total / len(self.focus)

    def error(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> float:
        """Return the measure that candidates are compared by, averaged over images.

        It is the focus deviation, or the relative squared error of the attention's output.
        """
        if self.measure == "focus":
            return self.deviation(queries, keys)
        total = 0.0
        for output, query, key, value in zip(self.outputs, queries, keys, self.values, strict=True):
            error = (self._attend(query, key, value) - output).square().mean()
            total += float(error / output.square().mean().clamp_min(1e-30))
        return total / len(self.outputs)

    def candidates(
        self, index: int, operand: str, bits: int, *, symmetric: bool
    ) -> list[tuple[float, AffineQuantizer]]:
        """Return the candidates for a slot, widest first.

        Args:
            index: Side of the operand: 0 for queries, 1 for keys.
            operand: Operand whose range is searched, one of `SEARCHED`.
            bits: Bits of the quantizers.
            symmetric: Whether the zero point is fixed at the middle code.

        Returns:
            Quantile and quantizer of each candidate.
        """
        if operand.endswith("input"):
            tensors = [inputs[index] for inputs in self.inputs]
        else:
            tensors = self.side(index, {name: nn.Identity() for name in SEARCHED})
        values = np.concatenate([tensor.flatten().float().cpu().numpy() for tensor in tensors])
        quantiles = np.array(QUANTILES[::-1])
        low, high = np.quantile(values, np.stack([1 - quantiles, quantiles]))
        candidates = []
        for quantile, a, b in zip(quantiles.tolist(), low.tolist(), high.tolist(), strict=True):
            scale, zero_point = affine_parameters(torch.tensor(a), torch.tensor(b), bits, symmetric=symmetric)
            candidates.append((quantile, AffineQuantizer(bits, scale, zero_point).to(tensors[0].device)))
        return candidates

    def best(
        self,
        index: int,
        operand: str,
        candidates: Sequence[AffineQuantizer],
        quantizers: Mapping[str, nn.Module],
    ) -> int:
        """Return the index of the candidate with the least error; ties go to the first.

        Args:
            index: Side of the operand: 0 for queries, 1 for keys.
            operand: Operand whose range is searched, one of `SEARCHED`.
            candidates: Quantizers to try for the operand.
            quantizers: Quantizers of the other operands.
        """
        other = self.side(1 - index, quantizers)
        is_input = operand.endswith("input")
        images = range(len(self.inputs))
        projected = None if is_input else [self._project(index, i, quantizers) for i in images]
        errors = []
        for candidate in candidates:
            chosen = {**quantizers, operand: candidate}
            if projected is None:
                this = self.side(index, chosen)
            else:
                this = [self._output(index, tensor, chosen) for tensor in projected]
            errors.append(self.error(this, other) if index == 0 else self.error(other, this))
        return int(np.argmin(errors))

    def _project(self, index: int, image: int, quantizers: Mapping[str, nn.Module]) -> Tensor:
        layer = self.attention.input_projections[index]
        values = quantizers[SEARCHED[index]](self.inputs[image][index])
        return self._heads(layer, values)

    def _heads(self, layer: nn.Linear, values: Tensor) -> Tensor:
        """Return the projection [P or 1, N, T, D] of values that are scaled and quantized already."""
        projected = nn.functional.linear(values, layer.weight, layer.bias)
        return self.attention.split_heads(projected)

    def _output(self, index: int, projected: Tensor, quantizers: Mapping[str, nn.Module]) -> Tensor:
        quantized: Tensor = quantizers[SEARCHED[2 + index]](projected)
        return quantized

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attention's output [P, Q, C], projected, without the bias of the projection."""
        logits = (query @ key.transpose(-2, -1)) * self.attention.scaling
        attended = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return nn.functional.linear(attended, self.attention.output_projection.weight)

    def _focus(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the focus masks, bool [P, N, Q, K]."""
        logits: Tensor = (query @ key.transpose(-2, -1)) * self.attention.scaling
        return logits > logits.amax(-1, keepdim=True) + self.margin
