import dataclasses

import pytest

from saqsam.recipes.catalog import DEPLOY_TARGETS
from saqsam.recipes.deployment import REQUIREMENTS, deployable, substitutions
from saqsam.recipes.methods import METHODS
from saqsam.recipes.overrides import with_overrides
from saqsam.recipes.presets import recipe_for

ALL = ["weights.symmetric_bytes", "probabilities", "integer_biases", "encoder_products", "extra"]
ALL_OF_PLUS = [*ALL[:-1], "dynamic_queries", "separate_positions", ALL[-1]]


@pytest.mark.parametrize("method", list(METHODS))
def test_a_method_as_it_is_has_none(method: str) -> None:
    assert substitutions(recipe_for(method, "w4a8")) == []


@pytest.mark.parametrize("target", DEPLOY_TARGETS)
def test_deployable_sets_what_its_table_says_and_nothing_else(target: str) -> None:
    plain = recipe_for("saq-sam-plus", "w4a8")
    plain = dataclasses.replace(
        plain, clipping=None, activations=dataclasses.replace(plain.activations, symmetric=True)
    )
    deployed = deployable(plain, target)
    for requirement in REQUIREMENTS:
        expected = requirement.values.get(DEPLOY_TARGETS[target], requirement.read(plain))
        assert requirement.read(deployed) == expected, requirement.field
    outer = {requirement.field.partition(".")[0] for requirement in REQUIREMENTS}
    back = dataclasses.replace(
        deployed, method=plain.method, **{name: getattr(plain, name) for name in outer}
    )
    assert back == plain


def test_deployed_recipes_share_no_dictionary() -> None:
    one, other = deployable(recipe_for("mse", "w8a8")), deployable(recipe_for("mse", "w8a8"))
    assert one.extra == other.extra
    assert one.extra is not other.extra


def test_executorch_lists_what_float_products_leave_without_use() -> None:
    found = substitutions(deployable(recipe_for("saq-sam", "w4a8"), "executorch"))
    shown = {one.field: (one.method, one.used) for one in found}
    assert shown["clipping"] == ("default", "none")
    assert shown["bimodal"] == ("true", "false")
    assert shown["activations.dynamic"] == ("false", "true")
    assert "activations.symmetric" not in shown  # as the method has it
    with pytest.raises(ValueError, match="executorch runs activations of 8 bits, got 4; choose w4a8 or w8a8"):
        deployable(recipe_for("saq-sam", "w4a4"), "executorch")


@pytest.mark.parametrize("method", ["mse", "saq-sam-plus"])
def test_every_field_that_deployable_changes_is_named(method: str) -> None:
    plain = recipe_for(method, "w4a4")
    deployed = deployable(plain)
    found = substitutions(deployed)
    assert [one.field for one in found] == (ALL_OF_PLUS if method == "saq-sam-plus" else ALL)
    changed = {
        name
        for name, value in dataclasses.asdict(deployed).items()
        if value != dataclasses.asdict(plain)[name] and name != "method"
    }
    assert changed == {one.field.partition(".")[0] for one in found}
    by_field = {one.field: (one.method, one.used) for one in found}
    assert by_field["weights.symmetric_bytes"] == ("false", "true")
    assert by_field["probabilities"][1] == "uniform, 8 bits, scale=row"
    assert by_field["extra"][0] == "float"
    assert "iou_head 8 bits" in by_field["extra"][1]


def test_settings_take_part_and_take_back() -> None:
    one = with_overrides(recipe_for("mse", "w8a8"), ["integer_biases=true", "probabilities.scale=row"])
    assert [found.field for found in substitutions(one)] == ["probabilities", "integer_biases"]
    back = with_overrides(deployable(recipe_for("mse", "w8a8")), ["weights.symmetric_bytes=false"])
    assert back.method == "mse-deploy-custom"
    assert [found.field for found in substitutions(back)] == ALL[1:]


def test_a_method_of_another_version_has_nothing_to_be_compared_with() -> None:
    unknown = dataclasses.replace(deployable(recipe_for("mse", "w4a4")), method="newer-deploy")
    assert substitutions(unknown) == []
