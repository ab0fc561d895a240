"""Compensation in closed form: each formula against the least squares problem that it solves."""

import pytest
import torch
from torch import Tensor

from saqsam.quant.affine import affine_parameters, round_affine
from saqsam.quant.compensation import (
    InputSums,
    LogitSums,
    compensated_rounding,
    correct_queries,
    correct_weight,
    matching_bias,
)

ROWS, INPUTS, OUTPUTS = 400, 12, 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(seed: int = 0) -> Tensor:
    """Inputs whose channels depend on each other and have means."""
    return random(ROWS, INPUTS, seed=seed) @ random(INPUTS, INPUTS, seed=seed + 1) + 3 * random(
        INPUTS, seed=seed + 2
    )


def quantized(values: Tensor) -> Tensor:
    scale, zero_point = affine_parameters(values.min(), values.max(), 3, symmetric=False)
    return round_affine(values, scale, zero_point, 3)


def output_error(weight: Tensor, bias: Tensor, inputs: Tensor, target: Tensor) -> float:
    return float((inputs.double() @ weight.double().mT + bias.double() - target.double()).square().mean())


def test_sums_add_up() -> None:
    floats = correlated()
    rounded = quantized(floats)
    whole = InputSums.of(floats, rounded)
    parts = InputSums.of(floats[:100], rounded[:100]) + InputSums.of(floats[100:], rounded[100:])
    assert parts.count == whole.count
    for name in ("floats", "quantized", "squares", "products"):
        assert torch.allclose(getattr(parts, name), getattr(whole, name), rtol=1e-4)


def test_a_corrected_layer_is_the_least_squares_fit_of_the_float_outputs() -> None:
    floats, weight, bias = correlated(), random(OUTPUTS, INPUTS, seed=5), random(OUTPUTS, seed=6)
    inputs = quantized(floats)
    target = floats @ weight.mT + bias
    sums = InputSums.of(floats, inputs)
    corrected = correct_weight(weight, sums, 1e-7, centered=True)
    new_bias = matching_bias(bias, weight, corrected, sums)
    extended = torch.cat([inputs, torch.ones(ROWS, 1)], 1).double()
    best = torch.linalg.lstsq(extended, target.double()).solution
    assert torch.allclose(corrected, best[:-1].mT, atol=2e-3)
    assert torch.allclose(new_bias, best[-1], atol=2e-2)
    assert output_error(corrected, new_bias, inputs, target) < output_error(weight, bias, inputs, target)


def test_without_a_bias_means_are_part_of_the_fit() -> None:
    floats, weight = correlated(), random(OUTPUTS, INPUTS, seed=5)
    inputs = quantized(floats)
    corrected = correct_weight(weight, InputSums.of(floats, inputs), 1e-7, centered=False)
    best = torch.linalg.lstsq(inputs.double(), (floats @ weight.mT).double()).solution
    assert torch.allclose(corrected, best.mT, atol=2e-3)


def test_a_large_penalty_leaves_the_weight() -> None:
    floats, weight = correlated(), random(OUTPUTS, INPUTS, seed=5)
    sums = InputSums.of(floats, quantized(floats))
    assert torch.allclose(correct_weight(weight, sums, 1e7, centered=True), weight.double(), atol=1e-5)


def test_exact_inputs_need_no_correction() -> None:
    floats, weight, bias = correlated(), random(OUTPUTS, INPUTS, seed=5), random(OUTPUTS, seed=6)
    sums = InputSums.of(floats, floats)
    corrected = correct_weight(weight, sums, 0.01, centered=True)
    assert torch.allclose(corrected, weight.double(), atol=1e-4)
    assert torch.allclose(matching_bias(bias, weight, corrected, sums), bias.double(), atol=1e-3)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("columns", [INPUTS, 200])  # more than one block of columns
def test_compensated_rounding_has_less_error_than_round_to_nearest(bits: int, columns: int) -> None:
    mixing = random(columns, columns, seed=3) / columns**0.5
    inputs = random(600, columns, seed=4) @ mixing
    weight = random(OUTPUTS, columns, seed=5)
    scale, zero_point = affine_parameters(weight.amin(1), weight.amax(1), bits, symmetric=False)
    squares = InputSums.of(inputs, inputs).moments(centered=False)[0]
    values = compensated_rounding(weight, scale, zero_point, bits, squares, 0.01)

    def error(start: Tensor) -> float:
        rounded = round_affine(start, scale[:, None], zero_point[:, None], bits)
        return float((inputs @ (rounded - weight).mT).square().mean())

    assert values.shape == weight.shape
    assert error(values) < 0.8 * error(weight)


def test_rounding_of_independent_inputs_is_to_nearest() -> None:
    weight = random(OUTPUTS, INPUTS, seed=5)
    scale, zero_point = affine_parameters(weight.amin(1), weight.amax(1), 4, symmetric=True)
    squares = torch.diag(torch.arange(1.0, INPUTS + 1)).double()
    assert torch.equal(compensated_rounding(weight, scale, zero_point, 4, squares, 0.01), weight)


def test_corrected_queries_bring_the_logits_closer_to_those_in_float() -> None:
    prompts, queries, keys, heads, size = 3, 40, 9, 2, 4
    weight = random(heads * size, INPUTS, seed=1)
    floats = random(prompts, queries, INPUTS, seed=2)
    float_keys = random(prompts, heads, keys, size, seed=3)
    inputs, rounded_keys = quantized(floats), quantized(float_keys)

    def split(values: Tensor) -> Tensor:
        return values.reshape(prompts, queries, heads, size).movedim(2, 1)

    def centered(logits: Tensor) -> Tensor:
        return logits - logits.mean(-1, keepdim=True)

    target = split(floats @ weight.mT) @ float_keys.mT
    missing = target - split(inputs @ weight.mT) @ rounded_keys.mT
    sums = LogitSums.of(inputs, rounded_keys, missing)
    change = correct_queries(sums + sums, 1e-3).float()
    assert change.shape == (heads * size, INPUTS + 1)
    corrected = split(inputs @ (weight + change[:, :-1]).mT + change[:, -1]) @ rounded_keys.mT
    before, after = (centered(error).square().mean() for error in (missing, target - corrected))
    assert after < 0.95 * before


def test_a_prompt_alone_gives_the_exact_solution() -> None:
    inputs, keys = random(1, 50, INPUTS, seed=2), random(1, 1, 9, 3, seed=3)
    change = random(3, INPUTS + 1, seed=4)
    extended = torch.cat([inputs, torch.ones(1, 50, 1)], -1)
    missing = (extended @ change.mT)[:, None] @ keys.mT
    assert torch.allclose(
        correct_queries(LogitSums.of(inputs, keys, missing), 1e-9).float(), change, atol=1e-3
    )


def test_keys_and_inputs_that_all_prompts_share_are_expanded() -> None:
    inputs, keys, missing = random(1, 5, 4), random(2, 1, 6, 3), random(2, 1, 5, 6)
    once = LogitSums.of(inputs, keys, missing)
    twice = LogitSums.of(inputs.expand(2, -1, -1), keys, missing)
    assert once.count == twice.count == 2
    assert torch.equal(once.inputs, twice.inputs)
    assert torch.equal(once.errors, twice.errors)
