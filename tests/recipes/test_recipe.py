"""Recipes are data: they check themselves, survive JSON, and each of their fields does something."""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saqsam.checkpoint import checkpoint_tensors
from saqsam.models.parts import FLOAT_PARTS, PAPER_PARTS, PARTS
from saqsam.quant.ranges import RANGE_METHODS
from saqsam.recipes.recipe import (
    ATTENTION_PARTS,
    RECIPE_VERSION,
    Calibration,
    Clipping,
    Compensation,
    Equalization,
    Override,
    ProbabilitySpec,
    QuantSpec,
    Recipe,
    Reconstruction,
)
from support.tiny_quantized import outputs, quantize_tiny, tiny_data

bits = st.integers(2, 8)
some_bits = st.none() | bits
specs = st.builds(QuantSpec, bits=bits, symmetric=st.booleans(), range=st.sampled_from(RANGE_METHODS))
weight_specs = st.builds(dataclasses.replace, specs, symmetric_bytes=st.booleans())
shares = st.floats(0, 1)
clippings = st.builds(
    Clipping,
    theta=st.floats(0.001, 0.999),
    images=st.integers(1, 99),
    passes=st.integers(1, 9),
    include_range=st.booleans(),
    measure=st.sampled_from(["focus", "output"]),
)
reconstructions = st.builds(
    Reconstruction,
    unit=st.sampled_from(["block", "stage"]),
    loss=st.sampled_from(["output", "prompt", "mask"]),
    skip_layers=st.booleans(),
    target=st.sampled_from(["quantized", "float"]),
    scales=st.booleans(),
    drop=shares,
    steps=st.integers(1, 99),
    encoder_steps=st.floats(0.01, 10),
    decoder_steps=st.floats(0, 10),
    final_steps=st.integers(1, 9),
    prompts=st.integers(1, 99),
    rounding_rate=shares,
    scale_rate=shares,
    regularizer=shares,
    warmup=shares,
    token_weight=st.floats(0, 1000),
    affine=st.booleans(),
    affine_rate=shares,
    joint_steps=st.integers(0, 9),
)
prefixes = sorted({*PAPER_PARTS, *(part.split(".")[0] for part in PAPER_PARTS)})
recipes = st.builds(
    Recipe,
    method=st.from_regex(r"[a-z0-9][a-z0-9-]{0,8}", fullmatch=True),
    weights=weight_specs,
    activations=specs,
    probabilities=st.builds(
        ProbabilitySpec,
        kind=st.sampled_from(["uniform", "log"]),
        bits=some_bits,
        scale=st.sampled_from(["tensor", "row"]),
        finest=st.sampled_from([1, 2, 4, 8, 16, 32]),
    ),
    gelu=st.sampled_from(["uniform", "hybrid", "log"]),
    compensation=st.none() | st.builds(Compensation, rounding=st.booleans(), damping=st.floats(1e-6, 100)),
    equalized=st.booleans(),
    equalization=st.builds(
        Equalization,
        layers=st.sampled_from(["all", "normalizations"]),
        strength=shares,
    )
    | st.builds(Equalization, groups=st.none() | st.integers(1, 9)),
    balanced_heads=st.booleans(),
    input_scales=st.booleans(),
    bimodal=st.booleans(),
    clipping=st.none() | clippings,
    reconstruction=st.none() | reconstructions,
    overrides=st.dictionaries(
        st.sampled_from(prefixes), st.builds(Override, some_bits, some_bits), max_size=3
    ),
    extra=st.dictionaries(st.sampled_from(FLOAT_PARTS), bits, max_size=3),
    quantized_rel_pos_query=st.booleans(),
    calibration=st.builds(
        Calibration,
        images=st.integers(1, 99),
        prompts=st.integers(1, 99),
        seed=st.integers(0, 99),
        percentile=st.floats(51, 100),
        power=st.floats(0.5, 8),
    ),
)


def recipe(**changes: Any) -> Recipe:
    values = {"method": "min-max", "weights": QuantSpec(4), "activations": QuantSpec(6), **changes}
    return Recipe(**values)


# ---- JSON


@settings(max_examples=40, derandomize=True)
@given(made=recipes)
def test_json_gives_the_recipe_back(made: Recipe) -> None:
    text = made.to_json()
    again = Recipe.from_dict(json.loads(text))
    assert again == made
    assert again.to_json() == text
    assert (again.name, [again.bits_of(part) for part in PARTS]) == (
        made.name,
        [made.bits_of(part) for part in PARTS],
    )


def test_equal_recipes_give_equal_text_whatever_the_order() -> None:
    a = recipe(overrides={"neck": Override(8), "decoder": Override(2)}, extra={"iou_head": 8, "upscaling": 4})
    b = recipe(extra={"upscaling": 4, "iou_head": 8}, overrides={"decoder": Override(2), "neck": Override(8)})
    assert a == b
    assert a.to_json() == b.to_json()


def test_fields_that_are_left_out_get_their_defaults() -> None:
    made = Recipe.from_dict(
        {"method": "x", "weights": {"bits": 4}, "activations": {"bits": 5, "range": "min-max"}}
    )
    assert made == Recipe("x", QuantSpec(4), QuantSpec(5, range="min-max"))


@pytest.mark.parametrize(
    ("path", "key", "message"),
    [
        ((), "overides", "recipe has no field 'overides'; did you mean 'overrides'?"),
        (("weights",), "symetric", "weights has no field 'symetric'; did you mean 'symmetric'?"),
        (("activations",), "bit", "activations has no field 'bit'; did you mean 'bits'?"),
        (("calibration",), "image", "calibration has no field 'image'; did you mean 'images'?"),
        (("overrides", "neck"), "weight", "overrides.neck has no field 'weight'; did you mean 'weights'?"),
        ((), "zzz", "recipe has no field 'zzz'; expected one of method, weights, activations"),
        (("probabilities",), "kinds", "probabilities has no field 'kinds'; did you mean 'kind'?"),
        (("clipping",), "thetta", "clipping has no field 'thetta'; did you mean 'theta'?"),
        (("reconstruction",), "step", "reconstruction has no field 'step'; did you mean 'steps'?"),
        (
            ("extra",),
            "position_embeding",
            "no extra part 'position_embeding'; did you mean 'position_embedding'?",
        ),
        (("extra",), "neck", "no extra part 'neck'"),
        (("overrides",), "decoder.mpl", "no part 'decoder.mpl' to override; did you mean 'decoder.mlp'?"),
        (("overrides",), "upscaling", "no part 'upscaling' to override"),
        (("overrides",), "decod", "no part 'decod' to override; did you mean 'decoder'?"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_right_one(
    path: tuple[str, ...], key: str, message: str
) -> None:
    parts = {"clipping": Clipping(), "reconstruction": Reconstruction()}
    data = recipe(overrides={"neck": Override(weights=8)}, **parts).to_dict()
    target = data
    for step in path:
        target = target[step]
    target[key] = {"weights": 8} if path == ("overrides",) else 8
    with pytest.raises(ValueError, match=re.escape(message)):
        Recipe.from_dict(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": 4}, "weights must be a mapping, got int"),
        ({"weights": {}}, r"weights: .*missing.*'bits'"),
        ({"weights": {"bits": 9}}, "bits must be an integer from 2 to 8, got 9"),
        ({"activations": {"bits": 1}}, "from 2 to 8, got 1"),
        ({"activations": {"bits": "4"}}, "from 2 to 8, got '4'"),
        ({"activations": {"bits": 4.0}}, "from 2 to 8, got 4.0"),
        ({"activations": {"bits": True}}, "from 2 to 8, got True"),
        ({"activations": {"bits": 4, "symmetric": 1}}, "symmetric must be true or false, got 1"),
        (
            {"activations": {"bits": 4, "range": "mean"}},
            "range must be one of min-max, percentile, mse, got 'mean'",
        ),
        ({"activations": {"bits": 4, "range": ["mse"]}}, "range must be one of"),
        ({"overrides": ["neck"]}, "overrides must be a mapping, got list"),
        ({"overrides": {"neck": 8}}, "overrides.neck must be a mapping, got int"),
        ({"overrides": {"neck": {"weights": 16}}}, "weights must be an integer from 2 to 8, got 16"),
        ({"overrides": {"neck": {"activations": 0}}}, "activations must be an integer from 2 to 8, got 0"),
        ({"extra": 8}, "extra must be a mapping, got int"),
        ({"extra": {"iou_head": 16}}, r"extra\.iou_head must be an integer from 2 to 8, got 16"),
        ({"quantized_rel_pos_query": "no"}, "quantized_rel_pos_query must be true or false"),
        ({"method": "My Method"}, "method must be a name of small letters"),
        ({"method": 5}, "method must be a name"),
        (
            {"version": RECIPE_VERSION + 1},
            f"recipe version: .* reads {RECIPE_VERSION}, got {RECIPE_VERSION + 1}",
        ),
        ({"calibration": None}, "calibration must be a mapping, got NoneType"),
        ({"calibration": {"images": 0}}, "images must be at least 1, got 0"),
        ({"calibration": {"images": 2.5}}, "images must be an integer, got 2.5"),
        ({"calibration": {"prompts": 0}}, "prompts must be at least 1"),
        ({"calibration": {"seed": -1}}, "seed must not be negative, got -1"),
        ({"calibration": {"percentile": 50}}, "percentile must be a number from 51 to 100"),
        ({"calibration": {"percentile": 100.1}}, "percentile must be a number from 51 to 100"),
        ({"calibration": {"percentile": float("nan")}}, "percentile must be a number from 51 to 100"),
        ({"calibration": {"percentile": "99"}}, "percentile must be a number from 51 to 100, got '99'"),
        ({"calibration": {"power": 0.1}}, "power must be a number from 0.5 to 8"),
        ({"probabilities": None}, "probabilities must be a mapping, got NoneType"),
        ({"probabilities": {"kind": "log2"}}, "kind must be one of uniform, log, got 'log2'"),
        ({"probabilities": {"scale": "head"}}, "scale must be one of tensor, row, got 'head'"),
        ({"probabilities": {"finest": 3}}, "finest must be a power of 2 up to 32, got 3"),
        ({"probabilities": {"finest": 2.0}}, "finest must be an integer, got 2.0"),
        ({"probabilities": {"bits": 9}}, r"probabilities\.bits must be an integer from 2 to 8, got 9"),
        ({"bimodal": 1}, "bimodal must be true or false, got 1"),
        ({"clipping": True}, "clipping must be a mapping, got bool"),
        ({"clipping": {"theta": 0}}, r"theta must be a number from 0\.001 to 0\.999, got 0"),
        ({"clipping": {"theta": 1.0}}, "theta must be a number"),
        ({"clipping": {"theta": "0.5"}}, "theta must be a number from .*, got '0.5'"),
        ({"clipping": {"theta": float("nan")}}, "theta must be a number from .*, got nan"),
        ({"clipping": {"images": 0}}, "images must be at least 1, got 0"),
        ({"clipping": {"passes": 1.0}}, "passes must be an integer, got 1.0"),
        ({"clipping": {"include_range": "yes"}}, "include_range must be true or false, got 'yes'"),
        ({"clipping": {"measure": "mask"}}, "measure must be one of focus, output, got 'mask'"),
        ({"reconstruction": []}, "reconstruction must be a mapping, got list"),
        ({"reconstruction": {"unit": "layer"}}, "unit must be one of block, stage, got 'layer'"),
        ({"reconstruction": {"loss": "mse"}}, "loss must be one of output, prompt, mask, got 'mse'"),
        ({"reconstruction": {"target": None}}, "target must be one of quantized, float, got None"),
        ({"reconstruction": {"skip_layers": 0}}, "skip_layers must be true or false, got 0"),
        ({"reconstruction": {"scales": None}}, "scales must be true or false, got None"),
        ({"reconstruction": {"drop": 1.1}}, "drop must be a number from 0 to 1, got 1.1"),
        ({"reconstruction": {"drop": True}}, "drop must be a number from 0 to 1, got True"),
        ({"reconstruction": {"steps": 0}}, "steps must be at least 1, got 0"),
        ({"reconstruction": {"final_steps": 0}}, "final_steps must be at least 1"),
        (
            {"reconstruction": {"encoder_steps": -1}},
            "encoder_steps must be a number from 0 to 10, got -1",
        ),
        ({"reconstruction": {"prompts": -1}}, "prompts must be at least 1"),
        ({"reconstruction": {"rounding_rate": -1e-3}}, "rounding_rate must be a number from 0 to 1000"),
        (
            {"reconstruction": {"scale_rate": float("inf")}},
            "scale_rate must be a number from 0 to 1000, got inf",
        ),
        ({"reconstruction": {"regularizer": "0"}}, "regularizer must be a number"),
        ({"reconstruction": {"warmup": -0.1}}, "warmup must be a number from 0 to 1, got -0.1"),
        ({"reconstruction": {"token_weight": 1e4}}, "token_weight must be a number"),
        ({"reconstruction": {"joint_steps": 0.5}}, "joint_steps must be an integer"),
        ({"reconstruction": {"joint_steps": -1}}, "joint_steps must be a number from 0"),
        ({"separate_positions": None}, "separate_positions must be true or false, got None"),
        (
            {"separate_positions": True, "activations": None},
            "separate_positions must be unset with float activations",
        ),
        ({"dynamic_queries": 1}, "dynamic_queries must be true or false, got 1"),
        (
            {"dynamic_queries": True, "decoder_products": "float", "clipping": None},
            "dynamic_queries must be false with decoder_products=float",
        ),
        (
            {"dynamic_queries": True, "activations": None},
            "dynamic_queries must be unset with float activations",
        ),
    ],
)
def test_values_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict({**recipe().to_dict(), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"weights": 4},
        {"activations": {"bits": 4}},
        {"calibration": None},
        {"probabilities": None},
        {"bimodal": None},
        {"clipping": True},
        {"clipping": {"theta": 0.5}},
        {"reconstruction": Clipping()},
        {"overrides": {"neck": 8}},
        {"overrides": {"neck": {"weights": 8}}},
        {"overrides": None},
        {"extra": ["iou_head"]},
    ],
)
def test_wrong_types_are_refused_when_made_in_python_too(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        recipe(**change)


def test_recipes_are_frozen() -> None:
    made = recipe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.method = "mse"  # type: ignore[misc]


# ---- bits of parts


def test_without_overrides_the_papers_set_has_the_recipe_s_bits_and_the_rest_is_float() -> None:
    made = recipe()
    assert {made.bits_of(part) for part in PAPER_PARTS} == {(4, 6)}
    assert {made.bits_of(part) for part in FLOAT_PARTS} == {(None, None)}


def test_overrides_work_by_prefix_and_the_longest_match_wins() -> None:
    made = recipe(
        overrides={
            "decoder.mlp": Override(weights=2),
            "decoder": Override(weights=8, activations=8),
            "encoder.lin1": Override(activations=3),
        }
    )
    assert made.bits_of("decoder.self_attention") == (8, 8)
    assert made.bits_of("decoder.mlp") == (2, 8)  # None keeps what the shorter match says
    assert made.bits_of("encoder.lin1") == (4, 3)
    assert made.bits_of("encoder.lin2") == (4, 6)
    assert made.bits_of("neck") == (4, 6)


def test_probabilities_have_the_bits_of_their_part_s_activations_or_their_own() -> None:
    assert set(ATTENTION_PARTS) == {
        "encoder.attention",
        "decoder.self_attention",
        "decoder.token_to_image",
        "decoder.image_to_token",
        "decoder.final_attention",
    }
    overrides = {"decoder": Override(activations=8)}
    plain = recipe(overrides=overrides)
    own = recipe(overrides=overrides, probabilities=ProbabilitySpec("log", 5))
    for part in ATTENTION_PARTS:
        assert plain.probability_bits(part) == plain.bits_of(part)[1] == (8 if "decoder" in part else 6)
        assert own.probability_bits(part) == 5
        assert own.bits_of(part) == plain.bits_of(part)
    with pytest.raises(ValueError, match=r"no part 'attention'"):
        plain.probability_bits("attention")


def test_prefixes_end_at_dots() -> None:
    with pytest.raises(ValueError, match=r"no part 'encoder\.lin' to override"):
        recipe(overrides={"encoder.lin": Override(8)})


def test_embeddings_have_bits_for_weights_alone() -> None:
    made = recipe(extra=dict.fromkeys(FLOAT_PARTS, 8))
    assert {part: made.bits_of(part) for part in FLOAT_PARTS} == {
        "patch_embedding": (8, None),
        "position_embedding": (8, None),
        "upscaling.hidden": (8, 8),
        "upscaling.output": (8, 8),
        "hypernetworks": (8, 8),
        "iou_head": (8, 8),
    }


def test_a_part_that_the_papers_keep_float_can_be_addressed_by_its_prefix() -> None:
    made = recipe(extra={"upscaling": 6, "upscaling.output": 8})
    assert [made.bits_of(part)[0] for part in ("upscaling.hidden", "upscaling.output", "iou_head")] == [
        6,
        8,
        None,
    ]
    # Checkpoints from before the two parts were told apart.
    assert recipe(extra={"upscaling": 8}).bits_of("upscaling.output") == (8, 8)
    with pytest.raises(ValueError, match=r"no extra part 'upscaling\.out'"):
        recipe(extra={"upscaling.out": 8})


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no part 'decoder\.mpl'; did you mean 'decoder\.mlp'\?"):
        recipe().bits_of("decoder.mpl")


# ---- names


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "min-max-w4a6"),
        ({"method": "mse", "activations": QuantSpec(4)}, "mse-w4a4"),
        ({"extra": {"position_embedding": 8}}, "min-max-w4a6-mixed"),
        ({"overrides": {"neck": Override(weights=8)}}, "min-max-w4a6-mixed"),
        ({"overrides": {"neck": Override(activations=8)}}, "min-max-w4a6-mixed"),
        # An override that changes nothing makes nothing mixed.
        ({"overrides": {"neck": Override()}}, "min-max-w4a6"),
        ({"overrides": {"decoder": Override(weights=4, activations=6)}}, "min-max-w4a6"),
        ({"overrides": {"decoder": Override(8), "decoder.mlp": Override(4)}}, "min-max-w4a6-mixed"),
        ({"probabilities": ProbabilitySpec("log")}, "min-max-w4a6"),
        ({"probabilities": ProbabilitySpec("log", 6)}, "min-max-w4a6"),
        ({"probabilities": ProbabilitySpec("uniform", 8)}, "min-max-w4a6-mixed"),
        ({"bimodal": True, "clipping": Clipping(), "reconstruction": Reconstruction()}, "min-max-w4a6"),
    ],
)
def test_names_say_mixed_where_bits_differ(change: dict[str, Any], name: str) -> None:
    assert recipe(**change).name == name


# ---- every field does something


def clipped(**changes: Any) -> dict[str, Any]:
    return {"clipping": Clipping(**{"passes": 1, **changes}), "calibration": Calibration(images=2, prompts=1)}


# Little is learned, but at rates at which each step shows.
LEARNED = Reconstruction(
    steps=2, final_steps=1, prompts=2, rounding_rate=0.3, scale_rate=0.02, regularizer=1.0, warmup=0.0
)


def learned(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"reconstruction": LEARNED}, {"reconstruction": dataclasses.replace(LEARNED, **changes)}


def compensated(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    images = {"calibration": Calibration(images=2, prompts=2)}
    return {"compensation": Compensation(), **images}, {"compensation": Compensation(**changes)}


def equalized(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"equalized": True}, {"equalization": Equalization(**changes)}


MSE_WEIGHTS = {"weights": QuantSpec(4, range="mse")}
BY_PERCENTILE = {"activations": QuantSpec(8, range="percentile")}
# Field -> (what both recipes have, what the second one has instead).
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "weights.bits": ({}, {"weights": QuantSpec(5, range="min-max")}),
    "weights.symmetric_bytes": (
        {"weights": QuantSpec(8, range="min-max")},
        {"weights": QuantSpec(8, range="min-max", symmetric_bytes=True)},
    ),
    "weights.symmetric": ({}, {"weights": QuantSpec(4, True, "min-max")}),
    "weights.range": ({}, MSE_WEIGHTS),
    "activations.bits": ({}, {"activations": QuantSpec(7, range="min-max")}),
    "activations.symmetric": ({}, {"activations": QuantSpec(8, True, "min-max")}),
    "activations.range": ({}, BY_PERCENTILE),
    "activations.dynamic": ({}, {"activations": QuantSpec(8, range="min-max", dynamic=True)}),
    "overrides.weights": ({}, {"overrides": {"neck": Override(weights=5)}}),
    "overrides.activations": ({}, {"overrides": {"neck": Override(activations=5)}}),
    "extra": ({}, {"extra": {"upscaling": 8}}),
    "dynamic_queries": ({}, {"dynamic_queries": True}),
    "separate_positions": ({}, {"separate_positions": True}),
    "quantized_rel_pos_query": ({}, {"quantized_rel_pos_query": True}),
    "encoder_products": ({}, {"encoder_products": "float"}),
    "decoder_products": ({}, {"decoder_products": "float"}),
    "integer_biases": ({}, {"integer_biases": True}),
    "calibration.images": ({}, {"calibration": Calibration(images=2, prompts=2)}),
    "calibration.prompts": ({}, {"calibration": Calibration(images=1, prompts=1)}),
    "calibration.seed": ({}, {"calibration": Calibration(images=1, prompts=2, seed=1)}),
    "calibration.percentile": (
        BY_PERCENTILE,
        {"calibration": Calibration(images=1, prompts=2, percentile=99.0)},
    ),
    "calibration.power": (MSE_WEIGHTS, {"calibration": Calibration(images=1, prompts=2, power=1.0)}),
    "probabilities.kind": ({}, {"probabilities": ProbabilitySpec("log")}),
    "probabilities.bits": ({}, {"probabilities": ProbabilitySpec(bits=6)}),
    "probabilities.scale": ({}, {"probabilities": ProbabilitySpec(scale="row")}),
    "probabilities.finest": (
        {"probabilities": ProbabilitySpec("log", 8, finest=1)},
        {"probabilities": ProbabilitySpec("log", 8, finest=32)},
    ),
    "probabilities.coarsest": (
        {"probabilities": ProbabilitySpec("log", 3, finest=4)},
        {"probabilities": ProbabilitySpec("log", 3, finest=4, coarsest=4)},
    ),
    "gelu": ({}, {"gelu": "hybrid"}),
    "equalized": ({}, {"equalized": True}),
    "equalization.layers": equalized(layers="normalizations"),
    "equalization.groups": equalized(groups=2),
    "equalization.strength": equalized(strength=0.5),
    "balanced_heads": ({}, {"balanced_heads": True}),
    "input_scales": ({}, {"input_scales": True}),
    "bimodal": ({}, {"bimodal": True}),
    "clipping": ({}, {"clipping": Clipping(passes=1)}),
    "clipping.theta": (clipped(), clipped(theta=0.2)),
    "clipping.images": (clipped(), clipped(images=2)),
    "clipping.passes": (clipped(), clipped(passes=2)),
    "clipping.include_range": (clipped(), clipped(include_range=True)),
    "clipping.measure": (clipped(), clipped(measure="output")),
    "compensation": ({}, {"compensation": Compensation()}),
    "compensation.layers": compensated(layers="decoder"),
    "compensation.rounding": compensated(rounding=False),
    "compensation.inputs": compensated(inputs=False),
    "compensation.queries": compensated(queries=True),
    "compensation.target": compensated(target="float"),
    "compensation.damping": compensated(damping=1.0),
    "compensation.images": compensated(images=1),
    "compensation.tokens": compensated(tokens=1),
    "compensation.prompts": compensated(prompts=1),
    "reconstruction": ({}, {"reconstruction": LEARNED}),
    "reconstruction.unit": learned(unit="block"),
    "reconstruction.loss": learned(loss="output"),
    "reconstruction.skip_layers": learned(skip_layers=False),
    "reconstruction.target": learned(target="float"),
    "reconstruction.scales": learned(scales=False),
    "reconstruction.drop": learned(drop=0.0),
    "reconstruction.steps": learned(steps=3),
    "reconstruction.encoder_steps": learned(encoder_steps=2.0),
    "reconstruction.decoder_steps": learned(decoder_steps=2.0),
    "reconstruction.final_steps": learned(final_steps=2),
    "reconstruction.prompts": learned(prompts=1),
    "reconstruction.rounding_rate": learned(rounding_rate=0.1),
    "reconstruction.scale_rate": learned(scale_rate=0.01),
    "reconstruction.regularizer": learned(regularizer=0.01),
    "reconstruction.warmup": learned(warmup=1.0),
    "reconstruction.token_weight": learned(token_weight=1.0),
    "reconstruction.affine": learned(affine=True),
    "reconstruction.affine_rate": (
        {"reconstruction": dataclasses.replace(LEARNED, affine=True)},
        {"reconstruction": dataclasses.replace(LEARNED, affine=True, affine_rate=0.1)},
    ),
    "reconstruction.joint_steps": learned(joint_steps=2),
    "reconstruction.precision": learned(precision="bfloat16"),
}
# These have their own tests: the name, the version, of which there is one, and what weights or activations cannot be.
TESTED_ELSEWHERE = {
    *("method", "version", "weights.dynamic", "activations.symmetric_bytes"),
    # Weight-only quantization: tests/checkpoint/test_weight_only.py.
    *("activations", "activations.group_size", "weights.group_size"),
}


def leaves(kind: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, into the dataclasses among their types."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        inner = [part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)]
        if not inner or type(None) in get_args(hint):
            yield prefix + field.name  # being there at all is a choice too
        for part in inner:
            yield from leaves(part, f"{prefix}{field.name}.")  # type: ignore[arg-type]


def test_every_field_of_a_recipe_is_among_those_tested() -> None:
    assert set(leaves(Recipe)) == set(CHANGES) | TESTED_ELSEWHERE


def observable(made: Recipe) -> dict[str, torch.Tensor]:
    model = quantize_tiny(made, tiny_data(3))
    return {**checkpoint_tensors(model), **outputs(model)}


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, torch.Tensor]]:
    """What recipes that serve as a base give, by their JSON."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_something_observable(
    name: str, results: dict[str, dict[str, torch.Tensor]]
) -> None:
    common, change = CHANGES[name]
    plain = {
        "weights": QuantSpec(4, range="min-max"),
        "activations": QuantSpec(8, range="min-max"),
        "calibration": Calibration(images=1, prompts=2),
    }
    base = recipe(**{**plain, **common})
    changed = recipe(**{**plain, **common, **change})
    assert base != changed
    if base.to_json() not in results:
        results[base.to_json()] = observable(base)
    before, after = results[base.to_json()], observable(changed)
    same_tensors = before.keys() == after.keys() and all(
        torch.equal(before[key], after[key]) for key in before
    )
    assert not same_tensors
    assert not torch.equal(before["box_masks"], after["box_masks"])
