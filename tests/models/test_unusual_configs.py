"""Unusual but legal configurations: from `load` to an export, or one refusal at `load`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SamConfig, SamModel, SamProcessor

import saqsam
from saqsam.checkpoint import save_checkpoint
from saqsam.export import export_model
from saqsam.inference.predictor import Predictor
from saqsam.models.processing import build_processor
from saqsam.ptq.pipeline import quantize
from saqsam.recipes.deployment import deployable
from saqsam.recipes.recipe import Calibration
from saqsam.runtimes import load_runtime
from saqsam.utils.errors import CheckpointError
from saqsam.verification.parity import TorchReference, compare_with_torch
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam import tiny_config, tiny_sam

GELUS = (
    "gelu_python",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
    "quick_gelu",
)
V, P, D = "vision_config", "prompt_encoder_config", "mask_decoder_config"


def both(**values: object) -> dict[str, dict[str, object]]:
    return {V: values, P: values}


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "no absolute positions": {V: {"use_abs_pos": False}},
    "no relative positions": {V: {"use_rel_pos": False}},
    "no positions": {V: {"use_abs_pos": False, "use_rel_pos": False}},
    "no global blocks": {V: {"global_attn_indexes": []}},
    "all blocks global": {V: {"global_attn_indexes": [0, 1, 2, 3]}},
    "a global block that is not there": {V: {"global_attn_indexes": [1, 9]}},
    "window 0": {V: {"window_size": 0}},
    "window 1": {V: {"window_size": 1}},
    "window larger than the grid": {V: {"window_size": 11}},
    "window of the grid": {V: {"window_size": 8}},
    "one mask": {D: {"num_multimask_outputs": 1}},
    "five masks": {D: {"num_multimask_outputs": 5}},
    **{name: {part: {"hidden_act": name} for part in (V, P, D)} for name in (*GELUS, "silu", "relu")},
    "gelu in the decoder": {D: {"hidden_act": "gelu"}},
    "one decoder layer": {D: {"num_hidden_layers": 1}},
    "three decoder layers": {D: {"num_hidden_layers": 3}},
    "one encoder layer": {V: {"num_hidden_layers": 1}},
    "no downsampling": {D: {"attention_downsample_rate": 1}},
    "downsampling by 4": {D: {"attention_downsample_rate": 4}},
    "patches that do not divide the image": both(patch_size=9),
    "one patch": both(patch_size=64),
    "no bias in qkv": {V: {"qkv_bias": False}},
    "shallow IoU head": {D: {"iou_head_depth": 2}},
    "deep IoU head": {D: {"iou_head_depth": 4}},
    "mlp_ratio alone": {V: {"mlp_dim": None, "mlp_ratio": 1.5}},
    "mlp_dim against mlp_ratio": {V: {"mlp_dim": 40, "mlp_ratio": 4.0}},
    "layer norms": {V: {"layer_norm_eps": 1e-3}, P: {"layer_norm_eps": 1e-2}, D: {"layer_norm_eps": 1e-5}},
    "one head": {V: {"num_attention_heads": 1}, D: {"num_attention_heads": 1}},
    "more point embeddings": {P: {"num_point_embeddings": 6}},
    "four mask channels": {P: {"mask_input_channels": 4}},
}
LEARNED = ("no positions", "no global blocks", "one decoder layer")
REFUSED: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "one channel": ({V: {"num_channels": 1}}, "num_channels: expected 3, for RGB images, got 1"),
    "four channels": ({V: {"num_channels": 4}}, "num_channels: expected 3, for RGB images, got 4"),
    "activation with parameters": ({V: {"hidden_act": "prelu"}}, "hidden_act: expected one of"),
    "no mask beside the single one": ({D: {"num_multimask_outputs": 0}}, "num_multimask_outputs: expected"),
    "patch larger than the image": (both(patch_size=128), "expected at most the image_size of 64"),
    "no encoder layers": ({V: {"num_hidden_layers": 0}}, "num_hidden_layers: expected"),
}


def unusual(changes: dict[str, dict[str, Any]]) -> SamConfig:
    raw = tiny_config().to_dict()
    parts = {part: raw[part] | changes.get(part, {}) for part in (V, P, D)}
    parts[P].pop("image_embedding_size")  # derived
    return SamConfig(**parts)


def saved(config: SamConfig, folder: Path) -> Path:
    tiny_sam(seed=2, config=config).save_pretrained(folder)
    build_processor(config).save_pretrained(folder)
    return folder


def masks(model: SamModel, processor: SamProcessor) -> torch.Tensor:
    predictor = Predictor(model, processor)
    predictor.set_image(tiny_data()[0].image)
    prompts = {"points": [[[20.0, 30.0]]], "labels": [[1]]}
    several = predictor.predict_batch(**prompts, multimask_output=True, return_logits=True)[0]
    single = predictor.predict_batch(boxes=[[5, 6, 50, 40]], multimask_output=False, return_logits=True)[0]
    return torch.cat([several, single], 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_from_loading_to_an_export(name: str, tmp_path: Path) -> None:
    model, processor = saqsam.load(saved(unusual(CASES[name]), tmp_path / "float"))
    recipe = tiny_recipe("min-max", "w8a8", calibration=Calibration(images=1, prompts=2))
    quantized = quantize(model, processor, deployable(recipe), tiny_data(1)).model
    save_checkpoint(quantized, processor, tmp_path / "packed")
    loaded, processor = saqsam.load(tmp_path / "packed")
    expected = masks(quantized, processor)
    assert torch.isfinite(expected).all()
    assert expected.std() > 0
    assert torch.equal(masks(loaded, processor), expected)
    assert torch.equal(masks(SamModel.from_pretrained(tmp_path / "packed"), processor), expected)

    export_model(loaded, processor, tmp_path / "onnx", format="onnx")
    backend, processor = load_runtime(tmp_path / "onnx", "onnxruntime", threads=1)
    parity = compare_with_torch(backend, processor, TorchReference(loaded, processor, tiny_data(1)))
    assert all(tensor.relative < 0.1 for tensor in parity.tensors), parity.tensors
    assert parity.mask_iou > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mse", "saq-sam-plus"])
@pytest.mark.parametrize("name", LEARNED)
def test_other_methods_on_an_unusual_model(name: str, method: str, tmp_path: Path) -> None:
    model, processor = saqsam.load(saved(unusual(CASES[name]), tmp_path / "float"))
    quantized = quantize(model, processor, tiny_recipe(method, "w4a8"), tiny_data()).model
    save_checkpoint(quantized, processor, tmp_path / "packed")
    loaded, processor = saqsam.load(tmp_path / "packed")
    assert torch.equal(masks(loaded, processor), masks(quantized, processor))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_at_loading(name: str, tmp_path: Path) -> None:
    changes, message = REFUSED[name]
    saved(tiny_config(), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    for part, values in changes.items():
        raw[part].update(values)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        saqsam.load(tmp_path)
