"""Recipes of RepQ-ViT, AdaLog and AHCPTQ, and the fields that came with them."""

import dataclasses
import json
from typing import Any

import pytest

from saqsam.models.parts import POST_GELU_PARTS
from saqsam.recipes.catalog import DEPLOY_TARGETS
from saqsam.recipes.deployment import check_uniform_inputs, deployable
from saqsam.recipes.later_fields import LATER_FIELDS, omit_defaults, restore_defaults
from saqsam.recipes.methods import METHODS
from saqsam.recipes.overrides import with_overrides
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.recipe import Equalization, ProbabilitySpec, QuantSpec, Recipe
from support.tiny_quantized import tiny_plan

NORMALIZATIONS = Equalization(layers="normalizations")
RIVALS = ("repq-vit", "adalog", "ahcptq-s", "ahcptq")
COMPENSATED = ("gptq", "erq", "car-sam-s", "car-sam")
TABLES = {"adalog": "log", "ahcptq-s": "hybrid", "ahcptq": "hybrid"}


def changes(base: str, method: str) -> dict[str, Any]:
    """Fields in which a method differs from another one."""
    a, b = recipe_for(base, "w4a6", "paper"), recipe_for(method, "w4a6", "paper")
    return {
        field.name: getattr(b, field.name)
        for field in dataclasses.fields(Recipe)
        if field.name != "method" and getattr(a, field.name) != getattr(b, field.name)
    }


def test_rivals_add_what_their_papers_do() -> None:
    assert changes("mse", "repq-vit") == {
        "equalized": True,
        "equalization": NORMALIZATIONS,
        "probabilities": ProbabilitySpec("log", finest=2, coarsest=2),
    }
    assert changes("mse", "adalog") == {"probabilities": ProbabilitySpec("log", finest=16), "gelu": "log"}
    assert changes("ptq4sam-s", "ahcptq-s") == {
        "equalized": True,
        "equalization": dataclasses.replace(NORMALIZATIONS, groups=4),
        "gelu": "hybrid",
    }
    assert changes("ptq4sam", "ahcptq") == changes("ptq4sam-s", "ahcptq-s")
    assert changes("ahcptq-s", "ahcptq") == changes("ptq4sam-s", "ptq4sam")


# ---- JSON


@pytest.mark.parametrize("method", [name for name in METHODS if name not in {*RIVALS, *COMPENSATED}])
def test_the_json_of_other_methods_has_none_of_the_fields(method: str) -> None:
    values = recipe_for(method).to_dict()
    assert not values.keys() & {"equalization", "gelu"}
    assert list(values["probabilities"]) == ["kind", "bits", "scale", "finest"]


@pytest.mark.parametrize("method", RIVALS)
def test_the_json_of_rivals_has_those_that_differ(method: str) -> None:
    recipe = recipe_for(method)
    values = json.loads(recipe.to_json())
    assert Recipe.from_dict(values) == recipe
    assert ("gelu" in values) == (method in TABLES)
    assert ("equalization" in values) == recipe.equalized
    assert ("coarsest" in values["probabilities"]) == (method == "repq-vit")


def test_defaults_are_omitted_and_restored() -> None:
    full = dataclasses.asdict(Recipe("x", QuantSpec(4), QuantSpec(4)))
    values = json.loads(json.dumps(full))
    omit_defaults(values)
    assert values.keys() == full.keys() - {
        "equalization",
        "gelu",
        "compensation",
        "dynamic_queries",
        "separate_positions",
    }
    restore_defaults(values)
    assert values == full
    values["equalization"]["groups"] = 3
    assert LATER_FIELDS["equalization"] == dataclasses.asdict(Equalization())


def test_the_fields_can_be_set_on_any_method() -> None:
    texts = [
        *("equalized=true", "equalization.layers=normalizations", "equalization.strength=0.5"),
        *("gelu=hybrid", "probabilities.kind=log", "probabilities.coarsest=2"),
    ]
    recipe = with_overrides(recipe_for("mse"), texts)
    assert recipe.equalization == Equalization("normalizations", strength=0.5)
    assert (recipe.gelu, recipe.probabilities.coarsest) == ("hybrid", 2)
    back = with_overrides(recipe, ["equalization.layers=all", "equalization.strength=1.0", "gelu=uniform"])
    assert not back.to_dict().keys() & {"equalization", "gelu"}
    assert with_overrides(recipe_for("mse"), ["equalization.groups=4"]).equalization.groups == 4
    with pytest.raises(ValueError, match=r"no recipe field 'equalization\.group'; did you mean"):
        with_overrides(recipe_for("mse"), ["equalization.group=4"])


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"equalization": {"layers": "some"}}, "layers must be one of all, normalizations, got 'some'"),
        ({"equalization": {"groups": 0}}, "groups must be at least 1, got 0"),
        ({"equalization": {"groups": 2.0}}, "groups must be an integer, got 2.0"),
        ({"equalization": {"strength": 1.5}}, "strength must be a number from 0 to 1, got 1.5"),
        ({"equalization": {"strength": 0.5, "groups": 4}}, "strength must be 1 with groups"),
        ({"equalization": {"alpha": 0.5}}, "equalization has no field 'alpha'"),
        ({"equalization": None}, "equalization must be a mapping, got NoneType"),
        ({"probabilities": {"coarsest": 3}}, "coarsest must be a power of 2 up to 32, got 3"),
        ({"probabilities": {"coarsest": 8}}, r"coarsest must be at most finest \(4\), got 8"),
        ({"gelu": "table"}, "gelu must be one of uniform, hybrid, log, got 'table'"),
        ({"gelu": None}, "gelu must be one of"),
        ({"gelu": "log", "activations": None}, "gelu must be uniform with float activations"),
        (
            {"gelu": "log", "activations": {"bits": 8, "dynamic": True}},
            r"gelu must be uniform with activations\.dynamic",
        ),
    ],
)
def test_impossible_fields_are_refused(change: dict[str, Any], message: str) -> None:
    values = {"method": "x", "weights": {"bits": 4}, "activations": {"bits": 4}, **change}
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict(values)


@pytest.mark.parametrize("target", DEPLOY_TARGETS)
@pytest.mark.parametrize("method", TABLES)
def test_tables_are_not_deployed(target: str, method: str) -> None:
    form = TABLES[method]
    with pytest.raises(ValueError, match=f"{target} multiplies uniform codes alone, .* gelu={form}: choose"):
        deployable(recipe_for(method, "w4a8"), target)
    check_uniform_inputs(recipe_for("repq-vit"), target)
    assert deployable(recipe_for("repq-vit", "w4a8"), target).equalization == NORMALIZATIONS


# ---- the plan


@pytest.mark.parametrize("method", [*TABLES, "repq-vit", "mse"])
def test_tables_are_planned_for_the_inputs_after_a_gelu_alone(method: str) -> None:
    plan = tiny_plan(recipe_for(method, "w4a6"))
    tables = [slot for slot in plan.slots if slot.kind == "table"]
    expected = [slot for slot in plan.slots if slot.part in POST_GELU_PARTS]
    assert len(expected) == len(plan.structure.blocks)
    assert all(slot.name.endswith("mlp.lin2.input_quantizer") and slot.bits == 6 for slot in expected)
    assert tables == (expected if method in TABLES else [])
