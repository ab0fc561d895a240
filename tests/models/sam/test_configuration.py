"""Validation of `config.json`."""

import copy
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import SamConfig, SamModel

from saqsam.models.limits import ACTIVATIONS, MAX_PARAMETERS
from saqsam.models.sam.configuration import (
    check_sam_config,
    count_parameters,
    parse_sam_config,
    sam_fields,
)
from saqsam.utils.errors import MAX_MESSAGE_LENGTH, CheckpointError
from support.json_values import is_short_line, json_values
from support.tiny_sam import tiny_config, tiny_sam

PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
RAW: dict[str, Any] = json.loads(tiny_config().to_json_string(use_diff=False))
PATHS = [(part, name) for part in PARTS for name in RAW[part]]


def changed(part: str, **values: object) -> dict[str, Any]:
    raw = copy.deepcopy(RAW)
    raw[part].update(values)
    return raw


def test_configuration_survives_parsing() -> None:
    config = parse_sam_config(RAW, "config.json")
    assert sam_fields(config) == sam_fields(tiny_config())
    with_defaults = parse_sam_config({"model_type": "sam"}, "config.json")
    assert sam_fields(with_defaults) == sam_fields(SamConfig())


def test_fields_are_plain_json_and_fixed() -> None:
    fields = sam_fields(tiny_config())
    assert json.loads(json.dumps(fields)) == fields
    raw = RAW | {"id2label": {"0": "a"}, "_name_or_path": "b", "architectures": ["C"]}
    raw["vision_config"] = raw["vision_config"] | {"attention_dropout": 0.5, "initializer_range": 3}
    assert sam_fields(parse_sam_config(raw, "")) == fields


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("vision_config", {"layer_norm_eps": 1e-5}),
        ("vision_config", {"hidden_act": "relu"}),
        ("vision_config", {"window_size": 4}),
        ("vision_config", {"global_attn_indexes": [1]}),
        ("vision_config", {"num_attention_heads": 4}),
        ("vision_config", {"mlp_dim": 60}),
        ("vision_config", {"use_abs_pos": False}),
        ("vision_config", {"use_rel_pos": False}),
        ("vision_config", {"qkv_bias": False}),
        ("prompt_encoder_config", {"layer_norm_eps": 1e-5}),
        ("prompt_encoder_config", {"hidden_act": "relu"}),
        ("mask_decoder_config", {"layer_norm_eps": 1e-5}),
        ("mask_decoder_config", {"hidden_act": "gelu"}),
        ("mask_decoder_config", {"num_attention_heads": 8}),
        ("mask_decoder_config", {"attention_downsample_rate": 1}),
        ("mask_decoder_config", {"iou_head_depth": 2}),
        ("mask_decoder_config", {"num_multimask_outputs": 5}),
    ],
)
def test_fields_tell_models_apart(part: str, values: dict[str, object]) -> None:
    assert sam_fields(parse_sam_config(changed(part, **values), "")) != sam_fields(tiny_config())


def test_equal_models_have_equal_fields() -> None:
    raw = changed("vision_config", global_attn_indexes=[3, 1, 1, 9], mlp_dim=None, mlp_ratio=2)
    assert sam_fields(parse_sam_config(raw, "")) == sam_fields(tiny_config())


@settings(max_examples=300)
@given(st.sampled_from(PATHS), json_values)
def test_any_value_is_parsed_or_refused_in_one_line(path: tuple[str, str], value: object) -> None:
    part, name = path
    try:
        config = parse_sam_config(changed(part, **{name: value}), "config.json")
    except CheckpointError as error:
        message = str(error)
        assert is_short_line(message, "config.json: ")
    else:
        check_sam_config(config, "config.json")


@pytest.mark.parametrize("value", [10**9, "x", True, 8000, [[]], 1e308, "a" * 10**6, {}, 0, -1, 0.5])
@pytest.mark.parametrize("part", ["vision_config", "mask_decoder_config"])
def test_impossible_depth_is_refused_at_once(part: str, value: object) -> None:
    start = time.process_time()
    with pytest.raises(
        CheckpointError, match=rf"{part}\.num_hidden_layers: expected an integer from 1 to 256"
    ):
        parse_sam_config(changed(part, num_hidden_layers=value), "config.json")
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (
            "vision_config",
            {"image_size": 128},
            r"vision_config\.image_size is 128 but prompt_encoder_config\.image_size is 64: make both equal",
        ),
        ("prompt_encoder_config", {"patch_size": 16}, r"vision_config\.patch_size is 8 but"),
        ("prompt_encoder_config", {"image_embedding_size": 3}, "image_embedding_size: expected 8"),
        ("prompt_encoder_config", {"hidden_size": 64}, "output_channels is 32 but"),
        ("prompt_encoder_config", {"mask_input_channels": 6}, "multiple of 4"),
        ("prompt_encoder_config", {"num_point_embeddings": 3}, "from 4 to 64"),
        ("mask_decoder_config", {"hidden_size": 64}, r"mask_decoder_config\.hidden_size is 64 but"),
        ("mask_decoder_config", {"num_attention_heads": 32}, "divisor of the attention's width of 16"),
        ("mask_decoder_config", {"hidden_act": "x"}, "hidden_act: expected one of gelu"),
        ("vision_config", {"hidden_act": "xielu"}, "hidden_act: expected one of gelu"),
        ("vision_config", {"num_attention_heads": 3}, "divisor of the attention's width of 32"),
        ("vision_config", {"num_pos_feats": 8}, "num_pos_feats: expected half"),
        ("vision_config", {"num_channels": 1}, "num_channels: expected 3, for RGB images, got 1"),
        ("vision_config", {"global_attn_indexes": [-1]}, "global_attn_indexes: expected a list"),
        ("vision_config", {"global_attn_indexes": [True]}, "global_attn_indexes: expected a list"),
        ("vision_config", {"window_size": 65}, "window_size: expected at most 64 for a grid of 8"),
        ("vision_config", {"layer_norm_eps": 0}, "layer_norm_eps: expected a number from 1e-12 to 0.1"),
        ("vision_config", {"mlp_dim": None, "mlp_ratio": 0.001}, "mlp_ratio: expected a hidden layer"),
        ("vision_config", {"dtype": "float3"}, "dtype: expected one of bfloat16"),
        ("vision_config", {"per_layer_config": {"0": {"hidden_size": 3}}}, "per_layer_config: expected none"),
    ],
)
def test_contradictions_and_limits_are_named(part: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        parse_sam_config(changed(part, **values), "config.json")
    assert len(str(error.value)) <= MAX_MESSAGE_LENGTH


def test_oversize_model_is_refused_before_it_is_built() -> None:
    wide = {"hidden_size": 16384, "num_hidden_layers": 256, "num_attention_heads": 2, "mlp_dim": 16384}
    with pytest.raises(CheckpointError, match=f"at most {MAX_PARAMETERS:,} parameters"):
        parse_sam_config(changed("vision_config", **wide), "config.json")
    model = tiny_sam()
    assert count_parameters(model.config) == pytest.approx(
        sum(p.numel() for p in model.parameters()), rel=0.15
    )


@pytest.mark.parametrize("dtype", ["float3", [[]], 7, "int8"])
def test_dtype_must_be_a_float(dtype: object) -> None:
    for name in ("dtype", "torch_dtype"):
        with pytest.raises(CheckpointError, match=f"{name}: expected one of"):
            parse_sam_config(RAW | {name: dtype}, "config.json")


def test_patches_per_side_are_limited() -> None:
    raw = changed("vision_config", image_size=8192, patch_size=1)
    raw["prompt_encoder_config"].update(image_size=8192, patch_size=1)
    with pytest.raises(CheckpointError, match="at most 256 patches per side"):
        parse_sam_config(raw, "config.json")


def test_stray_keys_reach_no_model() -> None:
    stray = {
        "attn_implementation": "x",
        "_attn_implementation": "y",
        "auto_map": {"AutoModel": "z.py"},
        "quantization_config": 3,
        "return_dict": False,
        "num_labels": 10**9,
        "problem_type": "regression",
        "scale": 1e9,
    }
    raw = RAW | stray
    raw["vision_config"] = raw["vision_config"] | stray
    config = parse_sam_config(raw, "config.json")
    assert config.to_dict() == parse_sam_config(RAW, "config.json").to_dict()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_listed_activations_hold_no_parameters(name: str) -> None:
    config = parse_sam_config(changed("vision_config", hidden_act=name), "")
    assert SamModel(config).num_parameters() == tiny_sam().num_parameters()


def test_a_configuration_in_memory_is_checked_alike() -> None:
    config = tiny_config()
    check_sam_config(config, "model")
    config.prompt_encoder_config.image_embedding_size = 4
    with pytest.raises(CheckpointError, match="image_embedding_size: expected 8"):
        check_sam_config(config, "model")
