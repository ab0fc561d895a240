"""Encoder attention computed in chunks of heads and rows of queries, with a backward pass that recomputes them.

A global attention of SAM-B at 1024 px has 2e8 logits. Quantization holds about five values per logit in memory,
learning eight. On a CPU, chunks that stay in the cache are also several times as fast.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.learned import RandomDrop
from saqsam.quant.logarithmic import GranularityObserver, LogQuantizer
from saqsam.quant.range_observers import HistogramObserver

MAX_CHUNK_LOGITS = {"cpu": 2**20, "cuda": 2**25}
"""Logits of an encoder attention that are computed at once, by type of device."""

CHUNKABLE = (nn.Identity, AffineQuantizer, LogQuantizer, RandomDrop, HistogramObserver, GranularityObserver)
"""Quantizers and observers that need not see all probabilities at once: they treat each by itself, or sample rows."""

Chunk = tuple[slice, slice]
"""Heads, and the queries of some rows of the grid."""
Operands = Sequence[Tensor]
"""Query, key, value, and with relative positions their logits by row and by column."""


class Average(Protocol):
    """A way to average values by quantized weights, made of steps that a backward pass can repeat."""

    def weights(self, logits: Tensor) -> Tensor:
        """Return the weights, float32 [M, Q, K], before they are quantized; `logits` may be overwritten."""

    def average(self, weights: Tensor, value: Tensor) -> Tensor:
        """Return the average [M, Q, D] of `value` [M, K, D] by quantized weights [M, Q, K]."""

    def logits_gradient(self, weights: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of the logits from that of `weights`, which may be overwritten."""


@dataclass(frozen=True)
class ChunkedAttention:
    """Attention computed chunk by chunk.

    Attributes:
        average: Average of the values.
        quantizer: Quantizer or observer of the weights, applied to each chunk.
        scale: Factor of the products of queries and keys.
        chunks: Chunks, as from `split_attention`.
    """

    average: Average
    quantizer: nn.Module
    scale: float
    chunks: Sequence[Chunk]

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, positions: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Attend.

        Args:
            query: [M, T, D] of M heads and T = h * w tokens.
            key: [M, T, D].
            value: [M, T, D].
            positions: Logits of relative positions by row [M, T, h] and by column [M, T, w].

        Returns:
            Output [M, T, D].
        """
        operands = (query, key, value, *(() if positions is None else positions))
        if not torch.is_grad_enabled():
            return self.output(operands)
        learned = [parameter for parameter in self.quantizer.parameters() if parameter.requires_grad]
        output: Tensor = _Recomputed.apply(self, len(operands), *operands, *learned)  # type: ignore[no-untyped-call]
        return output

    def output(self, operands: Operands) -> Tensor:
        """Return the output [M, T, D] without a graph."""
        output = torch.empty_like(operands[2])
        for chunk in self.chunks:
            query, key, value, *positions = _part(operands, chunk)
            weights = self._weights(query, key, positions).to(value.dtype)
            output[chunk] = self.average.average(self.quantizer(weights), value)
        return output

    def rows(
        self,
        heads: Tensor,
        queries: Tensor,
        query: Tensor,
        key: Tensor,
        positions: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Return some rows of the weights before they are quantized, [m, n, T].

        Args:
            heads: Heads, int64 [m].
            queries: Queries of each, int64 [m, n].
            query: As for `__call__`.
            key: As for `__call__`.
            positions: As for `__call__`.
        """
        chosen = heads[:, None], queries
        return self._weights(query[chosen], key[heads], [logits[chosen] for logits in positions or ()])

    def gradients(
        self, operands: Operands, output_gradient: Tensor, learned: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradients of the operands and of the quantizer's learned parameters.

        Args:
            operands: Operands of `__call__`.
            output_gradient: Gradient of the output, [M, T, D].
            learned: Parameters of the quantizer.
        """
        totals = [torch.zeros_like(operand) for operand in operands]
        learned_totals = [torch.zeros_like(parameter) for parameter in learned]
        for chunk in self.chunks:
            query, key, value, *positions = _part(operands, chunk)
            weights = self._weights(query, key, positions).to(value.dtype)
            with torch.enable_grad():
                leaves = [weights.detach().requires_grad_(True), value.detach().requires_grad_(True)]
                output = self.average.average(self.quantizer(leaves[0]), leaves[1])
            found = torch.autograd.grad(output, [*leaves, *learned], output_gradient[chunk])
            for total, gradient in zip(learned_totals, found[2:], strict=True):
                total += gradient
            gradient = self.average.logits_gradient(weights, found[0])
            query_total, key_total, value_total, *position_totals = _part(totals, chunk)
            query_total.copy_((gradient @ key).mul_(self.scale))
            key_total += gradient.transpose(1, 2) @ (query * self.scale)
            value_total += found[1]
            if positions:
                grid = _grid(gradient, positions)
                position_totals[0].copy_(grid.sum(-1))
                position_totals[1].copy_(grid.sum(-2))
        return totals, learned_totals

    def _weights(self, query: Tensor, key: Tensor, positions: Sequence[Tensor]) -> Tensor:
        """Return the weights, float32 [m, q, T], before they are quantized."""
        logits = ((query * self.scale) @ key.transpose(1, 2)).float()
        if positions:
            _grid(logits, positions).add_(positions[0][..., :, None]).add_(positions[1][..., None, :])
        return self.average.weights(logits)


def _part(operands: Operands, chunk: Chunk) -> list[Tensor]:
    """Return the part of the operands that a chunk reads: all keys and values of its heads."""
    query, key, value, *positions = operands
    heads, _ = chunk
    return [query[chunk], key[heads], value[heads], *(logits[chunk] for logits in positions)]


def _grid(values: Tensor, positions: Sequence[Tensor]) -> Tensor:
    """View values by key, [m, q, h * w], as [m, q, h, w]."""
    return values.view(*values.shape[:2], positions[0].shape[2], positions[1].shape[2])


class _Recomputed(torch.autograd.Function):
    """Output of all chunks, which are computed again in the backward pass with the same random draws.

    Autograd would hold the result of every step. Recomputing each chunk as a function of its own would add up gradients
    of all keys and values as often as there are chunks.
    """

    @staticmethod
    def forward(ctx: Any, attention: ChunkedAttention, operands: int, *tensors: Tensor) -> Tensor:
        ctx.attention, ctx.operands = attention, operands
        ctx.autocast = torch.is_autocast_enabled(tensors[0].device.type)
        generator = _generator(attention.quantizer)
        ctx.draws = None if generator is None else generator.get_state()
        ctx.save_for_backward(*tensors)
        return attention.output(tensors[:operands])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors: tuple[Tensor, ...] = ctx.saved_tensors
        attention: ChunkedAttention = ctx.attention
        operands, learned = tensors[: ctx.operands], tensors[ctx.operands :]
        device = grads[0].device.type
        autocast = torch.autocast(device, torch.get_autocast_dtype(device), enabled=ctx.autocast)
        with autocast, _draws(attention.quantizer, ctx.draws):
            gradients, learned_gradients = attention.gradients(operands, grads[0], learned)
        return None, None, *gradients, *learned_gradients


def _generator(quantizer: nn.Module) -> torch.Generator | None:
    """Return the generator of a quantizer's random draws, if it draws."""
    return quantizer.generator if isinstance(quantizer, RandomDrop) else None


@contextmanager
def _draws(quantizer: nn.Module, state: Tensor | None) -> Iterator[None]:
    """Repeat the draws that a quantizer made from a state of its generator, then put the generator back."""
    generator = _generator(quantizer)
    if generator is None or state is None:
        yield
        return
    now = generator.get_state()
    generator.set_state(state)
    try:
        yield
    finally:
        generator.set_state(now)


def max_chunk_logits(device: torch.device, *, is_fused: bool) -> int:
    """Return the most logits of a chunk on a device: all for fused attention on a GPU, which is fastest so."""
    if is_fused and device.type != "cpu":
        return sys.maxsize
    return MAX_CHUNK_LOGITS.get(device.type, MAX_CHUNK_LOGITS["cuda"])


def split_attention(heads: int, height: int, width: int, most: int) -> list[Chunk]:
    """Split an attention over a grid [h, w] into chunks of at most `most` logits.

    A chunk has at least one row of the grid of one head.
    """
    tokens = height * width
    if tokens**2 <= most:
        step = most // tokens**2
        return [(slice(head, head + step), slice(None)) for head in range(0, heads, step)]
    queries = max(1, most // (width * tokens)) * width
    return [
        (slice(head, head + 1), slice(start, start + queries))
        for head in range(heads)
        for start in range(0, tokens, queries)
    ]
