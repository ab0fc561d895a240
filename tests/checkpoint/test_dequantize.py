"""`model.dequantize()`: transformers' float model with the weights that the codes stand for."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import SamModel

import saqsam
from saqsam.checkpoint import load_checkpoint, quantization_config_of, save_checkpoint
from saqsam.models.structure import SLOTS
from saqsam.quant.layers import PackedLayer
from support.tiny_quantized import mixed_tiny, outputs, quantized_tiny
from support.tiny_sam import tiny_processor, tiny_sam

MODELS: dict[str, Callable[[], SamModel]] = {
    "min-max": quantized_tiny,
    "mixed": mixed_tiny,
    "saq-sam-plus": lambda: quantized_tiny("saq-sam-plus"),
}


def without_activation_quantizers(model: SamModel) -> SamModel:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, PackedLayer):
            module.input_quantizer = nn.Identity()
        for slot in SLOTS:
            if slot in module._modules:
                setattr(module, slot, nn.Identity())
    return model


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_without_activation_quantizers(name: str) -> None:
    packed = MODELS[name]()
    expected = outputs(without_activation_quantizers(packed))
    model = copy.deepcopy(packed)
    assert model.dequantize() is model
    found = outputs(model)
    for key in expected:
        assert torch.allclose(found[key], expected[key], rtol=1e-4, atol=1e-4 * float(expected[key].std())), (
            key
        )
    assert not torch.allclose(found["box_masks"], outputs(packed)["box_masks"], atol=1e-3)


def test_the_model_is_float_through_and_through(packed: Path, tmp_path: Path) -> None:
    model = SamModel.from_pretrained(packed)
    model.dequantize()
    assert type(model) is SamModel
    assert not model.is_quantized
    assert quantization_config_of(model) is None
    classes = {name: type(module) for name, module in tiny_sam().named_modules()}
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert model.num_parameters() == tiny_sam().num_parameters()
    expected = outputs(model)
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    for again in (SamModel.from_pretrained(tmp_path), saqsam.load(tmp_path)[0]):
        for key, tensor in outputs(again).items():  # mapped from a file, weights are not aligned
            assert torch.allclose(tensor, expected[key], atol=1e-5), key
    assert model.half().dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_another_dtype_can_be_asked_for(packed: Path, dtype: torch.dtype) -> None:
    model = load_checkpoint(packed)
    model.dequantize(dtype)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}


def test_the_result_can_be_quantized_again(packed: Path, tmp_path: Path) -> None:
    model = load_checkpoint(packed).dequantize()
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == set()
    with pytest.raises(ValueError, match="this model is float"):
        save_checkpoint(model, tiny_processor(), tmp_path / "checkpoint")
