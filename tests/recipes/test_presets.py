"""Named methods and the spelling of bits."""

import dataclasses
import itertools
from typing import Any

import pytest

from saqsam.models.parts import FLOAT_PARTS, PAPER_PARTS
from saqsam.recipes.catalog import EFFORTS, METHOD_SUMMARIES, WEIGHT_ONLY
from saqsam.recipes.deployment import deployable
from saqsam.recipes.methods import METHODS
from saqsam.recipes.presets import parse_bits, recipe_for, resolve_effort, with_effort
from saqsam.recipes.recipe import Calibration, Clipping, ProbabilitySpec, QuantSpec, Recipe, Reconstruction

FIXED = {"reconstruction.steps", "reconstruction.rounding_rate"}
"""What is a matter of effort and not of method."""


def fields(recipe: Recipe) -> dict[str, Any]:
    """All that makes a method what it is, by dotted name."""
    found: dict[str, Any] = {}
    for name, value in recipe.to_dict().items():
        if name in ("clipping", "compensation", "reconstruction"):
            found[name] = value is not None
        if isinstance(value, dict):
            found |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif name not in ("method", "clipping", "reconstruction"):
            found[name] = value
    return {name: value for name, value in found.items() if name not in FIXED}


def differences(one: str, other: str) -> dict[str, tuple[Any, Any]]:
    a, b = fields(recipe_for(one)), fields(recipe_for(other))
    return {name: (a.get(name), b.get(name)) for name in sorted({*a, *b}) if a.get(name) != b.get(name)}


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


def test_there_are_eighteen_methods_and_no_two_are_one() -> None:
    assert list(METHODS) == [
        "min-max",
        "percentile",
        "mse",
        "brecq",
        "qdrop",
        "repq-vit",
        "adalog",
        "gptq",
        "erq",
        "ptq4sam-s",
        "ptq4sam",
        "ahcptq-s",
        "ahcptq",
        "car-sam-s",
        "car-sam",
        "saq-sam-s",
        "saq-sam",
        "saq-sam-plus",
    ]
    assert all(differences(a, b) for a, b in itertools.combinations(METHODS, 2))


def test_statistics_differ_in_their_ranges_alone() -> None:
    ranges = ("min-max", "percentile", "mse")
    assert {m: (recipe_for(m).weights, recipe_for(m).activations) for m in ranges} == {
        "min-max": (QuantSpec(4, False, "min-max"), QuantSpec(4, False, "min-max")),
        "percentile": (QuantSpec(4, False, "min-max"), QuantSpec(4, False, "percentile")),
        "mse": (QuantSpec(4, False, "mse"), QuantSpec(4, False, "mse")),
    }
    for a, b in itertools.combinations(ranges, 2):
        assert set(differences(a, b)) <= {"weights.range", "activations.range"}


def test_methods_differ_in_what_their_papers_add() -> None:
    learned = {name for name in fields(recipe_for("saq-sam")) if name.startswith("reconstruction")}
    assert differences("brecq", "qdrop") == {
        "reconstruction.scales": (False, True),
        "reconstruction.drop": (1.0, 0.5),
    }
    assert set(differences("mse", "qdrop")) == learned
    assert differences("mse", "ptq4sam-s") == {
        "bimodal": (False, True),
        "probabilities.kind": ("uniform", "log"),
    }
    assert differences("qdrop", "ptq4sam") == differences("mse", "ptq4sam-s")
    assert set(differences("ptq4sam-s", "ptq4sam")) == learned
    assert recipe_for("saq-sam-s").clipping == Clipping(theta=0.5, images=1, passes=2, include_range=False)
    assert dataclasses.replace(recipe_for("saq-sam-s"), clipping=None, method="ptq4sam-s") == recipe_for(
        "ptq4sam-s"
    )
    assert set(differences("saq-sam-s", "saq-sam")) == learned
    clipping = {name for name in fields(recipe_for("saq-sam")) if name.startswith("clipping")}
    assert set(differences("ptq4sam", "saq-sam")) - clipping == {
        f"reconstruction.{name}" for name in ("unit", "loss")
    }
    changes = differences("saq-sam", "saq-sam-plus")
    compensation = {name for name in changes if name.startswith("compensation")}
    assert {name: change for name, change in changes.items() if name not in compensation} == {
        "equalized": (False, True),
        "balanced_heads": (False, True),
        "input_scales": (False, True),
        "probabilities.scale": ("tensor", "row"),
        "dynamic_queries": (None, True),
        "separate_positions": (None, True),
        "clipping.images": (1, 4),
        "clipping.include_range": (False, True),
        "clipping.measure": ("focus", "output"),
        "reconstruction.affine": (False, True),
        "reconstruction.encoder_steps": (1.0, 0),
        "reconstruction.decoder_steps": (None, 0),
        "reconstruction.joint_steps": (0, 4),
    }


def test_the_paper_s_numbers() -> None:
    learned = recipe_for("saq-sam", effort="paper").reconstruction
    assert learned == Reconstruction(
        unit="stage",
        loss="prompt",
        skip_layers=True,
        target="float",
        scales=True,
        drop=0.5,
        steps=2000,
        final_steps=5,
        rounding_rate=1e-3,
        scale_rate=2e-3,
        regularizer=1.0,
        warmup=0.2,
        token_weight=0.01,
    )


def test_the_default_is_saq_sam_plus_at_four_bits_with_standard_effort() -> None:
    assert recipe_for() == recipe_for("saq-sam-plus", "w4a4", "standard")
    assert (
        dataclasses.replace(METHODS["saq-sam-plus"](4, 4), reconstruction=recipe_for().reconstruction)
        == recipe_for()
    )


@pytest.mark.parametrize("method", METHODS)
def test_effort_is_steps_and_what_goes_with_them_and_nothing_else(method: str) -> None:
    recipes = {effort: recipe_for(method, effort=effort) for effort in EFFORTS}
    if recipes["quick"].reconstruction is None:
        assert len({recipe.to_json() for recipe in recipes.values()}) == 1
        return
    steps = []
    for effort, recipe in recipes.items():
        learned = recipe.reconstruction
        assert learned is not None
        assert {name: getattr(learned, name) for name in EFFORTS[effort]} == EFFORTS[effort]
        of_effort = dataclasses.replace(learned, **EFFORTS["paper"])
        assert dataclasses.replace(recipe, reconstruction=of_effort) == recipes["paper"]
        assert recipe.name == f"{method}-w4a4"
        steps.append(learned.steps)
        assert with_effort(recipe, "quick") == recipes["quick"]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("method", [name for name in METHODS if recipe_for(name).gelu == "uniform"])
@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
def test_what_is_deployable_has_signed_bytes_integer_biases_and_row_scaled_probabilities(
    method: str, bits: str
) -> None:
    recipe = recipe_for(method, bits)
    made = deployable(recipe)
    assert made.weights == dataclasses.replace(recipe.weights, symmetric_bytes=True)
    assert [made.weights.is_symmetric(bits) for bits in (4, 7, 8)] == [False, False, True]
    assert made.probabilities == ProbabilitySpec("uniform", 8, scale="row")
    assert made.integer_biases
    assert set(made.extra) == set(FLOAT_PARTS) - {"upscaling.output"}
    kept = {"method": recipe.method, "weights": recipe.weights, "probabilities": recipe.probabilities}
    kept |= {"integer_biases": False, "encoder_products": "quantized", "extra": {}}
    kept |= {name: getattr(recipe, name) for name in ("dynamic_queries", "separate_positions")}
    assert dataclasses.replace(made, **kept) == recipe
    # Float products in the encoder make it a mixture, and the name says so.
    assert made.name == f"{method}-deploy-{bits}-mixed"
    assert Recipe.from_dict(made.to_dict()) == made


def test_every_method_says_what_it_is() -> None:
    assert all(function.__doc__ for function in METHODS.values())
    assert METHOD_SUMMARIES.keys() == {*METHODS, WEIGHT_ONLY}
    assert all(METHOD_SUMMARIES.values())


@pytest.mark.parametrize(
    ("text", "bits"), [("w4a4", (4, 4)), ("w2a8", (2, 8)), ("W6A6", (6, 6)), (" w8a3\n", (8, 3))]
)
def test_bits_are_read(text: str, bits: tuple[int, int]) -> None:
    assert parse_bits(text) == bits


def test_mixed_bits_keep_the_decoder_at_eight() -> None:
    recipe = recipe_for("saq-sam-plus", "w4a5-mixed")
    assert recipe.name == "saq-sam-plus-w4a5-mixed"
    for part in PAPER_PARTS:
        assert recipe.bits_of(part) == ((8, 8) if part.startswith("decoder.") else (4, 5))
    assert recipe.probabilities.finest == recipe_for("saq-sam-plus", "w8a8").probabilities.finest
    assert recipe_for("mse", "W3A4-MIXED").bits_of("neck") == (3, 4)


def test_mixed_bits_need_little_learning() -> None:
    assert resolve_effort("saq-sam-plus", "w4a4-mixed")[0] == "quick"
    assert resolve_effort("saq-sam-plus", "w3a4-mixed")[0] == "standard"
    assert resolve_effort("mse", "w4a4-mixed")[0] is None


@pytest.mark.parametrize("text", ["w4-mixed", "mixed", "w4a4mixed", "w4a4-mixed-mixed"])
def test_other_spellings_of_mixed_bits_are_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match=rf"bits must look like w4a4 \(weights 4, activations 4\), got '{text}'"
    ):
        recipe_for("mse", text)


@pytest.mark.parametrize(
    "text", ["", "4", "a4", "a4w4", "w4a", "w4 a4", "w-4a4", "w4.5a4", "w4a4-mixed", "int4"]
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"bits must look like w4a4 \(weights 4, activations 4\), got"):
        parse_bits(text)


@pytest.mark.parametrize("text", ["w4", "w4g128", "W8"])
def test_bits_without_activations_name_the_method_that_takes_them(text: str) -> None:
    message = f"expected bits wXaY, such as w4a8, got '{text}'; for weight-only quantization, add --method weight-only"
    with pytest.raises(ValueError, match=f"^{message}$"):
        recipe_for("mse", text)


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
        ("saqsam", "did you mean 'saq-sam'?"),
        ("MSE2", "no method 'MSE2'; expected one of min-max, percentile, mse, brecq, qdrop"),
        ("", "expected one of min-max, percentile, mse"),
    ],
)
def test_unknown_methods_are_refused_with_the_nearest(method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        recipe_for(method)


@pytest.mark.parametrize("method", ["mse", "saq-sam"])
def test_unknown_efforts_are_refused_with_the_nearest(method: str) -> None:
    with pytest.raises(ValueError, match=r"no effort 'standart'; did you mean 'standard'\?"):
        recipe_for(method, effort="standart")


def test_bits_default_to_four() -> None:
    assert recipe_for("mse") == recipe_for("mse", "w4a4")
    assert recipe_for("weight-only") == recipe_for("weight-only", "w4")


@pytest.mark.parametrize(
    ("method", "bits", "effort", "why"),
    [
        ("saq-sam-plus", None, "standard", "w4a4: "),
        ("saq-sam", "w4a8", "standard", "w4a8: "),
        ("brecq", "W8A4", "standard", "w8a4: "),
        ("qdrop", "w6a6", "quick", "w6a6: "),
        ("ptq4sam", "w8a8", "quick", "w8a8: "),
        ("mse", "w8a8", None, "mse learns nothing"),
        (WEIGHT_ONLY, "w4g128", None, "weight-only learns nothing"),
    ],
)
def test_the_effort_auto_depends_on_method_and_bits(
    method: str, bits: str | None, effort: str | None, why: str
) -> None:
    resolved, reason = resolve_effort(method, bits)
    assert resolved == effort
    assert reason.startswith(why)
    assert recipe_for(method, bits) == recipe_for(method, bits, "auto")
    # What is stored, and what a resumed run is compared by, are the resolved steps.
    assert recipe_for(method, bits) == recipe_for(method, bits, effort or "quick")
    assert "auto" not in str(recipe_for(method, bits).to_dict())


@pytest.mark.parametrize(
    ("method", "bits", "why"),
    [
        ("sak-sam", "w4a4", "did you mean 'saq-sam'"),
        ("mse", "4", "like w4a4"),
        (WEIGHT_ONLY, "w4a4", "like w4"),
    ],
)
def test_the_effort_auto_of_unknown_methods_and_bits_is_refused(method: str, bits: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        resolve_effort(method, bits)


@pytest.mark.parametrize("method", ["saq-sam", "mse", WEIGHT_ONLY])
def test_an_unknown_effort_is_refused_for_every_method(method: str) -> None:
    with pytest.raises(ValueError, match="no effort 'quik'; did you mean 'quick'"):
        recipe_for(method, effort="quik")
