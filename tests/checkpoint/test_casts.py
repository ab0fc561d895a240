"""Casts of a quantized model: it computes in float32, so its masks stay those of the checkpoint."""

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import SamModel

from saqsam.checkpoint import load_checkpoint, save_checkpoint
from saqsam.inference.predictor import Predictor
from saqsam.runtimes.torch_integer import use_integer_kernels
from support.tiny_quantized import assert_same_outputs, mixed_tiny, quantized_tiny, tiny_data
from support.tiny_sam import tiny_processor, tiny_sam


@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.to(torch.float16),
        lambda model: model.to(dtype=torch.bfloat16),
        lambda model: model.to("cpu", torch.float64),
        lambda model: model.bfloat16(),
        lambda model: model.double(),
        lambda model: copy.deepcopy(model.bfloat16()).to(torch.float16),
    ],
)
@pytest.mark.parametrize("integer", [False, True])
def test_casts_change_no_mask(cast: Callable[[SamModel], SamModel], integer: bool) -> None:
    model = copy.deepcopy(mixed_tiny())
    if integer:
        use_integer_kernels(model)
    expected = copy.deepcopy(model)
    cast_model = cast(model)
    assert cast_model.dtype == torch.float32
    assert_same_outputs(cast_model, expected)
    predictor = Predictor(cast_model, tiny_processor())
    predictor.set_image(tiny_data()[0].image)
    assert predictor.predict(box=[1, 1, 40, 40])[0].any()


@pytest.mark.parametrize("load", [load_checkpoint, SamModel.from_pretrained])
def test_casts_of_loaded_and_copied_models(load: Callable[[Path], SamModel], tmp_path: Path) -> None:
    folder = save_checkpoint(copy.deepcopy(quantized_tiny()), tiny_processor(), tmp_path / "checkpoint")
    model = load(folder)
    other = copy.deepcopy(model)
    assert other.to(torch.float16) is other
    stored = io.BytesIO()
    torch.save(other, stored)
    stored.seek(0)
    for cast_model in (model.bfloat16(), other, torch.load(stored, weights_only=False).bfloat16()):
        assert_same_outputs(cast_model, quantized_tiny())


def test_moves_still_move() -> None:
    model = copy.deepcopy(quantized_tiny())
    assert model.to("meta", torch.float16) is model
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert model.dtype == torch.float32


def test_transformers_refuses_half() -> None:
    with pytest.raises(ValueError, match="not supported for quantized model"):
        copy.deepcopy(quantized_tiny()).half()


def test_float_models_are_cast() -> None:
    assert tiny_sam().to(torch.float16).dtype == torch.float16
