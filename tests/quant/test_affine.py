"""Uniform affine quantization: the grid, its ends, and zero."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saqsam.quant.affine import (
    AffineQuantizer,
    affine_parameters,
    check_bits,
    dequantize_affine,
    quantize_affine,
)

examples = settings(max_examples=40, derandomize=True)
all_bits = st.integers(2, 8)
ends = st.floats(-1e6, 1e6, width=32)
EPS = torch.finfo(torch.float32).eps


def grid(low: float, high: float, bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return affine_parameters(torch.tensor(low), torch.tensor(high), bits, symmetric=symmetric)


def values_of(seed: int, low: float, high: float, count: int = 400) -> torch.Tensor:
    """Values within [low, high], with both ends, zero where it lies inside, and some beyond each end."""
    inside = torch.rand(count, generator=torch.Generator().manual_seed(seed)) * (high - low) + low
    return torch.cat([inside, torch.tensor([low, high])]).clamp(low, high)


@examples
@given(a=ends, b=ends, bits=all_bits, symmetric=st.booleans())
def test_zero_is_represented_exactly(a: float, b: float, bits: int, symmetric: bool) -> None:
    scale, zero_point = grid(min(a, b), max(a, b), bits, symmetric)
    assert scale.dtype == zero_point.dtype == torch.float32
    assert scale > 0
    assert zero_point == zero_point.round()
    assert 0 <= zero_point <= 2**bits - 1
    codes = quantize_affine(torch.zeros(3), scale, zero_point, bits)
    assert codes.eq(zero_point).all()
    assert torch.equal(dequantize_affine(codes, scale, zero_point), torch.zeros(3))
    assert torch.equal(AffineQuantizer(bits, scale, zero_point)(torch.zeros(3)), torch.zeros(3))


@examples
@given(a=ends, b=ends, bits=all_bits, symmetric=st.booleans(), seed=st.integers(0, 99))
def test_error_inside_the_range_is_half_a_step(
    a: float, b: float, bits: int, symmetric: bool, seed: int
) -> None:
    low, high = min(a, b), max(a, b)
    values = values_of(seed, low, high)
    scale, zero_point = grid(low, high, bits, symmetric)
    codes = quantize_affine(values, scale, zero_point, bits)
    assert codes.dtype == torch.uint8
    assert codes.shape == values.shape
    assert int(codes.max()) < 2**bits
    error = (dequantize_affine(codes, scale, zero_point) - values).double().abs()
    rounding = 4 * EPS * max(abs(low), abs(high))
    assert float(error.max()) <= float(scale) / 2 + rounding


@examples
@given(bits=all_bits, symmetric=st.booleans(), factor=st.floats(1, 1e6))
def test_values_outside_the_range_get_its_ends(bits: int, symmetric: bool, factor: float) -> None:
    scale, zero_point = grid(-1.5, 2.5, bits, symmetric)
    quantizer = AffineQuantizer(bits, scale, zero_point)
    low, high = quantizer.range
    far = torch.tensor([-1e3, 1e3]) * factor
    torch.testing.assert_close(quantizer(far), torch.tensor([low, high]))
    assert quantize_affine(far, scale, zero_point, bits).tolist() == [0, 2**bits - 1]


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_zero_point_is_the_middle_code_and_both_ends_fit(bits: int) -> None:
    for low, high in ((-1.0, 1.0), (-3.0, 0.5), (-0.5, 3.0), (0.0, 2.0), (-2.0, 0.0)):
        scale, zero_point = grid(low, high, bits, True)
        assert zero_point == 2 ** (bits - 1)
        reach_low, reach_high = AffineQuantizer(bits, scale, zero_point).range
        assert reach_low <= low * (1 - EPS)
        assert reach_high >= high * (1 - EPS)
        assert math.isclose(reach_low / reach_high, -(2 ** (bits - 1)) / (2 ** (bits - 1) - 1), rel_tol=1e-6)


def test_asymmetric_grid_spans_its_range_without_waste() -> None:
    scale, zero_point = grid(-1.0, 14.0, 4, False)
    assert (float(scale), float(zero_point)) == (1.0, 1.0)
    scale, zero_point = grid(3.0, 15.0, 4, False)  # widened to hold zero
    assert (float(scale), float(zero_point)) == (1.0, 0.0)
    scale, zero_point = grid(-15.0, -3.0, 4, False)
    assert (float(scale), float(zero_point)) == (1.0, 15.0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("width", [0.0, 1e-45, 1e-39])
def test_a_range_without_width_maps_to_zero(width: float, symmetric: bool) -> None:
    scale, zero_point = grid(0.0, width, 4, symmetric)
    assert scale == 1
    quantizer = AffineQuantizer(4, scale, zero_point)
    assert torch.equal(quantizer(torch.tensor([0.0, width])), torch.zeros(2))


def test_channels_are_independent() -> None:
    low, high = torch.tensor([-1.0, 0.0, -7.0]), torch.tensor([2.0, 5.0, 0.0])
    scale, zero_point = affine_parameters(low, high, 3, symmetric=False)
    assert scale.shape == zero_point.shape == (3,)
    for channel in range(3):
        alone = grid(float(low[channel]), float(high[channel]), 3, False)
        assert (scale[channel], zero_point[channel]) == alone


@examples
@given(a=ends, b=ends, bits=all_bits, symmetric=st.booleans(), seed=st.integers(0, 99))
def test_the_quantizer_agrees_with_quantize_then_dequantize(
    a: float, b: float, bits: int, symmetric: bool, seed: int
) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero_point = grid(low, high, bits, symmetric)
    values = values_of(seed, 1.5 * low - 1, 1.5 * high + 1)
    expected = dequantize_affine(quantize_affine(values, scale, zero_point, bits), scale, zero_point)
    found = AffineQuantizer(bits, scale, zero_point)(values)
    # One multiplies by the reciprocal, the other divides: they may part where a value lies between two codes.
    position = values.double() / scale.double()
    is_tie = ((position - position.floor()) - 0.5).abs() < 1e-6 * position.abs().clamp(min=1)
    assert torch.equal(found[~is_tie], expected[~is_tie])
    assert ((found - expected).abs() <= 1.001 * scale).all()


def test_the_quantizer_is_idempotent_and_has_2_to_the_b_values() -> None:
    values = torch.linspace(-3, 3, 5001)
    for bits in range(2, 9):
        quantizer = AffineQuantizer(bits, *grid(-2.0, 2.5, bits, False))
        once = quantizer(values)
        assert torch.equal(quantizer(once), once)
        assert len(once.unique()) == 2**bits


def test_buffers_of_the_quantizer_are_scalars_that_travel_with_it() -> None:
    quantizer = AffineQuantizer(5, torch.tensor([0.25]), torch.tensor([[7.0]]))
    state = quantizer.state_dict()
    assert {name: (t.dtype, tuple(t.shape)) for name, t in state.items()} == {
        "scale": (torch.float32, ()),
        "zero_point": (torch.int32, ()),
    }
    other = AffineQuantizer.empty(5)
    other.load_state_dict(state)
    values = torch.linspace(-9, 9, 50)
    assert torch.equal(other(values), quantizer(values))
    assert other.range == quantizer.range == (-1.75, 6.0)
    assert "bits=5" in repr(quantizer)


@pytest.mark.parametrize("bits", [1, 0, -4, 9, 16, 4.0, "4", None, True])
def test_bits_out_of_range_are_refused(bits: object) -> None:
    with pytest.raises(ValueError, match="bits must be an integer from 2 to 8, got"):
        check_bits(bits)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 2 to 8"):
        AffineQuantizer(bits, torch.ones(()), torch.zeros(()))  # type: ignore[arg-type]


def test_the_error_says_what_has_the_wrong_bits() -> None:
    assert check_bits(2) == 2
    assert check_bits(8) == 8
    with pytest.raises(ValueError, match=r"extra\.neck must be an integer"):
        check_bits(12, "extra.neck")
