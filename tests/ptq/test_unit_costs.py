"""Costs of reconstruction units: those that run, in the proportions of their work."""

import dataclasses

import pytest

from saqsam.ptq.pipeline import quantize
from saqsam.ptq.unit_costs import UnitCost, unit_costs
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.recipe import Recipe
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam import tiny_config, tiny_processor, tiny_sam


def costs_of(recipe: Recipe) -> dict[str, UnitCost]:
    return {unit.phase.partition(" ")[2]: unit for unit in unit_costs(tiny_config(), recipe)}


@pytest.mark.parametrize("method", ["saq-sam-plus", "brecq"])
def test_they_are_the_phases_that_run(method: str) -> None:
    recipe = tiny_recipe(method)
    totals: dict[str, int] = {}
    quantize(
        tiny_sam(),
        tiny_processor(),
        recipe,
        tiny_data(),
        progress=lambda phase, done, total, note="": totals.update({phase: total}),
    )
    units = unit_costs(tiny_config(), recipe)
    assert {unit.phase: unit.steps for unit in units} == {
        phase: total for phase, total in totals.items() if "/" in phase
    }
    assert all(unit.step > 0 for unit in units)
    assert all(unit.capture > 0 for unit in units)


def test_a_unit_costs_as_much_as_it_computes() -> None:
    prompt, output = costs_of(recipe_for("saq-sam")), costs_of(recipe_for("qdrop"))
    # Stages of two blocks, read by the decoder, against single blocks compared by their own output.
    assert prompt["encoder stage 1"].step > 2 * output["encoder block 1"].step
    # The neck is compared by its own output in both.
    assert prompt["neck"].step == output["neck"].step


def test_more_prompts_and_images_cost_more() -> None:
    recipe = recipe_for("saq-sam")
    assert recipe.reconstruction is not None
    fewer = dataclasses.replace(
        recipe,
        calibration=dataclasses.replace(recipe.calibration, images=recipe.calibration.images // 2),
        reconstruction=dataclasses.replace(recipe.reconstruction, prompts=1),
    )
    few, many = costs_of(fewer), costs_of(recipe)
    assert few["encoder stage 1"].capture <= many["encoder stage 1"].capture / 2
    assert few["decoder layer 1"].step < many["decoder layer 1"].step
