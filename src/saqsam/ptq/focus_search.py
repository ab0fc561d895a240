"""Search for the range of one attention operand that moves the attention's focus least (PCC, arXiv 2503.06515).

For an attention with logits L = Q K^T / sqrt(d) and A = softmax(L), the focus mask of query i in head n is

    M[n, i, j] = A[n, i, j] > theta * max_j A[n, i, :],

which equals L[n, i, j] > max_j L[n, i, :] + ln(theta): no softmax is needed. The focus deviation of a quantized
attention is the mean over prompts and heads of 1 - IoU(M, M^). Candidates for the range of a tensor are its symmetric
quantiles [q(1 - p), q(p)] for 29 values of p.

Deviations: where image tokens take part, the search goes from coarse to fine. It uses a fixed random sample of 256
queries of a prompt where there are more, which is where image tokens attend to the tokens of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from saqsam.models.family import DecoderAttention
from saqsam.models.structure import AttentionSite
from saqsam.quant.affine import AffineQuantizer, affine_parameters
from saqsam.quant.layers import without
from saqsam.quant.range_observers import HistogramObserver
from saqsam.quant.ranges import histogram_quantiles
from saqsam.recipes.specs import ClippingMeasure

# fmt: off
QUANTILES = (
    .85, .87, .88, .89, .90, .91, .92, .93, .94, .95, .96, .965, .97, .975, .98, .983, .985, .987, .989, .99, .993,
    .995, .997, .999, .9993, .9995, .9997, .9999, .99999,
)
# fmt: on
COARSE_STEP = 3
"""In attentions with image tokens, every third candidate is tried first, then those around the best."""
EXHAUSTIVE_TOKENS = 32
"""Most tokens of an attention for which every candidate is tried: it is cheap, and one token moves the focus a lot."""
MAX_QUERIES = 256
"""Most queries of a prompt that candidates are compared on."""
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


def _sample_queries(query: Tensor) -> Tensor:
    """Return at most `MAX_QUERIES` random rows of query inputs [P, 1, Q, C], the same for all prompts."""
    count = query.shape[2]
    if count <= MAX_QUERIES:
        return query
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MAX_QUERIES].sort().values
    return query[:, :, chosen.to(query.device)]


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
        self.constants = constants = [layer.scaled_constant() for layer in layers]
        if constants[0] is not None:
            constants[0] = _sample_queries(constants[0][None, None])
        # Quantizers read inputs without their constant parts.
        self.inputs = [
            tuple(
                without(layer.input_scale(tensor), constant)
                for layer, tensor, constant in zip(
                    layers, (_sample_queries(query), key, value), constants, strict=True
                )
            )
            for query, key, value in inputs
        ]
        empty = {operand: nn.Identity() for operand in SEARCHED}
        self.sides = self.side(0, empty), self.side(1, empty)
        self.focus = [self._focus(query, key) for query, key in zip(*self.sides, strict=True)]
        if measure == "output":
            # |W x| = |R x| for W = QR, and R has half the rows.
            self.output_weight = torch.linalg.qr(attention.output_projection.weight, mode="r").R
            self.values = [self._heads(2, value) for _, _, value in self.inputs]
            self.attended = [
                self._attend(query, key, value)
                for query, key, value in zip(*self.sides, self.values, strict=True)
            ]
            self.powers = [self._power(attended) for attended in self.attended]

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
        for attended, power, query, key, value in zip(
            self.attended, self.powers, queries, keys, self.values, strict=True
        ):
            error = self._power(self._attend(query, key, value).sub_(attended))
            total += float(error / power.clamp_min(1e-30))
        return total / len(self.attended)

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
        is_input = operand.endswith("input")
        tensors = [inputs[index] for inputs in self.inputs] if is_input else self.sides[index]
        observer = HistogramObserver()
        for tensor in tensors:
            observer(tensor)
        fractions = torch.tensor(QUANTILES[::-1], dtype=torch.float64)
        low, high = histogram_quantiles(observer, torch.cat([1 - fractions, fractions])).chunk(2)
        scales, zero_points = affine_parameters(low, high, bits, symmetric=symmetric)
        return [
            (quantile, AffineQuantizer(bits, scale, zero_point).to(tensors[0].device))
            for quantile, scale, zero_point in zip(QUANTILES[::-1], scales, zero_points, strict=True)
        ]

    def best(
        self,
        index: int,
        operand: str,
        candidates: Sequence[AffineQuantizer],
        quantizers: Mapping[str, nn.Module],
    ) -> int:
        """Return the index of the candidate with the least error, found from coarse to fine; ties go to the first.

        Args:
            index: Side of the operand: 0 for queries, 1 for keys.
            operand: Operand whose range is searched, one of `SEARCHED`.
            candidates: Quantizers to try for the operand, in the order of their range.
            quantizers: Quantizers of the other operands.
        """
        other = self.side(1 - index, quantizers)
        is_input = operand.endswith("input")
        images = range(len(self.inputs))
        projected = None if is_input else [self._project(index, i, quantizers) for i in images]

        def error(candidate: AffineQuantizer) -> float:
            chosen = {**quantizers, operand: candidate}
            if projected is None:
                this = self.side(index, chosen)
            else:
                this = [self._output(index, tensor, chosen) for tensor in projected]
            return self.error(this, other) if index == 0 else self.error(other, this)

        count = len(candidates)
        tokens = max(tensor.shape[2] for tensor in self.inputs[0])
        step = COARSE_STEP if tokens > EXHAUSTIVE_TOKENS else 1
        errors = {i: error(candidates[i]) for i in range(0, count, step)}
        coarse = min(sorted(errors), key=errors.__getitem__)
        for i in range(max(0, coarse - step + 1), min(count, coarse + step)):
            if i not in errors:
                errors[i] = error(candidates[i])
        return min(sorted(errors), key=errors.__getitem__)

    def _project(self, index: int, image: int, quantizers: Mapping[str, nn.Module]) -> Tensor:
        return self._heads(index, quantizers[SEARCHED[index]](self.inputs[image][index]))

    def _heads(self, index: int, values: Tensor) -> Tensor:
        """Return the projection [P or 1, N, T, D] of inputs that are scaled and quantized already."""
        layer, constant = self.attention.input_projections[index], self.constants[index]
        inputs = values if constant is None else values + constant
        projected = nn.functional.linear(inputs, layer.weight, layer.bias)
        return self.attention.split_heads(projected)

    def _output(self, index: int, projected: Tensor, quantizers: Mapping[str, nn.Module]) -> Tensor:
        quantized: Tensor = quantizers[SEARCHED[2 + index]](projected)
        return quantized

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attended values [P, Q, C], before the output projection."""
        logits = (query * self.attention.scaling) @ key.transpose(-2, -1)
        return (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)

    def _power(self, attended: Tensor) -> Tensor:
        """Return the mean square, [], of attended values [P, Q, C] after the output projection without bias."""
        return nn.functional.linear(attended, self.output_weight).square_().sum() / attended.numel()

    def _focus(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the focus masks, bool [P, N, Q, K]."""
        logits: Tensor = (query @ key.transpose(-2, -1)) * self.attention.scaling
        return logits > logits.amax(-1, keepdim=True) + self.margin
