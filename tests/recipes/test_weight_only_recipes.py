"""Recipes without activations: what they allow, and that the JSON of others stays what it was."""

import dataclasses
import json
from typing import Any

import pytest

from saqsam.recipes.methods import METHODS, weight_only
from saqsam.recipes.overrides import with_overrides
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Clipping, Override, QuantSpec, Reconstruction


@pytest.mark.parametrize("recipe", [weight_only(8), weight_only(4, 128)])
def test_they_round_trip_through_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(recipe.to_json())) == recipe
    assert not recipe.needs_calibration
    for part in ("encoder.qkv", "decoder.mlp", "neck"):
        assert recipe.bits_of(part) == (recipe.weights.bits, None)
    assert recipe.operand_bits("encoder.attention") is recipe.probability_bits("encoder.attention") is None


def test_other_parts_and_widths_can_be_added() -> None:
    recipe = with_overrides(
        recipe_for("weight-only", "w4"),
        ["weights.group_size=64", "extra.patch_embedding=8", "extra.iou_head=8", "overrides.neck.weights=8"],
    )
    assert recipe.weights.group_size == 64
    for part in ("iou_head", "patch_embedding", "neck"):
        assert recipe.bits_of(part) == (8, None)
    assert recipe.name == "weight-only-custom-w4-g64-mixed"


@pytest.mark.parametrize(
    "changes",
    [
        {"bimodal": True},
        {"equalized": True},
        {"balanced_heads": True},
        {"input_scales": True},
        {"integer_biases": True},
        {"clipping": Clipping()},
        {"reconstruction": Reconstruction()},
        {"overrides": {"neck": Override(activations=8)}},
    ],
)
def test_what_is_about_activations_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))}.*activations=none"):
        dataclasses.replace(weight_only(4), **changes)


@pytest.mark.parametrize("name", ["weights", "activations"])
def test_groups_are_for_weights_beside_float_activations(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}\.group_size needs activations=none"):
        dataclasses.replace(recipe_for("min-max", "w4a8"), **{name: QuantSpec(8, group_size=32)})  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_the_json_of_other_recipes_is_unchanged(method: str) -> None:
    stored = recipe_for(method, "w4a4").to_dict()
    fields = {"bits", "symmetric", "range", "dynamic", "symmetric_bytes"}
    assert set(stored["weights"]) == set(stored["activations"]) == fields
