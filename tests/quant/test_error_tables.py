"""The search by tables: its ranges are as good as those of a search over the values, and each row has its own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saqsam.models.loading import load
from saqsam.models.registry import structure_of
from saqsam.quant import error_tables
from saqsam.quant.affine import affine_parameters
from saqsam.quant.error_tables import search_by_table, tables_pay
from saqsam.quant.layers import channel_axis
from saqsam.quant.ranges import group_parameters, weight_parameters

POWER = 2.4
Shape = Callable[[int, int, torch.Generator], Tensor]
both_kinds = pytest.mark.parametrize("symmetric", [False, True])
all_bits = pytest.mark.parametrize("bits", [4, 6, 8])


def _gaussian(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator)


def _heavy_tailed(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Student's t with three degrees of freedom."""
    chi = torch.randn(rows, columns, 3, generator=generator).square().mean(-1).sqrt()
    return torch.randn(rows, columns, generator=generator) / chi


def _with_outliers(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    weight = torch.randn(rows, columns, generator=generator)
    weight[:, :2] *= 8
    weight[::3, 5] = 15
    return weight


def _skewed(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    weight = torch.randn(rows, columns, generator=generator)
    weight += 0.5 * weight.abs()
    weight[::5] = weight[::5].abs()
    return weight


SHAPES: list[Shape] = [_gaussian, _heavy_tailed, _with_outliers, _skewed]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=[shape.__name__.strip("_") for shape in SHAPES])


def row_errors(weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Mean |x - Q(x)|**p of each row, straight from its definition, float64 [C]."""
    weight, scale, zero_point = weight.double(), scale.double()[:, None], zero_point.double()[:, None]
    codes = (torch.round(weight / scale) + zero_point).clamp(0, 2**bits - 1)
    return ((codes - zero_point) * scale - weight).abs().pow(POWER).mean(1)


def search_by_value(weight: Tensor, bits: int, *, symmetric: bool) -> Tensor:
    """Errors of the best ranges, float64 [C], among 29 that shrink from both ends and 12 from either end."""
    both = [(float(factor),) * 2 for factor in torch.linspace(1.0, 0.3, 29)]
    either = [pair for f in (0.95, 0.9, 0.85, 0.8, 0.75, 0.7) for pair in ((f, 1.0), (1.0, f))]
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    best = torch.full((len(weight),), torch.inf, dtype=torch.float64)
    for factors in [both] if symmetric else [both, [(1.0, 1.0), *either]]:
        ends = torch.stack([low, high])
        for factor in factors:
            candidate = ends * torch.tensor(factor)[:, None]
            errors = row_errors(weight, *affine_parameters(*candidate, bits, symmetric=symmetric), bits)
            low, high = torch.where(errors < best, candidate, torch.stack([low, high]))
            best = torch.minimum(best, errors)
    return best


def assert_as_good(weight: Tensor, bits: int, *, symmetric: bool) -> None:
    """Compare the mean error of the rows, of each row relative to the other search."""
    assert tables_pay(weight, bits, symmetric=symmetric)
    scale, zero_point = weight_parameters(weight, bits, symmetric=symmetric, method="mse", power=POWER)
    expected = search_by_value(weight, bits, symmetric=symmetric)
    errors = row_errors(weight, scale, zero_point, bits)
    assert float((errors / expected).mean()) <= 1.01
    assert float(errors.mean() / expected.mean()) <= 1.01


@shapes
@all_bits
@both_kinds
def test_ranges_are_within_one_percent_of_a_search_by_value(
    shape: Shape, bits: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_tables, "_VALUES_PER_POSITION", 0)
    assert_as_good(shape(48, 768, torch.Generator().manual_seed(0)), bits, symmetric=symmetric)


@pytest.mark.slow
@shapes
@all_bits
@both_kinds
@pytest.mark.parametrize("columns", [256, 768, 2048, 3072])
def test_ranges_of_sam_b_are_within_one_percent(
    shape: Shape, columns: int, bits: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_tables, "_VALUES_PER_POSITION", 0)
    # Rows are searched on their own: how many there are makes no difference.
    assert_as_good(shape(128, columns, torch.Generator().manual_seed(1)), bits, symmetric=symmetric)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
@both_kinds
def test_ranges_of_sam_mini_are_within_one_percent(
    bits: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_tables, "_VALUES_PER_POSITION", 0)
    model, _ = load("sam-mini")
    layers = [model.get_submodule(site.name) for site in structure_of(model.config).layers]
    for layer in layers:
        assert isinstance(layer.weight, Tensor)
        weight = layer.weight.detach().movedim(channel_axis(layer), 0).flatten(1)
        assert_as_good(weight, bits, symmetric=symmetric)


@pytest.mark.parametrize("bits", [2, 4, 8])
@both_kinds
def test_rows_of_any_kind(bits: int, symmetric: bool) -> None:
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    weight[10:20] *= 1e-20  # whose error to the power 2.4 is nothing in float32
    weight[20:30, 0] *= 20
    weight[30] = 0.0
    weight[31] = weight[31].abs()
    weight[32] = -weight[32].abs()
    weight[33] = 1e-42
    scale, zero_point = search_by_table(weight, bits, symmetric=symmetric, power=POWER)
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    assert ((zero_point >= 0) & (zero_point <= 2**bits - 1) & (zero_point == zero_point.round())).all()
    if symmetric:
        assert zero_point.eq(2 ** (bits - 1)).all()
    errors = row_errors(weight, scale, zero_point, bits)
    widest = affine_parameters(weight.amin(1), weight.amax(1), bits, symmetric=symmetric)
    # A table is off by a few percent for a row of few values, at 8 bits.
    assert (errors <= 1.05 * row_errors(weight, *widest, bits)).all()


@both_kinds
def test_rows_have_the_ranges_that_they_have_alone(symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = _skewed(30, 50, torch.Generator().manual_seed(2))
    together = search_by_table(weight, 4, symmetric=symmetric, power=POWER)
    for at_once in (1, 170):
        monkeypatch.setattr(error_tables, "_VALUES_AT_ONCE", at_once)
        alone = search_by_table(weight, 4, symmetric=symmetric, power=POWER)
        assert all(map(torch.equal, together, alone))


def test_tables_are_left_to_large_weights() -> None:
    assert tables_pay(torch.empty(768, 768), 4, symmetric=False)
    assert tables_pay(torch.empty(128, 128), 8, symmetric=True)
    assert not tables_pay(torch.empty(128, 128), 8, symmetric=False)
    assert not tables_pay(torch.empty(1, 16), 4, symmetric=True)


@both_kinds
def test_groups_are_searched_by_table(symmetric: bool) -> None:
    weight = _heavy_tailed(64, 2048, torch.Generator().manual_seed(3))
    rows = weight.reshape(-1, 64)
    assert tables_pay(rows, 4, symmetric=symmetric)
    scale, zero_point = group_parameters(weight, 64, 4, symmetric=symmetric, method="mse", power=POWER)
    errors = row_errors(rows, scale.flatten(), zero_point.flatten(), 4)
    assert float((errors / search_by_value(rows, 4, symmetric=symmetric)).mean()) <= 1.01


def test_power_moves_the_range() -> None:
    weight = _heavy_tailed(8, 2048, torch.Generator().manual_seed(4))
    scales = [search_by_table(weight, 4, symmetric=True, power=power)[0].mean() for power in (1.0, 2.4, 6.0)]
    assert scales[0] < scales[1] < scales[2]
