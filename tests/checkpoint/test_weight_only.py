"""Weight-only quantization: without calibration, while transformers loads a float model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, SamModel

import saqsam
from saqsam import CheckpointError, SaqsamConfig
from saqsam.checkpoint import load_checkpoint
from saqsam.convert.pack import pack_without_calibration
from saqsam.export import export_model
from saqsam.quant.layers import PackedLayer, PackedTensor
from saqsam.recipes.methods import weight_only
from saqsam.recipes.presets import parse_weight_bits
from support.tiny_quantized import assert_same_outputs, outputs, quantize_tiny, tiny_recipe
from support.tiny_sam import tiny_processor, tiny_sam

WAYS: dict[str, dict[str, Any]] = {
    "weight-only-w8": {"weight_only": "w8"},
    "weight-only-w4": {"weight_only": "w4"},
    "weight-only-w4-g16": {"weight_only": "w4", "group_size": 16},
    "weight-only-w4-g32": {"weight_only": "w4g32"},
    "weight-only-w3-g128": {"weight_only": "w3", "group_size": 128},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_a_float_folder_is_quantized_while_it_loads(tiny: Path, name: str, tmp_path: Path) -> None:
    model = SamModel.from_pretrained(tiny, quantization_config=SaqsamConfig(**WAYS[name]))
    assert saqsam.recipe_of(model).name == name
    expected = tiny_sam()
    pack_without_calibration(expected, saqsam.recipe_of(model))
    assert_same_outputs(model, expected)
    packed = [module for module in model.modules() if isinstance(module, PackedTensor)]
    assert {one.group_size for one in packed} == {saqsam.recipe_of(model).weights.group_size}
    assert model.num_parameters() == tiny_sam().num_parameters()
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    for again in (saqsam.load(tmp_path)[0], SamModel.from_pretrained(tmp_path), load_checkpoint(tmp_path)):
        assert_same_outputs(again, expected)
        assert saqsam.recipe_of(again) == saqsam.recipe_of(model)


def test_masks_of_eight_bits_are_those_of_the_float_model(tiny: Path) -> None:
    model = AutoModel.from_pretrained(tiny, quantization_config=SaqsamConfig(weight_only="w8"))
    found, expected = outputs(model)["box_masks"], outputs(tiny_sam())["box_masks"]
    assert float((found - expected).square().mean().sqrt() / expected.std()) < 0.1


def test_groups_follow_the_weights_better(tiny: Path) -> None:
    errors = []
    exact = tiny_sam().requires_grad_(False)
    for group_size in (None, 64, 32, 16):
        config = SaqsamConfig(weight_only="w4", group_size=group_size)
        model = SamModel.from_pretrained(tiny, quantization_config=config)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, PackedLayer)}
        differences = [m.weight() - exact.get_submodule(n).weight for n, m in layers.items()]
        errors.append(sum(float(difference.square().sum()) for difference in differences))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_quantize_gives_the_same(tiny: Path) -> None:
    recipe = saqsam.recipe_for("weight-only", "w4g32")
    expected = SamModel.from_pretrained(tiny, quantization_config=SaqsamConfig(recipe))
    assert_same_outputs(quantize_tiny(recipe), expected)


def test_activations_may_be_bfloat16(tiny: Path) -> None:
    config = SaqsamConfig(weight_only="w4", group_size=32)
    model = SamModel.from_pretrained(tiny, quantization_config=config, dtype=torch.bfloat16)
    reference = SamModel.from_pretrained(tiny, quantization_config=config)
    assert model.dtype == torch.bfloat16
    for name, tensor in reference.state_dict().items():
        if name.endswith((".scale", ".codes")):
            assert torch.equal(model.state_dict()[name], tensor), name
    found, expected = outputs(model)["box_masks"].float(), outputs(reference)["box_masks"]
    assert float((found - expected).square().mean().sqrt() / expected.std()) < 0.1


def test_it_can_be_undone(tiny: Path) -> None:
    model = SamModel.from_pretrained(tiny, quantization_config=SaqsamConfig(weight_only="w4g16"))
    expected = outputs(model)
    for name, tensor in outputs(model.dequantize()).items():
        assert torch.allclose(tensor, expected[name], atol=1e-4), name


def test_the_file_holds_the_recipe_alone(tiny: Path, tmp_path: Path) -> None:
    SamModel.from_pretrained(tiny, quantization_config=SaqsamConfig(weight_only="w4g32")).save_pretrained(
        tmp_path
    )
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    stored = content["quantization_config"]
    assert not {"weight_only", "group_size"} & stored.keys()
    assert stored["recipe"]["activations"] is None
    assert stored["recipe"]["weights"]["group_size"] == 32
    content["quantization_config"] = {"quant_method": "saqsam", "weight_only": "w4"}
    path.write_text(json.dumps(content))
    for load in (saqsam.load, SamModel.from_pretrained):
        with pytest.raises(CheckpointError, match=r"unknown keys: .*weight_only"):
            load(tmp_path)


def test_scales_of_another_group_size_are_refused(tiny: Path, tmp_path: Path) -> None:
    SamModel.from_pretrained(tiny, quantization_config=SaqsamConfig(weight_only="w4g32")).save_pretrained(
        tmp_path
    )
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"group_size": 32', '"group_size": 16'))
    for load in (saqsam.load, SamModel.from_pretrained):
        with pytest.raises(CheckpointError, match="must have shape"):
            load(tmp_path)


def test_recipes_with_quantized_activations_need_images(tiny: Path) -> None:
    with pytest.raises(ValueError, match=r"min-max-w4a4 needs calibration images: use saqsam\.quantize"):
        SamModel.from_pretrained(tiny, quantization_config=SaqsamConfig(tiny_recipe()))


@pytest.mark.parametrize("kind", ["missing", "unknown"])
def test_an_incomplete_float_model_is_refused(tiny: Path, tmp_path: Path, kind: str) -> None:
    tensors = load_file(tiny / "model.safetensors")
    if kind == "missing":
        del tensors["vision_encoder.layers.0.attn.qkv.weight"]
    else:
        tensors["head.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    with pytest.raises(CheckpointError, match=f"do not fit the model: 1 {kind}") as error:
        SamModel.from_pretrained(tmp_path, quantization_config=SaqsamConfig(weight_only="w8"))
    assert "\n" not in str(error.value)


def test_a_float_model_in_float16_is_quantized_in_float32(tmp_path: Path) -> None:
    tiny_sam().half().save_pretrained(tmp_path)
    model = SamModel.from_pretrained(tmp_path, quantization_config=SaqsamConfig(weight_only="w8"))
    expected = tiny_sam().half().float()
    pack_without_calibration(expected, saqsam.recipe_of(model))
    assert_same_outputs(model, expected)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "both": (
        lambda: SaqsamConfig(tiny_recipe(), weight_only="w4"),
        "either a recipe or weight_only, not both",
    ),
    "size alone": (lambda: SaqsamConfig(group_size=32), "weight_only must be text such as 'w4', got None"),
    "two sizes": (lambda: SaqsamConfig(weight_only="w4g32", group_size=32), "give the group size once"),
    "activation bits": (lambda: SaqsamConfig(weight_only="w4a4"), "weight-only bits must look like w4"),
    "bits": (lambda: SaqsamConfig(weight_only="w9"), "weight bits must be an integer from 2 to 8"),
    "group size": (lambda: SaqsamConfig(weight_only="w4", group_size=33), "group_size must be one of 16, 32"),
    "nothing": (lambda: SaqsamConfig(), "format version"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_configurations_are_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_exports_and_deployment_refuse_float_activations(tiny: Path, tmp_path: Path) -> None:
    recipe = weight_only(4, 32)
    with pytest.raises(ValueError, match="weight-only-w4-g32 leaves them float"):
        saqsam.deployable(recipe)
    model = SamModel.from_pretrained(tiny, quantization_config=SaqsamConfig(recipe))
    with pytest.raises(ValueError, match="weight-only-w4-g32 leaves activations float"):
        export_model(model, tiny_processor(), tmp_path / "out")


def test_bits_are_read() -> None:
    assert parse_weight_bits("w4") == (4, None)
    assert parse_weight_bits(" W8G64 ") == (8, 64)
