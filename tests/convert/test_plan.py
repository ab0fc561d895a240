"""A plan lists exactly what a recipe quantizes."""

from dataclasses import replace

from saqsam.convert.plan import HEAD_CHANNELS, IMAGE_CHANNELS, LINEAR_CHANNELS
from saqsam.models.parts import CONVOLUTIONS
from saqsam.recipes.deployment import deployable
from saqsam.recipes.presets import recipe_for
from support.tiny_quantized import PARTS_OF_SAM, mixed_recipe, tiny_plan
from support.tiny_sam import tiny_sam


def test_every_planned_module_exists_once_a_model_is_prepared() -> None:
    plan = tiny_plan(mixed_recipe())
    modules = dict(tiny_sam().named_modules())
    assert all(weight.site.name in modules for weight in plan.weights)
    assert len({slot.name for slot in plan.slots}) == len(plan.slots)


def test_the_papers_recipe_plans_the_papers_parts() -> None:
    plan = tiny_plan(recipe_for("saq-sam", "w4a8"))
    assert {slot.part for slot in plan.slots} == set(PARTS_OF_SAM)
    assert {weight.bits for weight in plan.weights} == {4}
    assert {slot.bits for slot in plan.slots} == {8}
    assert plan.position_bits is None


def test_dynamic_slots_know_the_axis_of_their_channels() -> None:
    plan = tiny_plan(deployable(recipe_for("mse", "w8a8"), "executorch"))
    for slot in plan.slots:
        assert (slot.kind, slot.channel_axis) == (
            "dynamic",
            IMAGE_CHANNELS if slot.part in CONVOLUTIONS else LINEAR_CHANNELS,
        )


def test_dynamic_queries_are_the_queries_and_keys_of_image_to_token_attention() -> None:
    static = tiny_plan(replace(recipe_for("saq-sam-plus", "w4a4"), dynamic_queries=False))
    dynamic = tiny_plan(replace(static.recipe, dynamic_queries=True))
    for old, new in zip(static.slots, dynamic.slots, strict=True):
        operand = new.name.rpartition(".")[2]
        if new.part == "decoder.image_to_token" and operand in ("query_quantizer", "key_quantizer"):
            assert new == replace(old, kind="dynamic", channel_axis=HEAD_CHANNELS)
        else:
            assert new == old
    assert sum(slot.kind == "dynamic" for slot in dynamic.slots) == 2 * 2


def test_weight_only_recipes_plan_no_slots() -> None:
    plan = tiny_plan(recipe_for("weight-only", "w4"))
    assert plan.weights
    assert not plan.slots
