"""Ranges: that the closed forms are right, and that the search finds what a dense one finds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saqsam.quant import ranges
from saqsam.quant.affine import affine_parameters, dequantize_affine, quantize_affine
from saqsam.quant.range_observers import HistogramObserver
from saqsam.quant.ranges import (
    RANGE_METHODS,
    RangeMethod,
    activation_parameters,
    histogram_error,
    weight_parameters,
)

examples = settings(max_examples=30, derandomize=True)
POWER = 2.4
COUNT = 8000


def _gaussian(generator: torch.Generator) -> Tensor:
    return torch.randn(COUNT, generator=generator)


def _heavy(generator: torch.Generator) -> Tensor:
    """What queries and keys of SAM's decoder look like: a narrow bulk and outliers of 170."""
    bulk = torch.randn(COUNT, generator=generator) / (0.1 + torch.rand(COUNT, generator=generator))
    return torch.cat([bulk, torch.tensor([170.0, -167.0])])


SHAPES = {
    "gaussian": _gaussian,
    "uniform": lambda g: torch.rand(COUNT, generator=g) * 3 - 1,
    "one-sided": lambda g: torch.randn(COUNT, generator=g).relu(),
    "gelu": lambda g: torch.nn.functional.gelu(2 * torch.randn(COUNT, generator=g)),
    "heavy": _heavy,
    "far from zero": lambda g: torch.randn(COUNT, generator=g) + 20,
    "two peaks": lambda g: torch.randn(COUNT, generator=g) + 8 * torch.randn(COUNT, generator=g).sign(),
    "probabilities": lambda g: torch.softmax(3 * torch.randn(80, 100, generator=g), -1).flatten(),
}
shapes = pytest.mark.parametrize("shape", SHAPES)
both_kinds = pytest.mark.parametrize("symmetric", [False, True])


def values_of(shape: str, seed: int = 0) -> Tensor:
    return SHAPES[shape](torch.Generator().manual_seed(seed))


def observed(values: Tensor) -> HistogramObserver:
    observer = HistogramObserver()
    observer(values)
    return observer


def true_error(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> float:
    """Mean |x - Q(x)|**p, straight from its definition."""
    back = dequantize_affine(quantize_affine(values, scale, zero_point, bits), scale, zero_point)
    return float((back.double() - values.double()).abs().pow(POWER).mean())


def dense_search(observer: HistogramObserver, values: Tensor, bits: int, symmetric: bool) -> float:
    """Least true error among the best of many ranges, from the extremes down to a three-hundredth of them."""
    low, high = min(observer.low, 0.0), max(observer.high, 0.0)
    factors = torch.logspace(-2.5, 0, 200 if symmetric else 40, dtype=torch.float64)
    if symmetric:
        reach = max(-low, high)
        ends = torch.stack([-reach * factors, reach * factors], 1)
    else:
        none = torch.zeros(1, dtype=torch.float64)
        ends = torch.cartesian_prod(low * factors if low < 0 else none, high * factors if high > 0 else none)
    errors = [
        histogram_error(*observer.histogram(2), *part.T, bits, symmetric=symmetric, power=POWER)
        for part in ends.split(200)
    ]
    best = torch.cat(errors).argsort()[:20]
    return min(
        true_error(values, *affine_parameters(low.float(), high.float(), bits, symmetric=symmetric), bits)
        for low, high in ends[best]
    )


@shapes
@pytest.mark.parametrize("bits", [2, 4, 8])
@both_kinds
def test_mse_is_nearly_as_good_as_a_dense_search(shape: str, bits: int, symmetric: bool) -> None:
    values = values_of(shape)
    observer = observed(values)
    parameters = activation_parameters(observer, bits, symmetric=symmetric, method="mse")
    found = true_error(values, *parameters, bits)
    # At 8 bits a few single values at the ends decide, and those the search sees only as bins.
    tolerance = 1.15 if bits == 8 else 1.05
    assert found <= tolerance * dense_search(observer, values, bits, symmetric)


@shapes
@pytest.mark.parametrize("bits", [2, 4])
@both_kinds
def test_mse_is_never_worse_than_the_other_methods(shape: str, bits: int, symmetric: bool) -> None:
    values = values_of(shape, 1)
    observer = observed(values)
    error = {
        method: true_error(
            values, *activation_parameters(observer, bits, symmetric=symmetric, method=method), bits
        )
        for method in RANGE_METHODS
    }
    assert error["mse"] <= 1.01 * min(error.values())


@shapes
@pytest.mark.parametrize("bits", [2, 4, 8])
@both_kinds
def test_histogram_error_is_the_error_of_the_values(shape: str, bits: int, symmetric: bool) -> None:
    values = values_of(shape)
    observer = observed(values)
    low, high = min(observer.low, 0.0), max(observer.high, 0.0)
    factors = torch.tensor([0.03, 0.1, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
    found = histogram_error(
        *observer.histogram(), low * factors, high * factors, bits, symmetric=symmetric, power=POWER
    )
    parameters = affine_parameters(low * factors, high * factors, bits, symmetric=symmetric)
    expected = [true_error(values, s, z, bits) for s, z in zip(*parameters, strict=True)]
    # Within a bin the values are taken as spread evenly: exact on average, less so where a few bins hold all
    # of them, or where, at 8 bits, a few clipped values make up the error.
    tolerance = 0.3 if bits == 8 else 0.06 if shape == "far from zero" else 0.03
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=tolerance, atol=1e-12)


@examples
@given(
    left=st.floats(-6, 6),
    width=st.floats(0.01, 4),
    bits=st.integers(2, 5),
    power=st.floats(1, 4),
    symmetric=st.booleans(),
)
def test_the_closed_form_is_the_integral(
    left: float, width: float, bits: int, power: float, symmetric: bool
) -> None:
    low, high = (torch.tensor([x], dtype=torch.float64) for x in (-2.0, 3.0))
    edges = torch.tensor([left, left + width], dtype=torch.float64)
    found = histogram_error(
        edges[:1], edges[1:], torch.ones(1).double(), low, high, bits, symmetric=symmetric, power=power
    )
    scale, zero_point = (t.double() for t in affine_parameters(low, high, bits, symmetric=symmetric))
    x = left + width * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000  # midpoint rule
    step = torch.round(x / scale).clamp(-zero_point, 2**bits - 1 - zero_point)
    expected = (x - step * scale).abs().pow(power).mean()
    torch.testing.assert_close(found[0], expected, rtol=2e-3, atol=1e-9)


def test_bins_without_width_have_the_error_of_their_value() -> None:
    edge, count = torch.tensor([0.0, 1.25, 7.0]).double(), torch.tensor([2.0, 1.0, 1.0]).double()
    low, high = torch.zeros(1).double(), torch.full((1,), 3.0).double()
    found = histogram_error(edge, edge, count, low, high, 2, symmetric=False, power=2.0)
    torch.testing.assert_close(found, torch.tensor([(0.25**2 + 4**2) / 4]).double())


@shapes
@pytest.mark.parametrize("percentile", [99.0, 99.9, 100.0])
def test_percentile_is_the_quantile_of_the_values(shape: str, percentile: float) -> None:
    values = values_of(shape)
    scale, zero_point = activation_parameters(
        observed(values), 8, symmetric=False, method="percentile", percentile=percentile
    )
    # Between the values one rank to either side of the quantile, give or take the width of a bin and half a
    # step by which zero moves the grid.
    last = len(values) - 1
    for share, found in (
        (1 - percentile / 100, -zero_point * scale),
        (percentile / 100, (255 - zero_point) * scale),
    ):
        ranks = torch.tensor([share * last - 1.5, share * last + 1.5]).clamp(0, last) / last
        below, above = torch.quantile(values, ranks).tolist()
        below, above = (min(below, 0), min(above, 0)) if share < 0.5 else (max(below, 0), max(above, 0))
        slack = 2.0**-5 * max(abs(below), abs(above)) + 0.51 * scale
        assert below - slack <= found <= above + slack


@shapes
@both_kinds
def test_min_max_spans_the_extremes(shape: str, symmetric: bool) -> None:
    values = values_of(shape)
    found = activation_parameters(observed(values), 6, symmetric=symmetric, method="min-max")
    expected = affine_parameters(values.min(), values.max(), 6, symmetric=symmetric)
    assert [float(t) for t in found] == [float(t) for t in expected]


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-42])
@both_kinds
def test_constant_tensors(method: RangeMethod, value: float, symmetric: bool) -> None:
    values = torch.full((50,), value)
    scale, zero_point = activation_parameters(observed(values), 4, symmetric=symmetric, method=method)
    assert math.isfinite(scale)
    assert true_error(values, scale, zero_point, 4) ** (1 / POWER) <= 1e-5 * abs(value) + 1e-12


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_results_are_single_numbers_in_float32(method: RangeMethod) -> None:
    for symmetric in (False, True):
        parameters = activation_parameters(
            observed(values_of("gaussian")), 4, symmetric=symmetric, method=method
        )
        assert [(t.shape, t.dtype) for t in parameters] == [(torch.Size(), torch.float32)] * 2


def test_power_moves_the_range() -> None:
    observer = observed(values_of("heavy"))
    reach = [
        float(activation_parameters(observer, 4, symmetric=True, method="mse", power=power)[0])
        for power in (1.0, 2.4, 6.0)
    ]
    # The larger the exponent, the more the outliers weigh.
    assert reach[0] < reach[1] < reach[2]


def test_empty_observers_and_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="no calibration value reached"):
        activation_parameters(HistogramObserver(), 4, symmetric=False, method="mse")
    with pytest.raises(ValueError, match="one of min-max, percentile, mse, got 'max'"):
        activation_parameters(observed(torch.ones(2)), 4, symmetric=False, method="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of min-max, percentile, mse, got 'max'"):
        weight_parameters(torch.ones(2, 3), 4, symmetric=False, method="max")  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@both_kinds
def test_weight_rows_by_mse_are_never_worse_than_by_min_max(bits: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 64, generator=generator)
    weight[10:20] *= torch.rand(10, 1, generator=generator) * 1e-3
    weight[20:30, 0] *= 20  # outliers
    weight[30] = 0.0
    weight[31] = weight[31].abs()
    errors = {}
    for method in ("min-max", "mse"):
        scale, zero_point = weight_parameters(weight, bits, symmetric=symmetric, method=method)
        assert scale.shape == zero_point.shape == (40,)
        if symmetric:
            assert zero_point.eq(2 ** (bits - 1)).all()
        errors[method] = torch.tensor(
            [true_error(weight[i], scale[i], zero_point[i], bits) for i in range(40)]
        )
    assert (errors["mse"] <= errors["min-max"] * (1 + 1e-5)).all()
    if bits <= 4:
        assert errors["mse"][:10].sum() < 0.96 * errors["min-max"][:10].sum()


@pytest.mark.parametrize("bits", [2, 4])
@both_kinds
def test_weight_rows_by_mse_are_nearly_as_good_as_a_dense_search(bits: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 400, generator=generator)
    weight[3:] = weight[3:] + 0.5 * weight[3:].abs()  # skewed
    scale, zero_point = weight_parameters(weight, bits, symmetric=symmetric, method="mse")
    for row in range(6):
        best = dense_search(observed(weight[row]), weight[row], bits, symmetric)
        assert true_error(weight[row], scale[row], zero_point[row], bits) <= 1.1 * best


def plain_row_search(row: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The search over the ends of one row as it is described, candidate after candidate."""

    def best_of(candidates: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        errors = [
            true_error(row, *affine_parameters(low, high, bits, symmetric=symmetric), bits)
            for low, high in candidates
        ]
        return candidates[errors.index(min(errors))]

    low, high = row.amin().clamp(max=0), row.amax().clamp(min=0)
    low, high = best_of([(low * f, high * f) for f in torch.linspace(1.0, 0.3, 29)])
    if not symmetric:
        alone = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
        low, high = best_of(
            [(low, high), *((low * f, high) for f in alone), *((low, high * f) for f in alone)]
        )
    return affine_parameters(low, high, bits, symmetric=symmetric)


@pytest.mark.parametrize("bits", [2, 4, 8])
@both_kinds
@pytest.mark.parametrize("at_once", [1, 200, 2**17])
def test_weight_rows_by_mse_are_those_of_a_plain_search(
    bits: int, symmetric: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_VALUES_AT_ONCE", at_once)
    weight = torch.randn(20, 90, generator=torch.Generator().manual_seed(4))
    weight[3] *= 1e-20  # whose error to the power 2.4 is nothing in float32
    weight[4, 5] *= 30
    weight[5] = weight[5].abs()
    weight[6] = 0.0
    scale, zero_point = weight_parameters(weight, bits, symmetric=symmetric, method="mse")
    for row in range(20):
        expected = plain_row_search(weight[row].double(), bits, symmetric)
        assert (float(scale[row]), float(zero_point[row])) == pytest.approx([float(t) for t in expected])


def test_weight_rows_by_min_max_and_percentile() -> None:
    weight = torch.randn(5, 1001, generator=torch.Generator().manual_seed(2))
    found = weight_parameters(weight, 8, symmetric=False, method="min-max")
    expected = affine_parameters(weight.amin(1), weight.amax(1), 8, symmetric=False)
    assert all(map(torch.equal, found, expected))
    found = weight_parameters(weight, 8, symmetric=False, method="percentile", percentile=99.0)
    ordered = weight.sort(dim=1).values
    torch.testing.assert_close(found, affine_parameters(ordered[:, 10], ordered[:, 990], 8, symmetric=False))


def test_rows_do_not_influence_each_other() -> None:
    weight = torch.randn(4, 30, generator=torch.Generator().manual_seed(3))
    for method in RANGE_METHODS:
        together = weight_parameters(weight, 4, symmetric=False, method=method)
        alone = [weight_parameters(weight[i : i + 1], 4, symmetric=False, method=method) for i in range(4)]
        assert torch.equal(together[0], torch.cat([scale for scale, _ in alone]))
        assert torch.equal(together[1], torch.cat([zero_point for _, zero_point in alone]))
