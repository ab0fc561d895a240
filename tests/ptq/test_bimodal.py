"""Bimodal integration: two peaks are seen where there are two, and folding them changes nothing but the ranges."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import SamModel

from saqsam.convert.prepare import prepare
from saqsam.convert.quantizer_kinds import Observer
from saqsam.models.parts import TOKEN_TO_IMAGE_PARTS
from saqsam.models.registry import structure_of
from saqsam.ptq.bimodal import find_signs, integrate_bimodal, is_bimodal, kernel_density, merged_observers
from saqsam.ptq.calibration import calibrate
from saqsam.ptq.calibration_images import choose_calibration_images
from saqsam.quant.range_observers import ChannelHistogramObserver, HistogramObserver, bin_edges
from saqsam.recipes.recipe import Recipe
from support.tiny_quantized import assert_same_outputs, tiny_data, tiny_plan, tiny_recipe
from support.tiny_sam import tiny_config, tiny_processor, tiny_sam

STRUCTURE = structure_of(tiny_config())
SITES = [site.name for site in STRUCTURE.attentions if site.part in TOKEN_TO_IMAGE_PARTS]
FOLDED = SITES[:2]


def observed(values: Tensor) -> HistogramObserver:
    observer = HistogramObserver()
    observer(values)
    return observer


def normal(mean: float, std: float, count: int = 20_000, seed: int = 0) -> Tensor:
    return mean + std * torch.randn(count, generator=torch.Generator().manual_seed(seed))


# ---- peaks


@pytest.mark.parametrize("unit", [1e-4, 1.0, 300.0])
@pytest.mark.parametrize(
    ("peaks", "expected"),
    [
        ([(-8, 1.0, 20_000), (8, 1.0, 20_000)], True),
        ([(-8, 1.0, 4_000), (8, 2.0, 20_000)], True),
        ([(-8, 1.0, 3_000), (0, 1.0, 3_000), (8, 1.0, 3_000)], True),
        ([(0, 1.0, 20_000)], False),
        ([(8, 1.0, 20_000)], False),
        # Less than 32 of 128 points apart.
        ([(-8, 1.0, 20_000), (-1, 1.0, 20_000), (40, 1.0, 20)], False),
        # One is lower than a hundredth of the other.
        ([(-8, 1.0, 100), (8, 1.0, 40_000)], False),
        ([(-8, 1.0, 1_000), (8, 1.0, 40_000)], True),
    ],
)
def test_two_peaks_are_told_from_one_whatever_the_unit(
    peaks: list[tuple[float, float, int]], expected: bool, unit: float
) -> None:
    values = torch.cat([normal(mean, std, count, seed) for seed, (mean, std, count) in enumerate(peaks)])
    assert is_bimodal(observed(unit * values)) == expected
    assert is_bimodal(observed(-unit * values)) == expected


def test_constant_values_have_no_two_peaks() -> None:
    assert not is_bimodal(observed(torch.zeros(10)))
    assert not is_bimodal(observed(torch.full((10,), 2.5)))


def exact_histogram(
    cumulative: Callable[[Tensor], Tensor], count: float, reach: tuple[float, float]
) -> HistogramObserver:
    """What is seen of very many values: each bin holds just its share."""
    low, high = (end.clamp(*reach) for end in bin_edges())
    observer = HistogramObserver()
    observer.counts = ((cumulative(high) - cumulative(low)) * count).round().long()
    observer.low, observer.high = reach
    return observer


@pytest.mark.parametrize("count", [1e4, 1e6, 1e8, 1e10])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.0, 3.0), (2.0, 2.0), (8.0, 1.0), (20.0, 2.0)])
def test_one_peak_stays_one_however_many_values_were_seen(count: float, mean: float, std: float) -> None:
    # The more values, the narrower the kernel: far from zero it is narrower than the bins.
    def cumulative(x: Tensor) -> Tensor:
        return torch.special.ndtr((x - mean) / std)

    reach = (mean - 5 * std, mean + 5 * std)
    assert not is_bimodal(exact_histogram(cumulative, count, reach))
    two = exact_histogram(
        lambda x: cumulative(x) / 2 + cumulative(x + 10 * std) / 2, count, (reach[0] - 10 * std, reach[1])
    )
    assert is_bimodal(two)


def test_the_density_is_that_of_the_values() -> None:
    values = torch.cat([normal(-3, 1, 3000), normal(4, 0.5, 2000, 1)]).double()
    grid = torch.linspace(float(values.min()), float(values.max()), 100, dtype=torch.float64)
    bandwidth = float(values.std()) * len(values) ** -0.2
    kernel = torch.exp(-0.5 * ((grid[:, None] - values) / bandwidth).square()) / math.sqrt(2 * math.pi)
    expected = kernel.mean(1) / bandwidth
    found = kernel_density(observed(values.float()), 100)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01 * float(expected.max()))
    step = float(grid[1] - grid[0])
    assert float(found.sum() * step) == pytest.approx(1, abs=0.02)


# ---- a model with two peaks


def recipe(bimodal: bool = True) -> Recipe:
    return replace(tiny_recipe(), bimodal=bimodal)


def two_peaked(seed: int = 3) -> tuple[SamModel, dict[str, Tensor]]:
    """A prepared tiny SAM whose keys sit around +-8 in two of three attentions, and on which side each channel is."""
    model, sides = tiny_sam(seed), {}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in FOLDED:
            bias = model.get_submodule(name).k_proj.bias
            side = torch.where(torch.rand(bias.shape, generator=generator) < 0.5, -1.0, 1.0)
            bias.copy_(8 * side)
            sides[name] = side
    prepare(model, tiny_plan(recipe()))
    return model, sides


def look(model: SamModel, made: Recipe) -> dict[str, Observer]:
    data = tiny_data(2)
    images = choose_calibration_images(tiny_sam(), tiny_processor(), data, made.calibration)
    return calibrate(model, tiny_plan(made), images)


@pytest.fixture(scope="module")
def seen() -> dict[str, Observer]:
    """What is observed of the two-peaked model, to be changed by none."""
    return look(two_peaked()[0], recipe())


def test_queries_and_keys_of_token_to_image_attentions_are_seen_by_channel(seen: dict[str, Observer]) -> None:
    by_channel = {name for name, observer in seen.items() if isinstance(observer, ChannelHistogramObserver)}
    assert by_channel == {f"{name}.{kind}_quantizer" for name in SITES for kind in ("query", "key")}
    plain = look(two_peaked()[0], recipe(bimodal=False))
    assert plain.keys() == seen.keys()
    assert all(isinstance(observer, HistogramObserver) for observer in plain.values())


def channels(side: Tensor, distance: float) -> ChannelHistogramObserver:
    """Many keys [1, 4, T, 4] of 16 channels, each so far from zero on its side."""
    observer = ChannelHistogramObserver(axes=(1, 3))
    observer(normal(0, 1, 16 * 2000).reshape(1, 4, 2000, 4) + distance * side.reshape(1, 4, 1, 4))
    return observer


def test_the_signs_are_those_of_the_channels_where_there_are_two_peaks() -> None:
    side = torch.tensor([1.0, -1.0, -1.0, 1.0] * 3 + [-1.0] * 4)
    keys = [f"{name}.key_quantizer" for name in SITES]
    observers = dict(zip(keys, (channels(side, 8), channels(-side, 5), channels(side, 0.2)), strict=True))
    signs = find_signs(STRUCTURE, observers)
    assert list(signs) == SITES
    for name, expected in zip(SITES, (side, -side, torch.ones(16)), strict=True):
        assert torch.equal(signs[name], expected)
    assert {sign.dtype for sign in signs.values()} == {torch.float32}


def test_channels_on_either_side_are_found_in_a_model(seen: dict[str, Observer]) -> None:
    signs = find_signs(STRUCTURE, seen)
    assert list(signs) == SITES
    for name, side in two_peaked()[1].items():
        assert torch.equal(signs[name], side)
        assert -1 in side


def test_without_channels_there_is_nothing_to_fold() -> None:
    assert find_signs(STRUCTURE, look(two_peaked()[0], recipe(bimodal=False))) == {}


def test_the_folded_model_computes_the_same(seen: dict[str, Observer]) -> None:
    model, _ = two_peaked()
    original, _ = two_peaked()
    signs = {name: find_signs(STRUCTURE, seen)[name] for name in FOLDED}
    integrate_bimodal(model, STRUCTURE, signs)
    changed = {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, original.get_parameter(name))
    }
    layers = [f"{name}.{layer}" for name in FOLDED for layer in ("q_proj", "k_proj")]
    assert changed == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    # Signs come in pairs, and a sign rounds nothing: to the last bit.
    assert_same_outputs(model, original)


def test_folding_twice_is_not_folding(seen: dict[str, Observer]) -> None:
    model, _ = two_peaked()
    signs = find_signs(STRUCTURE, seen)
    integrate_bimodal(model, STRUCTURE, signs)
    integrate_bimodal(model, STRUCTURE, signs)
    original = two_peaked()[0].state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.state_dict().items())


def test_the_keys_of_the_folded_model_have_one_peak_and_half_the_range(seen: dict[str, Observer]) -> None:
    signs = find_signs(STRUCTURE, seen)
    merged = merged_observers(seen, signs)
    for name in FOLDED:
        before, after = seen[f"{name}.key_quantizer"], merged[f"{name}.key_quantizer"]
        assert isinstance(before, ChannelHistogramObserver)
        assert isinstance(after, HistogramObserver)
        assert not is_bimodal(after)
        assert after.high - after.low < 0.7 * (before.pooled().high - before.pooled().low)


def test_merged_observers_are_those_of_the_folded_model(seen: dict[str, Observer]) -> None:
    signs = find_signs(STRUCTURE, seen)
    merged = merged_observers(seen, signs)
    model, _ = two_peaked()
    integrate_bimodal(model, STRUCTURE, signs)
    expected = look(model, recipe(bimodal=False))
    assert merged.keys() == expected.keys()
    for name, observer in merged.items():
        other = expected[name]
        assert isinstance(observer, HistogramObserver)
        assert isinstance(other, HistogramObserver)
        assert torch.equal(observer.counts, other.counts), name
        assert (observer.low, observer.high) == (other.low, other.high), name
    # What the channels saw is as it was.
    assert isinstance(seen[f"{FOLDED[0]}.key_quantizer"], ChannelHistogramObserver)
