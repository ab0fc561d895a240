"""Learned rounding: starts at the float weight, ends on the grid, and beats rounding to nearest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saqsam.quant.affine import affine_parameters, dequantize_affine, quantize_affine
from saqsam.quant.rounding import LearnedRounding

examples = settings(max_examples=40, derandomize=True)
all_bits = st.integers(2, 8)


def weight_of(seed: int, rows: int = 6, columns: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 1, rows)[:, None]


def start(
    weight: Tensor, bits: int, symmetric: bool = False, share: float = 1.0
) -> tuple[LearnedRounding, Tensor, Tensor]:
    """Rounding on a grid for each row that spans a share of its range, with scale and zero point [C, 1]."""
    low, high = share * weight.amin(1), share * weight.amax(1)
    scale, zero_point = (t[:, None] for t in affine_parameters(low, high, bits, symmetric=symmetric))
    return LearnedRounding(weight, scale, zero_point, bits), scale, zero_point


def is_tie(weight: Tensor, scale: Tensor) -> Tensor:
    """Where a weight lies so near to the middle of two codes that either is right."""
    position = weight.double() / scale
    return ((position - position.floor()) - 0.5).abs() < 1e-3


@examples
@given(bits=all_bits, symmetric=st.booleans(), seed=st.integers(0, 99), share=st.floats(0.2, 1))
def test_it_starts_at_the_float_weight_within_the_grid(
    bits: int, symmetric: bool, seed: int, share: float
) -> None:
    weight = weight_of(seed)
    rounding, scale, zero_point = start(weight, bits, symmetric, share)
    low, high = -zero_point * scale, (2**bits - 1 - zero_point) * scale
    clipped = torch.minimum(torch.maximum(weight, low), high)
    found = rounding(torch.full_like(weight, float("nan")))  # the argument is not read
    # What lies on a code starts a thousandth of a step beside it: there h would have no gradient.
    assert ((found - clipped).abs() <= 1.1e-3 * scale).all()
    assert ((rounding.soft_rounding() > 0) & (rounding.soft_rounding() < 1)).all()


@examples
@given(bits=all_bits, symmetric=st.booleans(), seed=st.integers(0, 99), share=st.floats(0.2, 1))
def test_its_first_codes_are_those_of_rounding_to_nearest(
    bits: int, symmetric: bool, seed: int, share: float
) -> None:
    weight = weight_of(seed)
    rounding, scale, zero_point = start(weight, bits, symmetric, share)
    nearest, codes = quantize_affine(weight, scale, zero_point, bits), rounding.codes()
    assert codes.dtype == torch.uint8
    assert torch.equal(codes[~is_tie(weight, scale)], nearest[~is_tie(weight, scale)])


@examples
@given(bits=all_bits, seed=st.integers(0, 99), share=st.floats(0.2, 1), noise=st.floats(0, 20))
def test_whatever_is_learned_codes_are_neighbors_of_the_weight(
    bits: int, seed: int, share: float, noise: float
) -> None:
    weight = weight_of(seed)
    rounding, scale, zero_point = start(weight, bits, share=share)
    with torch.no_grad():
        moves = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + 1))
        rounding.variable.add_(noise * moves)
    floor = torch.floor(weight / scale) + zero_point
    low, high = floor.clamp(0, 2**bits - 1), (floor + 1).clamp(0, 2**bits - 1)
    codes = rounding.codes().float()
    assert ((codes == low) | (codes == high)).all()
    # The soft weight lies between the same two, and the code is the one that it is nearer to.
    soft = rounding(weight) / scale + zero_point
    assert ((soft >= low - 1e-3) & (soft <= high + 1e-3)).all()
    assert ((soft - codes).abs() <= 0.5 + 1e-3).all()


@examples
@given(seed=st.integers(0, 99), beta=st.floats(2, 20))
def test_the_regularizer_is_zero_on_the_grid_alone(seed: int, beta: float) -> None:
    rounding, scale, zero_point = start(weight_of(seed), 4)
    assert float(rounding.regularizer(beta).detach()) > 0
    codes = rounding.codes()
    with torch.no_grad():
        rounding.variable.copy_(torch.where(rounding.soft_rounding() >= 0.5, 9.0, -9.0))
    assert float(rounding.regularizer(beta).detach()) == 0
    assert torch.equal(rounding.codes(), codes)
    assert torch.equal(rounding(codes), dequantize_affine(codes, scale, zero_point))
    with torch.no_grad():
        rounding.variable[0, 0] = 1.0
    assert float(rounding.regularizer(beta).detach()) > 0


@pytest.mark.parametrize("beta", [2.0, 5.0, 20.0])
def test_the_regularizer_pushes_each_weight_to_its_nearer_code(beta: float) -> None:
    rounding, _, _ = start(weight_of(0), 4)
    with torch.no_grad():
        rounding.variable.copy_(torch.linspace(-2.3, 2.3, 60).reshape(6, 10))
    (gradient,) = torch.autograd.grad(rounding.regularizer(beta), rounding.variable)
    # A step goes against the gradient.
    assert torch.equal(-gradient.sign(), rounding.variable.detach().sign())
    if beta > 2:
        # The greater beta, the less is asked of those in the middle.
        middle, edge = gradient[2, 9].abs(), gradient[5, 7].abs()
        assert middle < edge


def test_gradients_reach_the_variable_through_the_grid() -> None:
    weight = weight_of(3)
    rounding, scale, _ = start(weight, 3, share=0.5)
    (gradient,) = torch.autograd.grad(rounding(weight).sum(), rounding.variable)
    outside = (weight > 1.01 * 0.5 * weight.amax(1, keepdim=True) + scale) | (
        weight < 1.01 * 0.5 * weight.amin(1, keepdim=True) - scale
    )
    assert outside.any()
    assert not gradient[outside].any()
    step = 1e-3
    with torch.no_grad():
        before = rounding(weight)
        rounding.variable.add_(step)
        slope = (rounding(weight) - before) / step
    torch.testing.assert_close(slope / scale, gradient / scale, atol=2e-3, rtol=0)


def learn(rounding: LearnedRounding, inputs: Tensor, weight: Tensor, steps: int = 400) -> None:
    optimizer = torch.optim.Adam(rounding.parameters(), lr=0.05)
    target = inputs @ weight.T
    for step in range(steps):
        loss = (inputs @ rounding(weight).T - target).square().mean()
        if step > 0.2 * steps:
            loss = loss + 0.03 * rounding.regularizer(2 + 18 * (1 - step / steps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("seed", range(3))
def test_learning_beats_rounding_to_nearest(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 24, generator=generator)
    # Inputs that are correlated, as activations are: errors of one weight can make up for those of another.
    inputs = torch.randn(200, 6, generator=generator) @ torch.randn(6, 24, generator=generator) / 6**0.5
    rounding, scale, zero_point = start(weight, 3)

    def error(codes: Tensor) -> float:
        return float((inputs @ (dequantize_affine(codes, scale, zero_point) - weight).T).square().mean())

    nearest = quantize_affine(weight, scale, zero_point, 3)
    learn(rounding, inputs, weight)
    assert error(rounding.codes()) < 0.3 * error(nearest)
    # Little is left to decide at the end.
    share = rounding.soft_rounding()
    assert ((share < 0.05) | (share > 0.95)).float().mean() > 0.9


def test_only_the_variable_is_learned() -> None:
    rounding, scale, zero_point = start(weight_of(0), 4)
    assert [name for name, _ in rounding.named_parameters()] == ["variable"]
    assert set(dict(rounding.named_buffers())) == {"below", "scale", "zero_point"}
    assert torch.equal(rounding.scale, scale)
    assert torch.equal(rounding.zero_point, zero_point)
    assert rounding.scale.data_ptr() != scale.data_ptr()
    with pytest.raises(ValueError, match="from 2 to 8, got 1"):
        LearnedRounding(torch.ones(1, 1), scale[:1], zero_point[:1], 1)


def test_hard_rounding_is_there_for_a_while() -> None:
    weight = weight_of(3)
    rounding, scale, zero_point = start(weight, 4)
    soft = rounding(weight).detach().clone()
    with rounding.hard():
        expected = dequantize_affine(rounding.codes(), scale, zero_point)
        torch.testing.assert_close(rounding(weight), expected, rtol=0, atol=1e-6)
        assert rounding.regularizer(2.0) == 0
    assert torch.equal(rounding(weight), soft)
    assert rounding.variable.requires_grad
