"""Tensors and notes of finished steps are checked before they go into a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saqsam.models.registry import structure_of
from saqsam.ptq.finished_steps import check_signs, place_tensors
from saqsam.utils.errors import CheckpointError
from support.tiny_quantized import quantized_tiny
from support.tiny_sam import tiny_sam

PATH = Path("unit-00.safetensors")
LAYER = "vision_encoder.layers.0.mlp.lin1"
NAMES = (
    f"{LAYER}.weight.codes",
    f"{LAYER}.weight.scale",
    f"{LAYER}.weight.zero_point",
    f"{LAYER}.input_quantizer.scale",
    f"{LAYER}.input_quantizer.zero_point",
    f"{LAYER}.bias",
)


def tensors() -> dict[str, Tensor]:
    state = quantized_tiny().state_dict()
    return {name: state[name].clone() for name in NAMES}


def test_valid_tensors_are_placed() -> None:
    model = quantized_tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    place_tensors(model, tensors(), NAMES, PATH)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight.codes", lambda t: t[:-1], "expected shape"),
        ("weight.codes", lambda t: t.float(), "expected torch.uint8, found torch.float32"),
        ("weight.scale", lambda t: t * 0, "expected values from 1.17549e-38 to 65504"),
        ("weight.scale", lambda t: -t, "expected values from"),
        ("weight.scale", lambda t: t * float("nan"), "expected finite values"),
        ("weight.zero_point", lambda t: t * 0 + 16, "expected values from 0 to 15, found 16 to 16"),
        ("input_quantizer.zero_point", lambda t: t * 0 - 1, "expected values from 0 to 15"),
        ("input_quantizer.scale", lambda t: t[None], r"expected shape \(\), found \(1,\)"),
        ("bias", lambda t: t * 0 + 1e5, "expected values from -65504 to 65504"),
        ("bias", lambda t: t + float("inf"), "expected finite values"),
    ],
)
def test_impossible_tensors_are_refused(name: str, value: Any, message: str) -> None:
    changed = tensors()
    changed[f"{LAYER}.{name}"] = value(changed[f"{LAYER}.{name}"])
    with pytest.raises(
        CheckpointError, match=rf"^unit-00\.safetensors is damaged: .*{message}.*; remove it to redo"
    ):
        place_tensors(quantized_tiny(), changed, NAMES, PATH)


def test_missing_and_unknown_tensors_are_refused() -> None:
    with pytest.raises(CheckpointError, match="it lacks"):
        place_tensors(quantized_tiny(), {}, NAMES, PATH)
    with pytest.raises(CheckpointError, match="unknown tensor 'x'"):
        place_tensors(quantized_tiny(), tensors() | {"x": torch.zeros(1)}, NAMES, PATH)


@pytest.mark.parametrize(
    ("name", "sign", "message"),
    [
        ("nothing", torch.ones(16, dtype=torch.int8), "unknown attention 'nothing'"),
        (None, torch.ones(3, dtype=torch.int8), "expected shape"),
        (None, torch.ones(16), "expected torch.int8"),
        (None, torch.zeros(16, dtype=torch.int8), "expected 1 and -1"),
    ],
)
def test_impossible_signs_are_refused(name: str | None, sign: Tensor, message: str) -> None:
    model = tiny_sam()
    structure = structure_of(model.config)
    encoder, *_, attention = (site.name for site in structure.attentions)
    channels = model.get_submodule(f"{attention}.q_proj").weight.shape[0]
    check_signs({attention: -torch.ones(channels, dtype=torch.int8)}, model, structure, PATH)
    sign = sign.repeat(channels // 16) if len(sign) == 16 else sign
    with pytest.raises(CheckpointError, match="unknown attention"):
        check_signs({encoder: sign}, model, structure, PATH)
    with pytest.raises(CheckpointError, match=message):
        check_signs({name or attention: sign}, model, structure, PATH)
