"""The cost of bits is that of the checkpoint: bytes of its file, and the mean bits that `inspect` prints."""

from dataclasses import replace
from pathlib import Path

import pytest

from saqsam.allocation.allocate import with_bits
from saqsam.allocation.costs import BitCosts, Operand, bit_costs
from saqsam.analysis.inventory import take_inventory
from saqsam.checkpoint import save_checkpoint
from saqsam.recipes.deployment import deployable
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.recipe import Recipe
from support.tiny_quantized import quantize_tiny, tiny_recipe
from support.tiny_sam import tiny_config, tiny_processor

RECIPES = {
    "plain": tiny_recipe("mse"),
    "deployed": replace(deployable(tiny_recipe("mse", "w4a8")), extra={"iou_head": 8}),
}


def some_bits(costs: BitCosts, activations: int | None = None) -> dict[Operand, int]:
    """Different bits for different parts."""
    return {
        operand: activations if activations and operand.kind == "activations" else (3, 4, 5, 6, 8)[number % 5]
        for number, operand in enumerate(costs.operands)
    }


@pytest.mark.parametrize("name", RECIPES)
def test_bytes_and_mean_bits_are_those_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    costs = bit_costs(tiny_config(), recipe)
    bits = some_bits(costs, 8 if name == "deployed" else None)
    model = quantize_tiny(with_bits(recipe, bits, costs))
    save_checkpoint(model, tiny_processor(), tmp_path / "checkpoint")
    on_disk = (tmp_path / "checkpoint" / "model.safetensors").stat().st_size
    assert on_disk <= costs.bytes(bits) <= on_disk + 256  # digits of offsets
    name_of_checkpoint = take_inventory(model).name
    weights, activations = costs.mean_weight_bits(bits), costs.mean_activation_bits(bits)
    if name == "plain":  # a deployed one counts its 8-bit heads too
        assert name_of_checkpoint.endswith(f"-w{weights:.2f}a{activations:.2f}")


def test_every_operand_of_a_uniform_recipe_counts() -> None:
    costs = bit_costs(tiny_config(), recipe_for("saq-sam-plus", "w4a4"))
    assert Operand("encoder.attention", "activations") in costs.operands
    assert Operand("encoder.attention", "weights") not in costs.operands
    assert len(costs.operands) == 11 + 10
    for bits in (3, 8):
        everywhere = dict.fromkeys(costs.operands, bits)
        for mean in (costs.mean_bits, costs.mean_weight_bits, costs.mean_activation_bits):
            assert mean(everywhere) == pytest.approx(bits)


def test_float_products_have_no_bits() -> None:
    costs = bit_costs(tiny_config(), deployable(recipe_for("mse", "w4a8")))
    assert Operand("encoder.attention", "activations") not in costs.operands
    assert costs.mean_activation_bits(some_bits(costs, 8)) == 8


def test_allocated_bits_come_back_from_the_recipe() -> None:
    recipe = recipe_for("saq-sam-plus", "w4a4")
    costs = bit_costs(tiny_config(), recipe)
    bits = some_bits(costs)
    allocated = with_bits(recipe, bits, costs)
    for operand, width in bits.items():
        assert allocated.bits_of(operand.part)[operand.kind == "activations"] == width
    assert allocated.name.endswith("-mixed")
    assert Recipe.from_dict(allocated.to_dict()) == allocated


def test_uniform_bits_are_an_ordinary_recipe() -> None:
    recipe = recipe_for("ptq4sam-s", "w4a4")
    costs = bit_costs(tiny_config(), recipe)
    assert with_bits(recipe, dict.fromkeys(costs.operands, 6), costs) == recipe_for("ptq4sam-s", "w6a6")


def test_a_fixed_granularity_stays() -> None:
    recipe = recipe_for("repq-vit", "w4a4")
    costs = bit_costs(tiny_config(), recipe)
    assert with_bits(recipe, dict.fromkeys(costs.operands, 8), costs) == recipe_for("repq-vit", "w8a8")
