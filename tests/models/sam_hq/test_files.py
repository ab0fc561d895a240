"""Files of SAM-HQ: configurations, official names, and the difference to SAM v1."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import SamHQConfig, SamHQModel, SamHQProcessor

from saqsam.models import load
from saqsam.models.configuration import config_fields, max_weight_bytes, parse_config
from saqsam.models.sam_hq.family import SamHQFamily
from saqsam.models.sam_hq.mask_head import CorrectedMaskDecoder
from saqsam.models.state_dicts import find_model
from saqsam.utils.errors import CheckpointError
from support.state_dict_names import official_names
from support.tiny_sam import tiny_config, tiny_sam
from support.tiny_sam_hq import official_hq_names, tiny_sam_hq, tiny_sam_hq_config, tiny_sam_hq_processor

MODEL = tiny_sam_hq(seed=1)
OFFICIAL = official_hq_names(MODEL)
RAW: dict[str, Any] = {"model_type": "sam_hq", **config_fields(tiny_sam_hq_config())}


def assert_same(model: SamHQModel) -> None:
    assert isinstance(model, SamHQModel)
    assert isinstance(model.mask_decoder, CorrectedMaskDecoder)
    for name, value in MODEL.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    MODEL.save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_of_transformers(folder: Path) -> None:
    tiny_sam_hq_processor().save_pretrained(folder)  # type: ignore[attr-defined]
    model, processor = load(folder)
    assert_same(model)
    assert isinstance(processor, SamHQProcessor)
    assert config_fields(model.config) == config_fields(MODEL.config)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_an_official_file(tmp_path: Path, prefix: str) -> None:
    torch.save({"model": {prefix + n: t for n, t in OFFICIAL.items()}}, tmp_path / "sam_hq_vit_b.pth")
    model, processor = load(tmp_path / "sam_hq_vit_b.pth")
    assert_same(model)
    assert isinstance(processor, SamHQProcessor)
    fields, expected = config_fields(model.config), config_fields(MODEL.config)
    assert fields["mask_decoder_config"].pop("layer_norm_eps") == 1e-5
    assert expected["mask_decoder_config"].pop("layer_norm_eps") == 1e-6
    assert fields == expected


def test_transformers_names_without_a_config(tmp_path: Path) -> None:
    save_file({n: t.clone() for n, t in MODEL.state_dict().items()}, tmp_path / "hq.safetensors")
    with pytest.warns(UserWarning, match=r"no config\.json beside it: assumed 8 heads"):
        model, _ = load(tmp_path / "hq.safetensors")
    assert_same(model)
    assert config_fields(model.config) == config_fields(MODEL.config)


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads", "global_blocks"),
    [
        ("b", 12, 768, 12, [2, 5, 8, 11]),
        ("l", 24, 1024, 16, [5, 11, 17, 23]),
        ("h", 32, 1280, 16, [7, 15, 23, 31]),
    ],
)
def test_variants_are_told_by_their_shapes(
    name: str, layers: int, width: int, heads: int, global_blocks: list[int]
) -> None:
    vision = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "global_attn_indexes": global_blocks,
    }
    config = SamHQConfig(vision_config=vision, mask_decoder_config={"vit_dim": width})
    with torch.device("meta"):
        model = SamHQFamily().build(config)
    found, renamed = SamHQFamily.format.from_official(official_hq_names(model))
    assert renamed.keys() | set(SamHQFamily().structure(config).tied) == model.state_dict().keys()
    fields, expected = config_fields(found), config_fields(config)
    assert fields["vision_config"] == expected["vision_config"]
    assert fields["mask_decoder_config"] == {**expected["mask_decoder_config"], "layer_norm_eps": 1e-5}
    parameters = sum(p.numel() for p in model.parameters())
    assert SamHQFamily.format.count_parameters(config) == pytest.approx(parameters, rel=0.03)
    assert max_weight_bytes(config) > 4 * parameters


@pytest.mark.parametrize(
    "name", [name for name in OFFICIAL if any(key in name for key in ("hf_", "vit_feat.0"))]
)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    torch.save({n: t for n, t in OFFICIAL.items() if n != name}, tmp_path / "hq.pth")
    with pytest.raises(CheckpointError, match=r"missing|unknown tensors") as error:
        load(tmp_path / "hq.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_decoder.hf_extra.weight": torch.zeros(1)}, r"unknown tensors .* mask_decoder\.hf_extra"),
        ({"mask_decoder.hf_mlp.layers.3.bias": torch.zeros(1)}, "unknown tensors"),
        ({"mask_decoder.hf_token.weight": torch.zeros(2, 32)}, "1 misshapen: mask_decoder.hq_token"),
        (
            {"mask_decoder.compress_vit_feat.0.weight": torch.zeros(64, 32, 2, 2)},
            "vit_dim is 64 but vision_config",
        ),
        ({"mask_decoder.compress_vit_feat.0.weight": torch.tensor(1.0)}, "vit_dim: expected"),
        ({"mask_decoder.hf_token.weight": torch.full((1, 32), torch.nan)}, "hq_token.weight holds NaN"),
    ],
)
def test_damaged_official_files_are_refused(
    tmp_path: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    torch.save(OFFICIAL | change, tmp_path / "hq.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        load(tmp_path / "hq.pth")
    assert "\n" not in str(error.value)


def test_the_families_are_told_apart() -> None:
    for names, family in ((OFFICIAL, "sam_hq"), (official_names(tiny_sam()), "sam")):
        found = find_model(names, Path("model.pth"))
        assert (found.family.name, found.is_official, found.extra_names) == (family, True, [])
    for model, family in ((MODEL, "sam_hq"), (tiny_sam(), "sam")):
        assert find_model(model.state_dict(), Path("model.pth")).family.name == family
    both = {f"a.{n}": t for n, t in OFFICIAL.items()} | {f"b.{n}": t for n, t in OFFICIAL.items()}
    with pytest.raises(
        CheckpointError, match=r"holds 2 Segment Anything models, under 'prefix a\.', 'prefix b\.'"
    ):
        find_model(both, Path("model.pth"))


@pytest.mark.parametrize("as_file", [False, True])
def test_a_checkpoint_of_one_loaded_as_the_other_is_refused_by_name(tmp_path: Path, as_file: bool) -> None:
    for model, config, message in (
        (MODEL, tiny_config(), "config.json describes a SAM, the tensors are those of a SAM-HQ"),
        (tiny_sam(), tiny_sam_hq_config(), "config.json describes a SAM-HQ, the tensors are those of a SAM$"),
    ):
        model.save_pretrained(tmp_path)
        config.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "model.safetensors" if as_file else tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "mask_decoder_config",
            {"vit_dim": 64},
            "vit_dim is 64 but vision_config.hidden_size is 32: make both equal",
        ),
        ("mask_decoder_config", {"vit_dim": "32"}, r"mask_decoder_config\.vit_dim: expected an integer"),
        ("mask_decoder_config", {"vit_dim": None}, "vit_dim is 768 but"),
        ("mask_decoder_config", {"hidden_size": True}, r"hidden_size: expected an integer"),
        ("vision_config", {"global_attn_indexes": []}, "expected at least one block with global attention"),
        ("vision_config", {"global_attn_indexes": [9]}, "expected at least one block with global attention"),
        ("vision_config", {"num_channels": 1}, "num_channels: expected 3"),
    ],
)
def test_configurations_are_checked(part: str, change: dict[str, Any], message: str) -> None:
    raw = json.loads(json.dumps(RAW))
    raw[part] |= change
    with pytest.raises(CheckpointError, match=message) as error:
        parse_config(raw, "config.json")
    assert "\n" not in str(error.value)


def test_fields_survive_a_round_trip() -> None:
    assert config_fields(parse_config(json.loads(json.dumps(RAW)), "config.json")) == RAW
    assert parse_config({"model_type": "sam_hq"}, "config.json").to_dict() == SamHQConfig().to_dict()
    every_block_is_global = {**RAW, "vision_config": {**RAW["vision_config"], "window_size": 0}}
    parse_config(every_block_is_global, "config.json")
