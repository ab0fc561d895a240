"""Bits under a budget, from measured masks: on a tiny model."""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

import saqsam
from saqsam.allocation.budget import Budget
from saqsam.allocation.costs import bit_costs
from saqsam.allocation.errors import MaskErrors, RoundedModel
from saqsam.allocation.log import read_allocation
from saqsam.allocation.solver import InfeasibleError
from saqsam.convert.plan import plan_quantization
from saqsam.ptq.pipeline import prepare_run
from saqsam.recipes.deployment import deployable
from saqsam.report.log import read_log, write_log
from support.command_line import assert_done, assert_refused, run
from support.json_values import json_values
from support.tiny_quantized import assert_same_outputs, quantize_tiny, tiny_data, tiny_recipe
from support.tiny_sam import tiny_config, tiny_processor, tiny_sam

RECIPE = tiny_recipe("saq-sam-plus", reconstruction=None)
WIDTHS = {"weights": (3, 8), "activations": (3, 8)}


@pytest.fixture(scope="module")
def measured() -> tuple[RoundedModel, MaskErrors]:
    model = tiny_sam()
    plan = plan_quantization(model.config, RECIPE)
    model, images = prepare_run(model, tiny_processor(), plan, tiny_data(), RECIPE.calibration)
    rounded = RoundedModel(model, RECIPE, images, WIDTHS)
    return rounded, MaskErrors(rounded, images)


def test_nothing_rounded_is_no_error(measured: tuple[RoundedModel, MaskErrors]) -> None:
    assert measured[1].measure({}) == 0.0


def test_fewer_bits_are_a_larger_error_and_slots_are_empty_afterwards(
    measured: tuple[RoundedModel, MaskErrors],
) -> None:
    rounded, errors = measured
    operands = bit_costs(tiny_config(), RECIPE).operands
    few, many = ({operand: errors.measure({operand: bits}) for operand in operands} for bits in (3, 8))
    assert sum(few.values()) > 3 * sum(many.values()) > 0
    together = [errors.measure(dict.fromkeys(operands, bits)) for bits in (3, 8)]
    assert together[0] > 2 * together[1] > 0
    assert errors.measure({}) == 0.0
    assert not any("RoundedWeight" in type(module).__name__ for module in rounded.model.modules())


def test_everything_rounded_is_the_checkpoint_without_compensation_and_learning(
    measured: tuple[RoundedModel, MaskErrors],
) -> None:
    rounded, _ = measured
    eight = dataclasses.replace(
        RECIPE,
        weights=dataclasses.replace(RECIPE.weights, bits=8),
        activations=dataclasses.replace(RECIPE.activation_spec, bits=8),
        compensation=None,
    )
    operands = bit_costs(tiny_config(), RECIPE).operands
    with rounded.rounded(dict.fromkeys(operands, 8)) as model:
        assert_same_outputs(model, quantize_tiny(eight))


@pytest.fixture(scope="module")
def allocator() -> saqsam.BitAllocator:
    return saqsam.BitAllocator(tiny_sam(), tiny_processor(), RECIPE, tiny_data())


def test_the_budget_holds_and_repeats_to_the_bit() -> None:
    model, before = tiny_sam(), copy.deepcopy(tiny_sam().state_dict())
    recipe = tiny_recipe("min-max")
    first, second = (
        saqsam.allocate_bits(model, tiny_processor(), "4.6b", recipe, tiny_data()) for _ in range(2)
    )
    assert first == second
    assert first.log.mean_bits <= 4.6
    assert first.recipe.name.endswith("-mixed")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_more_bits_predict_less_loss_along_the_frontier(allocator: saqsam.BitAllocator) -> None:
    few, many = (allocator.allocate(Budget(bits=bits)).log for bits in (4.0, 6.0))
    assert many.predicted_loss < few.predicted_loss
    losses = [point.loss for point in few.frontier]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) > 3


def test_an_allocation_does_not_depend_on_those_before(allocator: saqsam.BitAllocator) -> None:
    first = allocator.allocate("4.4b")
    allocator.allocate("3.6b")
    assert allocator.allocate("4.4b") == first


def test_a_quantized_model_is_refused() -> None:
    with pytest.raises(ValueError, match="quantized already; allocate bits in the float model"):
        saqsam.BitAllocator(quantize_tiny(tiny_recipe()), tiny_processor(), RECIPE, tiny_data())


def test_a_limited_loss_takes_as_few_bits_as_it_allows(allocator: saqsam.BitAllocator) -> None:
    exact, rough = (allocator.allocate(Budget(loss=loss)).log for loss in (0.02, 0.1))
    assert exact.predicted_loss <= 0.02
    assert rough.predicted_loss <= 0.1
    assert rough.mean_bits < exact.mean_bits


def test_integer_kernels_keep_their_activation_bits() -> None:
    recipe = deployable(tiny_recipe("mse", "w4a8"))
    found = saqsam.allocate_bits(tiny_sam(), tiny_processor(), "w4.5b", recipe, tiny_data())
    assert found.log.mean_weight_bits <= 4.5
    assert {found.recipe.bits_of(error.part)[1] for error in found.log.errors} <= {8, None}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (saqsam.recipe_for("weight-only", "w4"), "leaves activations float"),
        (saqsam.recipe_for("mse", "w4a4-mixed"), "the recipe must have no overrides"),
    ],
)
def test_a_recipe_without_bits_to_choose_is_refused(recipe: saqsam.Recipe, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        saqsam.allocate_bits(tiny_sam(), tiny_processor(), "4b", recipe, tiny_data())


def test_a_budget_out_of_reach_is_refused_before_anything_is_measured() -> None:
    def progress(phase: str, done: int, total: int, note: str = "", /) -> None:
        raise AssertionError(phase)

    with pytest.raises(InfeasibleError, match="cannot be reached"):
        saqsam.allocate_bits(
            tiny_sam(), tiny_processor(), Budget(bytes=1000), RECIPE, tiny_data(), progress=progress
        )


def test_the_log_keeps_the_allocation(allocator: saqsam.BitAllocator, tmp_path: Path) -> None:
    found = allocator.allocate("5b")
    write_log(saqsam.QuantizationLog(), found.recipe, tmp_path, None, found)
    known = read_log(tmp_path)
    assert known is not None
    assert known.allocation == found.log


@settings(max_examples=200, derandomize=True)
@given(json_values)
def test_other_plain_values_are_no_log_and_refused_in_a_short_line(value: Any) -> None:
    with pytest.raises(ValueError, match=r"expected|cannot be") as caught:
        read_allocation(value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean_bits": -1}, "mean_bits cannot be -1"),
        ({"images": True}, "images cannot be True"),
        ({"frontier": 3}, "frontier cannot be 3"),
        ({"frontier": [{}]}, "FrontierPoint: expected"),
        ({"errors": [{"part": "tail", "kind": "weights", "bits": 4, "loss": 0.1}]}, "part cannot be 'tail'"),
        ({"errors": [{"part": "neck", "kind": "biases", "bits": 4, "loss": 0.1}]}, "kind cannot be 'biases'"),
        ({"errors": [{"part": "neck", "kind": "weights", "bits": 4, "loss": 1.5}]}, "loss cannot be 1.5"),
    ],
)
def test_a_damaged_log_is_refused(
    changes: dict[str, Any], message: str, allocator: saqsam.BitAllocator
) -> None:
    values = {**allocator.allocate("5b").log.to_dict(), **changes}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        read_allocation(values)


def test_the_command_allocates_and_packs(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    common = ["quantize", tiny, "--method", "min-max", "--images", "2", "--check", "none"]
    result = run(*common, "--out", out, "--budget", "w4.5b,a5b")
    assert_done(result)
    assert "before learning, masks differ" in result.output
    recipe = saqsam.recipe_of(saqsam.load(out)[0])
    assert recipe.name.endswith("-mixed")
    known = read_log(out)
    assert known is not None
    assert known.allocation is not None
    assert known.allocation.mean_weight_bits <= 4.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "4b", "--bits", "w4a4"], ["--budget and --bits both decide the bits"]),
        (
            ["--budget", "4b", "--set", "overrides.neck.weights=8"],
            ["--budget and --set overrides.neck.weights"],
        ),
        (["--budget", "many"], ["budget must look like 4.2b", "'many'"]),
        (["--budget", "1kB"], ["1 kB cannot be reached, at least"]),
        (
            ["--budget", "4b", "--method", "weight-only"],
            ["--budget chooses the bits of activations, too, but weight-only leaves them float"],
        ),
    ],
)
def test_the_command_refuses_in_one_line(
    tiny: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    result = run("quantize", tiny, "--out", tmp_path / "packed", "--images", "1", *options)
    assert_refused(result, *words)
    assert not (tmp_path / "packed").exists()
