"""An untrusted `config.json` of MobileSAM is checked field by field."""

import json
from pathlib import Path
from typing import Any

import pytest

from saqsam.models.configuration import check_config, config_fields, max_weight_bytes, parse_config
from saqsam.models.mobile_sam.configuration import MobileSamConfig
from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.utils.errors import CheckpointError
from support.tiny_mobile_sam import tiny_config, tiny_mobile_sam


def raw(**changes: Any) -> dict[str, Any]:
    """The tiny configuration as JSON, with changed fields such as `vision_config__depths`."""
    fields: dict[str, Any] = json.loads(tiny_config().to_json_string(use_diff=False))
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (fields[section] if section else fields)[field] = value
    return fields


def test_a_configuration_survives_a_round_trip() -> None:
    for config in (tiny_config(), MobileSamConfig()):
        parsed = parse_config(json.loads(config.to_json_string()), "config.json")
        assert isinstance(parsed, MobileSamConfig)
        assert config_fields(parsed) == config_fields(config)
        check_config(parsed, "config.json")
    assert config_fields(parse_config({"model_type": "mobile_sam"}, "x")) == config_fields(MobileSamConfig())


def test_fields_that_nothing_reads_do_not_count() -> None:
    other = raw(vision_config__window_sizes=[9, 5, 6, 3], vision_config__num_attention_heads=[7, 2, 3, 4])
    assert config_fields(parse_config(other, "x")) == config_fields(tiny_config())


def test_parameters_are_counted_roughly() -> None:
    for config, model in ((tiny_config(), tiny_mobile_sam()), (MobileSamConfig(), None)):
        limit = max_weight_bytes(config)
        count = 9_803_780 if model is None else sum(p.numel() for p in model.parameters())
        assert 0.8 * 32 * count < limit - 2**20 < 1.2 * 32 * count


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vision_config__depths", [1, 1, 2], "depths: expected a list of 4"),
        ("vision_config__depths", [1, 1, 0, 1], "depths: expected a list of 4, each an integer from 1"),
        ("vision_config__depths", [1, 100, 100, 100], "depths: expected at most 256 blocks, got 301"),
        ("vision_config__depths", "1112", "depths: expected a list of 4"),
        ("vision_config__hidden_sizes", [8, 16, 24, True], "hidden_sizes: expected a list of 4"),
        ("vision_config__hidden_sizes", [9, 16, 24, 32], "even number of channels in stage 0"),
        (
            "vision_config__num_attention_heads",
            [1, 3, 3, 4],
            "num_attention_heads: expected a divisor of the 16",
        ),
        ("vision_config__window_sizes", [7, 65, 6, 3], "window_sizes: expected at most 64 for a grid of 16"),
        ("vision_config__merge_strides", [2, 2, 5], "merge_strides: expected a list of 3"),
        ("vision_config__merge_strides", [2, 2, 2], "prompt_encoder_config.patch_size: expected 32"),
        ("vision_config__local_conv_size", 4, "odd local_conv_size"),
        ("vision_config__expand_ratio", 1e-3, "expand_ratio: expected a hidden layer of 1 to 16384 channels"),
        ("vision_config__mlp_ratio", 1000.0, "mlp_ratio: expected a hidden layer of 1 to 16384 channels"),
        ("vision_config__mlp_ratio", float("nan"), "mlp_ratio: expected a number"),
        ("vision_config__image_size", 100, "image_size: expected a multiple of the patch size of 16"),
        ("vision_config__image_size", 256, "prompt_encoder_config.image_size: expected 256"),
        ("vision_config__num_channels", 4, "num_channels: expected 3"),
        ("vision_config__hidden_act", "mish", "hidden_act: expected one of"),
        ("prompt_encoder_config__image_embedding_size", 9, "image_embedding_size: expected 8"),
        ("mask_decoder_config__num_attention_heads", 5, "expected a divisor of the attention's width of 32"),
        ("mask_decoder_config__hidden_size", 64, "mask_decoder_config.hidden_size: expected 32"),
        ("tie_word_embeddings", False, "tie_word_embeddings: expected true"),
        ("vision_config", [], "vision_config: expected a JSON object"),
    ],
)
def test_illegal_fields_are_refused_in_one_line(field: str, value: Any, message: str) -> None:
    changed = raw(**{field: value})
    with pytest.raises(CheckpointError, match=message) as error:
        parse_config(changed, "config.json")
    assert str(error.value).startswith("config.json: ")
    assert "\n" not in str(error.value)


def test_large_images_are_refused() -> None:
    changed = raw(vision_config__image_size=8192, prompt_encoder_config__image_size=8192)
    changed["prompt_encoder_config"]["image_embedding_size"] = None
    with pytest.raises(CheckpointError, match="image_size: expected at most 4096, got 8192"):
        parse_config(changed, "config.json")


def test_a_saved_model_is_loaded_again(tmp_path: Path) -> None:
    tiny_mobile_sam().save_pretrained(tmp_path)
    assert isinstance(MobileSamModel.from_pretrained(tmp_path), MobileSamModel)
    parse_config(json.loads((tmp_path / "config.json").read_text()), "config.json")
