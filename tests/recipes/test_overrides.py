"""Recipes changed from text: each field by its name, and clear words for what is none."""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest

from saqsam.models.parts import FLOAT_PARTS, PAPER_PARTS
from saqsam.recipes.compensation import Compensation
from saqsam.recipes.methods import METHODS
from saqsam.recipes.overrides import with_overrides
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Clipping, Override, ProbabilitySpec, Reconstruction


def settings_of(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Dotted name and value of each field that can be set, from the types alone."""
    hints = get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        kinds = [
            kind
            for kind in (hints[field.name], *get_args(hints[field.name]))
            if dataclasses.is_dataclass(kind)
        ]
        if field.name in ("method", "version", "overrides", "extra"):
            continue
        if not kinds:
            yield field.name, value
        elif value is not None:
            for inner in dataclasses.fields(kinds[0]):
                yield f"{field.name}.{inner.name}", getattr(value, inner.name)


def other(value: Any, name: str) -> Any:
    """Another value that the field takes."""
    choices = {
        "weights.range": "min-max",
        "activations.range": "percentile",
        "probabilities.kind": "uniform",
        "probabilities.bits": 7,
        "probabilities.scale": "row",
        "probabilities.finest": 16,
        "equalization.layers": "normalizations",
        "equalization.groups": 4,
        "gelu": "log",
        "encoder_products": "float",
        "decoder_products": "float",
        "clipping.measure": "output",
        "reconstruction.unit": "block",
        "reconstruction.loss": "output",
        "reconstruction.target": "quantized",
        "reconstruction.precision": "bfloat16",
    }
    if name in choices:
        return choices[name]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value * 0.9


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read(recipe: Recipe, name: str) -> Any:
    value: Any = recipe
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_every_field_can_be_set_and_no_other_changes() -> None:
    recipe = recipe_for("saq-sam")
    names = [name for name, _ in settings_of(recipe)]
    assert len(names) == len(set(names)) > 30
    refused = {
        "weights.dynamic": "only activations",
        "activations.symmetric_bytes": "it is a field of weights",
    }
    groups = {"weights.group_size", "activations.group_size"}  # beside float activations alone
    for name, reason in refused.items():
        with pytest.raises(ValueError, match=f"{name} must be false: {reason}"):
            with_overrides(recipe, [f"{name}=true"])
    for name, value in settings_of(recipe):
        if name in refused or name in groups:
            continue
        wanted = other(value, name)
        # Clipping needs static ranges, and something to clip.
        base = (
            []
            if name not in ("activations.dynamic", "decoder_products")
            else ["clipping=none", "bimodal=false"]
        )
        before = with_overrides(recipe, base)
        changed = with_overrides(before, [f"{name}={as_text(wanted)}"])
        assert read(changed, name) == wanted != value
        assert type(read(changed, name)) is type(wanted)
        # Set back, all is as it was.
        back = with_overrides(changed, [f"{name}={'none' if value is None else as_text(value)}"])
        assert dataclasses.replace(back, method=before.method) == before, name


@pytest.mark.parametrize("group", sorted({*PAPER_PARTS, *(part.split(".")[0] for part in PAPER_PARTS)}))
def test_each_part_and_group_can_be_overridden(group: str) -> None:
    recipe = with_overrides(
        recipe_for("mse"), [f"overrides.{group}.weights=8", f"overrides.{group}.activations=6"]
    )
    assert recipe.overrides == {group: Override(8, 6)}
    again = with_overrides(recipe, [f"overrides.{group}.weights=none"])
    assert again.overrides == {group: Override(None, 6)}


@pytest.mark.parametrize("name", [*FLOAT_PARTS, "upscaling"])
def test_each_float_part_can_be_added_and_taken_away(name: str) -> None:
    added = with_overrides(recipe_for("mse"), [f"extra.{name}=7"])
    assert added.extra == {name: 7}
    assert with_overrides(added, [f"extra.{name}=none"]).extra == {}
    assert with_overrides(recipe_for("mse"), [f"extra.{name}=none"]).extra == {}


def test_parts_of_a_method_are_added_and_taken_away() -> None:
    plain = recipe_for("mse")
    added = with_overrides(plain, ["clipping=default", "reconstruction=default"])
    assert (added.clipping, added.reconstruction) == (Clipping(), Reconstruction())
    tuned = with_overrides(plain, ["clipping=default", "clipping.theta=0.3", "reconstruction=default"])
    assert tuned.clipping == Clipping(theta=0.3)
    assert with_overrides(plain, ["compensation=default"]).compensation == Compensation()
    assert with_overrides(recipe_for("saq-sam-plus"), ["compensation=none"]).compensation is None
    # `default` puts all of its fields back.
    assert with_overrides(tuned, ["clipping=default"]).clipping == Clipping()
    without = with_overrides(tuned, ["clipping=none", "reconstruction=none"])
    assert dataclasses.replace(without, method="mse") == plain


def test_settings_are_taken_one_after_another() -> None:
    recipe = with_overrides(recipe_for("mse"), ["weights.bits=3", " weights.bits = 5 ", "bimodal=true"])
    assert (recipe.weights.bits, recipe.bimodal) == (5, True)


@pytest.mark.parametrize("method", METHODS)
def test_a_changed_method_is_called_custom(method: str) -> None:
    recipe = recipe_for(method)
    assert with_overrides(recipe, []) is recipe
    once = with_overrides(recipe, ["calibration.images=4"])
    assert once.method == f"{method}-custom"
    assert with_overrides(once, ["calibration.images=5"]).method == f"{method}-custom"
    assert recipe == recipe_for(method)
    assert dataclasses.replace(once, method=method, calibration=recipe.calibration) == recipe


def test_the_first_recipe_stays_as_it_is() -> None:
    recipe = with_overrides(recipe_for("mse"), ["overrides.neck.weights=8", "extra.iou_head=8"])
    before = recipe.to_json()
    with_overrides(recipe, ["overrides.neck.weights=2", "extra.iou_head=2", "overrides.decoder.weights=8"])
    assert recipe.to_json() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights.bits", "an override must look like KEY=VALUE, got 'weights.bits'"),
        ("", "an override must look like KEY=VALUE, got ''"),
        ("weights.bit=4", "no recipe field 'weights.bit'; did you mean 'weights.bits'?"),
        ("weight.bits=4", "no recipe field 'weight.bits'; did you mean 'weights.bits'?"),
        ("bimodel=true", "no recipe field 'bimodel'; did you mean 'bimodal'?"),
        (
            "reconstruction.lost=output",
            "no recipe field 'reconstruction.lost'; did you mean 'reconstruction.loss'?",
        ),
        ("clipping.thetta=0.4", "no recipe field 'clipping.thetta'; did you mean 'clipping.theta'?"),
        (
            "overrides.nek.weights=8",
            "no recipe field 'overrides.nek.weights'; did you mean 'overrides.neck.weights'?",
        ),
        ("overrides.neck=8", "no recipe field 'overrides.neck'; did you mean"),
        ("extra.iouhead=8", "no recipe field 'extra.iouhead'; did you mean 'extra.iou_head'?"),
        ("weights=4", "no recipe field 'weights'"),
        ("version=2", "no recipe field 'version'"),
        ("method=mine", "no recipe field 'method'"),
        ("=4", "no recipe field ''; expected one of"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_right_one(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        with_overrides(recipe_for("saq-sam"), [text])


@pytest.mark.parametrize(
    "key", ["clipping.theta", "compensation.damping", "reconstruction.steps", "reconstruction.drop"]
)
def test_fields_of_what_a_method_lacks_are_refused_with_what_to_do(key: str) -> None:
    part = key.split(".")[0]
    message = rf"{re.escape(key)}: this method has no {part}; add it by {part}=default first"
    with pytest.raises(ValueError, match=message):
        with_overrides(recipe_for("mse"), [f"{key}=0.4"])
    with pytest.raises(ValueError, match=message):
        with_overrides(recipe_for("saq-sam"), [f"{part}=none", f"{key}=0.4"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights.bits=9", "bits must be an integer from 2 to 8, got 9"),
        ("weights.bits=four", "bits must be an integer from 2 to 8, got 'four'"),
        ("weights.bits=", "from 2 to 8, got ''"),
        ("weights.bits=none", "from 2 to 8, got None"),
        ("weights.bits=4.0", "from 2 to 8, got 4.0"),
        ("weights.bits=[4]", "from 2 to 8, got [4]"),
        ("weights.symmetric=yes", "symmetric must be true or false, got 'yes'"),
        ("weights.symmetric=True", "symmetric must be true or false, got 'True'"),
        ("activations.range=mean", "range must be one of min-max, percentile, mse, got 'mean'"),
        ("calibration.images=0", "images must be at least 1, got 0"),
        ("calibration.percentile=high", "percentile must be a number from 51 to 100, got 'high'"),
        ("clipping.theta=1.5", "theta must be a number from 0.001 to 0.999, got 1.5"),
        ("reconstruction.drop=NaN", "drop must be a number from 0 to 1, got nan"),
        ("reconstruction.loss=mse", "loss must be one of output, prompt, mask, got 'mse'"),
        (
            "clipping=true",
            "clipping must be none or default, got True; its fields are set by clipping.FIELD=VALUE",
        ),
        ("reconstruction=on", "reconstruction must be none or default, got 'on'"),
        ("overrides.neck.weights=16", "weights must be an integer from 2 to 8, got 16"),
        ("extra.iou_head=9", "extra.iou_head must be an integer from 2 to 8, got 9"),
        ("extra.upscaling.first=8", "no recipe field 'extra.upscaling.first'"),
        ("bimodal=1", "bimodal must be true or false, got 1"),
    ],
)
def test_values_that_do_not_fit_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        with_overrides(recipe_for("saq-sam"), [text])


def test_an_equals_sign_may_be_in_the_value() -> None:
    with pytest.raises(ValueError, match="got 'a=b'"):
        with_overrides(recipe_for("mse"), ["activations.range=a=b"])


def test_none_is_a_value_where_a_field_may_be_none() -> None:
    recipe = with_overrides(recipe_for("mse"), ["probabilities.bits=8", "probabilities.kind=log"])
    assert recipe.probabilities == ProbabilitySpec("log", 8)
    assert with_overrides(recipe, ["probabilities.bits=none"]).probabilities == ProbabilitySpec("log")
