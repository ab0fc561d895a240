"""Closed-form compensation of quantization errors: a layer's weights make up for its own rounded inputs and weights.

A layer computes W x + b in floating point, and Q(W) x' + b' from quantized inputs x'. Two steps keep the two close, on
average over calibration inputs:

- *Correction* (ERQ, arXiv 2407.06794): before rounding, ridge regression finds the W' and b' that best predict W x + b
  from x'.
- *Compensated rounding* (GPTQ, arXiv 2210.17323): columns are rounded one after another, and the columns that are still
  float make up for the error so far.

`correct_queries` is the counterpart for the queries of an attention, whose error matters through the keys that they
meet (CAR-SAM, arXiv 2605.16901).

Nothing is added at run time: the results are the codes and biases of an ordinary layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COLUMNS = 128
"""Columns that are rounded before the columns after them are updated in one product."""


@dataclass(frozen=True)
class InputSums:
    """Sums over the inputs of a layer: float x and quantized x', K values each.

    Attributes:
        count: Number of inputs.
        floats: Sum of x, float64 [K].
        quantized: Sum of x', float64 [K].
        squares: Sum of the outer products x' x'^T, float64 [K, K].
        products: Sum of the outer products x x'^T, float64 [K, K].
    """

    count: int
    floats: Tensor
    quantized: Tensor
    squares: Tensor
    products: Tensor

    @classmethod
    def of(cls, floats: Tensor, quantized: Tensor) -> InputSums:
        """Return the sums over rows of float and quantized inputs, float32 [R, K] each."""
        return cls(
            len(floats),
            floats.double().sum(0).cpu(),
            quantized.double().sum(0).cpu(),
            (quantized.mT @ quantized).double().cpu(),
            (floats.mT @ quantized).double().cpu(),
        )

    def __add__(self, other: InputSums) -> InputSums:
        return InputSums(
            self.count + other.count,
            self.floats + other.floats,
            self.quantized + other.quantized,
            self.squares + other.squares,
            self.products + other.products,
        )

    def moments(self, *, centered: bool) -> tuple[Tensor, Tensor]:
        """Return the mean outer products of x' with itself and of x with x', float64 [K, K] each.

        Args:
            centered: Take them about the means: a bias accounts for these.
        """
        squares, products = self.squares / self.count, self.products / self.count
        if centered:
            mean = self.quantized / self.count
            squares = squares - torch.outer(mean, mean)
            products = products - torch.outer(self.floats / self.count, mean)
        return squares, products


def correct_weight(weight: Tensor, sums: InputSums, damping: float, *, centered: bool) -> Tensor:
    """Return the weight that best predicts the float outputs from quantized inputs, float64 [C, K].

    Args:
        weight: Float weight [C, K].
        sums: Sums over the inputs.
        damping: Penalty of changes, relative to the mean square of the inputs.
        centered: Whether the layer has a bias, which takes the means (`matching_bias`).
    """
    squares, products = sums.moments(centered=centered)
    weight = weight.double().cpu()
    ridge = _ridge(squares, damping)
    target = weight @ products + ridge * weight
    return _solve(squares + ridge * torch.eye(len(squares), dtype=torch.float64), target)


def matching_bias(bias: Tensor, weight: Tensor, rounded: Tensor, sums: InputSums) -> Tensor:
    """Return the bias with which rounded weights and quantized inputs give the mean of the float outputs, float64 [C].

    Args:
        bias: Float bias [C].
        weight: Float weight [C, K], for float inputs.
        rounded: Rounded weight [C, K], for quantized inputs.
        sums: Sums over the inputs.
    """
    floats, quantized = sums.floats / sums.count, sums.quantized / sums.count
    return bias.double().cpu() + weight.double().cpu() @ floats - rounded.double().cpu() @ quantized


def compensated_rounding(
    weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int, squares: Tensor, damping: float
) -> Tensor:
    """Return values whose nearest codes are those of compensated rounding, float32 [C, K].

    Columns with large inputs are rounded first, as published code does: their error can still be made up for.

    Args:
        weight: Weight [C, K].
        scale: Scale of each row, float32 [C].
        zero_point: Zero point of each row, [C].
        bits: 2 to 8.
        squares: Mean outer product of the layer's inputs, float64 [K, K].
        damping: Added to the diagonal, relative to its mean.
    """
    order = squares.diagonal().argsort(descending=True, stable=True)
    damped = squares[order][:, order] + _ridge(squares, damping) * torch.eye(
        len(squares), dtype=torch.float64
    )
    # The rows of the upper factor of the inverse say by how much each later column makes up for an error.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    values = weight.float().cpu()[:, order].clone()
    step, zero = scale.float().cpu(), zero_point.float().cpu()
    for start in range(0, values.shape[1], COLUMNS):
        stop = min(start + COLUMNS, values.shape[1])
        block, errors = values[:, start:stop], torch.empty(len(values), stop - start)
        for column in range(stop - start):
            row = factor[start + column]
            codes = (block[:, column] / step).round_().add_(zero).clamp_(0, 2**bits - 1)
            errors[:, column] = (block[:, column] - (codes - zero) * step) / row[start + column]
            block[:, column + 1 :] -= torch.outer(errors[:, column], row[start + column + 1 : stop])
        values[:, stop:] -= errors @ factor[start:stop, stop:]
    restored = torch.empty_like(values)
    restored[:, order] = values
    return restored


@dataclass(frozen=True)
class LogitSums:
    """Sums over the queries of an attention with N heads of d channels, whose logits are to match those in float.

    The inputs of the query projection are extended by a 1 for the bias.

    Attributes:
        count: Number of prompts.
        inputs: Sum of the outer products of the inputs, float64 [K + 1, K + 1].
        keys: Sum of the outer products of the quantized keys about their mean, float64 [N, d, d].
        errors: Sum of the outer products of inputs and logit errors, the latter times the keys, float64 [N, K + 1, d].
    """

    count: int
    inputs: Tensor
    keys: Tensor
    errors: Tensor

    @classmethod
    def of(cls, inputs: Tensor, keys: Tensor, missing: Tensor) -> LogitSums:
        """Return the sums over P prompts.

        The softmax ignores a constant in all logits of a query, so keys lose their mean.

        Args:
            inputs: Inputs of the query projection [P or 1, Q, K].
            keys: Quantized keys [P or 1, N, T, d].
            missing: Float logits less quantized ones, before they are scaled, [P, N, Q, T].
        """
        inputs, keys = inputs.expand(len(missing), -1, -1), keys.expand(len(missing), -1, -1, -1)
        extended = torch.cat([inputs, torch.ones_like(inputs[..., :1])], -1)
        keys = keys - keys.mean(2, keepdim=True)
        seen = missing @ keys  # [P, N, Q, d]; keys have no mean, so neither need the logits
        rows = extended.flatten(0, 1)
        return cls(
            len(keys),
            (rows.mT @ rows).double().cpu(),
            (keys.mT @ keys).double().sum(0).cpu(),
            torch.einsum("pqk,pnqd->nkd", extended, seen).double().cpu(),
        )

    def __add__(self, other: LogitSums) -> LogitSums:
        return LogitSums(
            self.count + other.count,
            self.inputs + other.inputs,
            self.keys + other.keys,
            self.errors + other.errors,
        )


def correct_queries(sums: LogitSums, damping: float) -> Tensor:
    """Return the change of a query projection that makes up for quantized inputs and keys, float64 [N * d, K + 1].

    The last column changes the bias. The change D of a head solves the Sylvester equation A D B + damping * D = E, by
    the eigenvectors of A and B. Both are sums over all prompts, an approximation: the exact equation couples them.

    Args:
        sums: Sums over the queries.
        damping: Penalty of changes, relative to the mean eigenvalues.
    """
    by_input, inputs = torch.linalg.eigh(sums.inputs)
    by_key, keys = torch.linalg.eigh(sums.keys)
    curvature = by_input[:, None] * by_key[:, None] / sums.count  # [N, K + 1, d]
    curvature = curvature + damping * curvature.mean((1, 2), keepdim=True)
    rotated = inputs.mT @ sums.errors @ keys
    change: Tensor = inputs @ (rotated / curvature.clamp_min(torch.finfo(torch.float32).tiny)) @ keys.mT
    return change.mT.flatten(0, 1)


def _ridge(squares: Tensor, damping: float) -> float:
    """Return `damping` times the mean of a diagonal, above 0."""
    return max(damping * float(squares.diagonal().mean()), torch.finfo(torch.float32).tiny)


def _solve(squares: Tensor, target: Tensor) -> Tensor:
    """Return X with X squares = target, for a symmetric positive definite matrix."""
    return torch.cholesky_solve(target.mT, torch.linalg.cholesky(squares)).mT
