"""Tables of levels: rounding to the nearest one, and the parameters of least squared error."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.learned import StraightThrough
from saqsam.quant.range_observers import HistogramObserver
from saqsam.quant.ranges import activation_parameters
from saqsam.quant.tables import BASE_DENOMINATOR, Moments, TableForm, TableQuantizer, table_levels

FORMS: tuple[TableForm, ...] = ("hybrid", "log")
examples = settings(max_examples=40, derandomize=True)


def after_gelu(count: int = 40_000, seed: int = 0) -> Tensor:
    """Values like those after a GELU: most between -0.17 and 0, and a few large ones."""
    before = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.6 - 0.8
    before[: count // 1000] = 8 * before[: count // 1000].abs()
    return F.gelu(before)


def observed(values: Tensor) -> HistogramObserver:
    observer = HistogramObserver()
    observer(values)
    return observer


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """Levels nearest to the values by brute force; the lower one of two equally near."""
    return levels[(values[..., None].double() - levels.double()).abs().argmin(-1)]


def squared_error(values: Tensor, levels: Tensor) -> float:
    return float((nearest(values, levels) - values).double().square().mean())


# ---- the quantizer


@examples
@given(bits=st.integers(2, 8), seed=st.integers(0, 999))
def test_values_round_to_their_nearest_level(bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randn(2**bits, generator=generator).sort().values
    values = 3 * torch.randn(5, 40, generator=generator)
    quantizer = TableQuantizer(bits, levels)
    found = quantizer(values)
    assert found.shape == values.shape
    assert torch.equal(found, nearest(values, levels))
    assert torch.equal(quantizer(levels), levels)
    codes = quantizer.codes(values)
    assert codes.dtype == torch.int32
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 2**bits
    assert torch.equal(levels[codes.long()], found)
    assert quantizer.range == (float(levels[0]), float(levels[-1]))


def test_ties_go_to_the_lower_level_and_equal_levels_are_allowed() -> None:
    quantizer = TableQuantizer(2, torch.tensor([0.0, 0.0, 1.0, 3.0]))
    values = torch.tensor([-5.0, 0.0, 0.5, 0.500001, 2.0, 2.1, 99.0])
    assert quantizer(values).tolist() == [0, 0, 0, 1, 1, 3, 3]


def test_the_dtype_of_the_values_is_kept_and_an_empty_tensor_is_possible() -> None:
    quantizer = TableQuantizer(2, torch.tensor([-0.1, 0.0, 0.3, 2.0]))
    found = quantizer(torch.tensor([[0.2, -3.0]], dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.tensor([[0.3, -0.1]]).bfloat16())
    assert quantizer(torch.zeros(0, 3)).shape == (0, 3)


def test_levels_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"levels must have shape \(16,\) for 4 bits, got \(15,\)"):
        TableQuantizer(4, torch.zeros(15))
    with pytest.raises(ValueError, match="bits must be an integer from 2 to 8"):
        TableQuantizer.empty(9)


def test_gradients_pass_straight_through() -> None:
    values = torch.randn(50, requires_grad=True)
    quantizer = TableQuantizer(3, torch.linspace(-1, 1, 8))
    rounded = StraightThrough(quantizer)(values)
    torch.testing.assert_close(rounded, quantizer(values.detach()))
    rounded.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, torch.ones(50))


# ---- its levels


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_there_are_2_to_the_b_levels_that_fit_better_than_a_uniform_grid(form: TableForm, bits: int) -> None:
    values = after_gelu()
    observer = observed(values)
    levels = table_levels(observer, bits, form)
    assert (levels.shape, levels.dtype) == ((2**bits,), torch.float32)
    assert bool((levels.diff() >= 0).all())
    assert float(levels[0]) == observer.low
    assert float(levels[-1]) <= observer.high + 1e-6
    scale, zero_point = activation_parameters(observer, bits, symmetric=False, method="mse", power=2.0)
    uniform = AffineQuantizer(bits, scale, zero_point)(values)
    assert squared_error(values, levels) < float((uniform - values).double().square().mean())


@pytest.mark.parametrize("bits", [2, 4, 5])
def test_log_levels_are_the_minimum_and_powers_of_one_base(bits: int) -> None:
    levels = table_levels(observed(after_gelu()), bits, "log").double()
    ratios = (levels[2:] - levels[0]) / (levels[1:-1] - levels[0])
    step = BASE_DENOMINATOR * math.log2(float(ratios[-1]))
    assert step == pytest.approx(round(step), abs=1e-3)
    torch.testing.assert_close(ratios, ratios[-1].expand_as(ratios), rtol=1e-3, atol=0)


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_hybrid_levels_are_powers_of_two_and_then_uniform_steps(bits: int) -> None:
    levels = table_levels(observed(after_gelu()), bits, "hybrid").double()
    shifted = levels - levels[0]
    doubles = [bool(abs(b / a - 2) < 1e-3) for a, b in itertools.pairwise(shifted[1:])]
    small = 2 + (doubles.index(False) if False in doubles else len(doubles))
    # A first uniform step can double the split point by chance, so the share may seem larger than it is.
    assert small >= 2**bits // 8
    steps = shifted[small:].diff()
    torch.testing.assert_close(steps, steps[-1:].expand_as(steps), rtol=1e-3, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_no_scaled_table_has_a_clearly_smaller_error(form: TableForm) -> None:
    values = after_gelu()
    levels = table_levels(observed(values), 4, form)
    best = squared_error(values, levels)
    for factor in (0.25, 0.5, 0.8, 0.95, 1.05, 1.2, 1.6):
        assert squared_error(values, (levels - levels[0]) * factor + levels[0]) > 0.99 * best


@pytest.mark.parametrize("form", FORMS)
def test_a_constant_has_one_level(form: TableForm) -> None:
    levels = table_levels(observed(torch.full((9,), 0.25)), 3, form)
    assert levels.tolist() == [0.25] * 8


@pytest.mark.parametrize("form", FORMS)
def test_two_values_are_exact(form: TableForm) -> None:
    values = torch.tensor([-0.125, 1.0, -0.125])
    torch.testing.assert_close(TableQuantizer(4, table_levels(observed(values), 4, form))(values), values)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_observer_is_refused(form: TableForm) -> None:
    with pytest.raises(ValueError, match="no calibration value reached this quantizer"):
        table_levels(HistogramObserver(), 4, form)


# ---- the error in closed form


def test_errors_are_those_of_values_spread_evenly_within_their_bins() -> None:
    observer = observed(torch.cat([after_gelu(3000), torch.full((500,), 0.5), torch.zeros(70)]))
    low, high, counts = observer.histogram()
    inside = (torch.arange(400).double() + 0.5) / 400
    points = (low[:, None] + (high - low)[:, None] * inside).flatten()
    weights = (counts[:, None] / 400).expand(-1, 400).flatten()
    reach = observer.high - observer.low
    tables = torch.rand(6, 8, generator=torch.Generator().manual_seed(1)).double().sort(1).values
    found = Moments(observer).errors(tables)
    for table, error in zip(tables, found.tolist(), strict=True):
        levels = table * reach + observer.low
        squares = (points[:, None] - levels).square().amin(1)
        expected = float((squares * weights).sum() / weights.sum()) / reach**2
        assert error == pytest.approx(expected, rel=1e-3)
