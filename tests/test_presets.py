"""Named methods and the spelling of bits."""

import dataclasses

import pytest

from saqsam.presets import METHODS, parse_bits, recipe_for
from saqsam.recipe import Calibration, QuantSpec, Recipe


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", ["w4a4", "w6a6", "w8a8", "w4a8", "w2a3"])
def test_methods_give_recipes_of_their_name_and_bits(method: str, bits: str) -> None:
    recipe = recipe_for(method, bits)
    assert recipe.name == f"{method}-{bits}"
    assert recipe.method == method
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    # Exactly the papers' tensor set, and their calibration.
    assert not recipe.overrides
    assert not recipe.extra
    assert not recipe.quantized_rel_pos_query
    assert recipe.calibration == Calibration(images=32, prompts=16, seed=0, percentile=99.99, power=2.4)


def test_the_methods_differ_in_their_ranges_alone() -> None:
    ranges = {method: (recipe_for(method).weights, recipe_for(method).activations) for method in METHODS}
    assert ranges == {
        "min-max": (QuantSpec(4, False, "min-max"), QuantSpec(4, False, "min-max")),
        "percentile": (QuantSpec(4, False, "min-max"), QuantSpec(4, False, "percentile")),
        "mse": (QuantSpec(4, False, "mse"), QuantSpec(4, False, "mse")),
    }
    fields = {f.name for f in dataclasses.fields(Recipe)} - {"method", "weights", "activations"}
    assert len({tuple(str(getattr(recipe_for(m), f)) for f in sorted(fields)) for m in METHODS}) == 1


def test_the_default_is_mse_at_four_bits() -> None:
    assert recipe_for() == METHODS["mse"](4, 4)


def test_every_method_says_what_it_is() -> None:
    assert all(function.__doc__ for function in METHODS.values())


@pytest.mark.parametrize(
    ("text", "bits"), [("w4a4", (4, 4)), ("w2a8", (2, 8)), ("W6A6", (6, 6)), (" w8a3\n", (8, 3))]
)
def test_bits_are_read(text: str, bits: tuple[int, int]) -> None:
    assert parse_bits(text) == bits


@pytest.mark.parametrize(
    "text", ["", "4", "w4", "a4", "a4w4", "w4a", "w4 a4", "w-4a4", "w4.5a4", "w4a4-mixed", "int4"]
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"bits must look like w4a4 \(weights 4, activations 4\), got"):
        parse_bits(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w1a4", "weight bits must be an integer from 2 to 8, got 1"),
        ("w4a1", "activation bits must be an integer from 2 to 8, got 1"),
        ("w16a16", "weight bits must be an integer from 2 to 8, got 16"),
        ("w4a0", "activation bits must be an integer from 2 to 8, got 0"),
        ("w4a99999999999999999999", "activation bits must be"),
    ],
)
def test_bits_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_bits(text)
    with pytest.raises(ValueError, match=message):
        recipe_for("mse", text)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("minmax", "no method 'minmax'; did you mean 'min-max'?"),
        ("percentil", "did you mean 'percentile'?"),
        ("MSE2", "no method 'MSE2'; there are min-max, percentile, mse"),
        ("", "there are min-max, percentile, mse"),
    ],
)
def test_unknown_methods_are_refused_with_the_nearest(method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        recipe_for(method)
