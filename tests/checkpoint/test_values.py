"""Values that no quantizer can have are refused, even under a hash that fits; every refusal is one CheckpointError."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SamModel

from saqsam import CheckpointError
from saqsam.checkpoint import (
    WEIGHTS,
    SaqsamConfig,
    content_hash,
    hash_header,
    load_checkpoint,
    save_checkpoint,
)
from saqsam.checkpoint.tensors import MAX_SCALE, MIN_SCALE
from saqsam.models.configuration import parse_config
from support.tiny_quantized import quantize_tiny, quantized_tiny, tiny_recipe
from support.tiny_sam import tiny_processor

QKV = "vision_encoder.layers.0.attn.qkv"
PROBABILITIES = "vision_encoder.layers.0.attn.probability_quantizer"


def with_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Change tensors of a checkpoint and give it the hash that fits, as anyone can."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    quantization = SaqsamConfig.from_dict(raw["quantization_config"])
    header = hash_header(parse_config(raw, "f"), quantization.recipe, quantization.processor_sha256)
    raw["quantization_config"]["content_sha256"] = content_hash(tensors, header)
    path.write_text(json.dumps(raw))
    return folder


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: (tensor * factor).to(tensor.dtype)


def filled(value: float, dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.full(tensor.shape, value, dtype=dtype or tensor.dtype)


BAD_VALUES: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "scale NaN": (f"{QKV}.input_quantizer.scale", times(float("nan")), "finite, positive and at most 65504"),
    "scale 0": (f"{QKV}.input_quantizer.scale", times(0), "finite, positive"),
    "scale negative": (f"{QKV}.input_quantizer.scale", times(-1), "finite, positive"),
    "scale infinite": (f"{QKV}.weight.scale", times(float("inf")), "finite, positive"),
    "scale too large": (f"{QKV}.weight.scale", filled(65505.0), "finite, positive"),
    "scale subnormal": (f"{QKV}.weight.scale", filled(1e-45), "finite, positive"),
    "scale complex": (f"{QKV}.weight.scale", lambda t: t.to(torch.complex64), "must be F32, is C64"),
    "scale boolean": (f"{QKV}.weight.scale", lambda t: t.to(torch.bool), "must be F32, is BOOL"),
    "zero point 1000": (
        f"{QKV}.input_quantizer.zero_point",
        filled(1000),
        "must be 0 to 15 for 4 bits, got 1000",
    ),
    "zero point negative": (f"{QKV}.input_quantizer.zero_point", filled(-1), "must be 0 to 15 .* got -1"),
    "zero point -2^31": (f"{QKV}.input_quantizer.zero_point", filled(-(2**31)), "got -2147483648"),
    "weight zero point 255": (f"{QKV}.weight.zero_point", filled(255), "must be 0 to 15 for 4 bits, got 255"),
    "zero point float": (
        f"{QKV}.input_quantizer.zero_point",
        filled(3.7, torch.float32),
        "must be I32, is F32",
    ),
    "bias NaN": (f"{QKV}.bias", times(float("nan")), "holds NaN or infinity"),
    "bias float64": (f"{QKV}.bias", filled(1e300, torch.float64), "must be F16, is F64"),
    "codes float": (f"{QKV}.weight.codes", filled(300.7, torch.float32), "must be U8, is F32"),
    "layer norm infinite": (
        "vision_encoder.neck.layer_norm1.weight",
        filled(float("inf")),
        "NaN or infinity",
    ),
}


@pytest.mark.parametrize("loader", [load_checkpoint, SamModel.from_pretrained])
@pytest.mark.parametrize("case", BAD_VALUES)
def test_impossible_values_are_refused(copy: Path, case: str, loader: Callable[[Path], SamModel]) -> None:
    name, change, message = BAD_VALUES[case]
    with_tensors(copy, lambda tensors: tensors.update({name: change(tensors[name])}))
    with pytest.raises(CheckpointError, match=f"{name}.* {message}" if "must be" in message else message):
        loader(copy)


@pytest.mark.parametrize("tau", [0, -1, 3, 64, 2**31 - 1])
def test_steps_per_octave_are_powers_of_two(tmp_path: Path, tau: int) -> None:
    folder = save_checkpoint(quantized_tiny("ptq4sam-s"), tiny_processor(), tmp_path / "log")
    with_tensors(folder, lambda t: t.update({f"{PROBABILITIES}.tau": torch.tensor(tau, dtype=torch.int32)}))
    with pytest.raises(
        CheckpointError, match=f"{PROBABILITIES}.tau must be a power of 2 up to 32, got {tau}"
    ):
        load_checkpoint(folder)


def test_symmetric_weights_have_the_middle_zero_point(tmp_path: Path) -> None:
    plain = tiny_recipe("mse", "w8a8")
    recipe = dataclasses.replace(plain, weights=dataclasses.replace(plain.weights, symmetric_bytes=True))
    folder = save_checkpoint(quantize_tiny(recipe), tiny_processor(), tmp_path / "symmetric")
    with_tensors(folder, lambda t: t.update({f"{QKV}.weight.zero_point": t[f"{QKV}.weight.zero_point"] - 1}))
    with pytest.raises(CheckpointError, match=r"weight\.zero_point must be 128 for 8 bits, got 127"):
        load_checkpoint(folder)


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scale=st.floats(width=32), place=st.integers(0, 95))
def test_a_scale_loads_if_and_only_if_it_is_a_normal_positive_number(
    packed: Path, tmp_path: Path, scale: float, place: int
) -> None:
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(packed, folder)
    with_tensors(folder, lambda tensors: tensors[f"{QKV}.weight.scale"].__setitem__(place, scale))
    if MIN_SCALE <= scale <= MAX_SCALE:
        assert float(load_checkpoint(folder).state_dict()[f"{QKV}.weight.scale"][place]) == scale
    else:
        with pytest.raises(CheckpointError, match="finite, positive"):
            load_checkpoint(folder)


@pytest.mark.parametrize("name", ["a" * 100_000, "../../etc/passwd", "line\nbreak"])
def test_names_of_unknown_tensors_do_not_flood_the_message(copy: Path, name: str) -> None:
    with_tensors(copy, lambda tensors: tensors.update({name: torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="has unknown") as error:
        load_checkpoint(copy)
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_could_not_be_loaded_is_not_written(tmp_path: Path) -> None:
    model = quantize_tiny(tiny_recipe())
    model.get_submodule(f"{QKV}.input_quantizer").scale.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"input_quantizer\.scale must be finite"):
        save_checkpoint(model, tiny_processor(), tmp_path / "out")
    assert not any(tmp_path.iterdir())
