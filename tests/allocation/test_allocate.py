"""Bits under a budget, from measured masks: on a tiny model."""

import copy
from pathlib import Path

import pytest
import torch

import saqsam
from saqsam.allocation.budget import Budget
from saqsam.allocation.costs import Operand, bit_costs
from saqsam.allocation.errors import MaskErrors, RoundedModel
from saqsam.allocation.solver import InfeasibleError
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepared_copy
from saqsam.ptq.calibration_images import choose_calibration_images
from saqsam.recipes.deployment import deployable
from saqsam.report.log import read_log, write_log
from support.command_line import assert_done, assert_refused, run
from support.tiny_quantized import quantize_tiny, tiny_data, tiny_recipe
from support.tiny_sam import tiny_config, tiny_processor, tiny_sam

RECIPE = tiny_recipe("saq-sam-plus", reconstruction=None)
WIDTHS = {"weights": (3, 8), "activations": (3, 8)}


@pytest.fixture(scope="module")
def measured() -> tuple[RoundedModel, MaskErrors]:
    model, data, processor = tiny_sam(), tiny_data(), tiny_processor()
    plan = plan_quantization(model.config, RECIPE)
    images = choose_calibration_images(prepared_copy(model, plan), processor, data, RECIPE.calibration)
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


def test_rounded_weights_are_those_of_the_checkpoint(measured: tuple[RoundedModel, MaskErrors]) -> None:
    rounded, _ = measured
    packed = quantize_tiny(RECIPE, seed=0)
    site = plan_quantization(tiny_config(), RECIPE).weights[0].site
    assert not rounded.changes_encoder(Operand("decoder.mlp", "weights"))
    assert rounded.changes_encoder(Operand(site.part, "weights"))
    assert (
        packed.get_submodule(site.name).weight().shape == rounded.model.get_submodule(site.name).weight.shape
    )


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
        (["--budget", "1kB"], ["bytes of 1000 cannot be reached"]),
        (["--budget", "4b", "--method", "weight-only"], ["weight-only"]),
    ],
)
def test_the_command_refuses_in_one_line(
    tiny: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    result = run("quantize", tiny, "--out", tmp_path / "packed", "--images", "1", *options)
    assert_refused(result, *words)
    assert not (tmp_path / "packed").exists()
