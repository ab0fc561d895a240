"""Models found in what training scripts save."""

import argparse
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import SamModel

from saqsam.models import load
from saqsam.models.building import build_model
from saqsam.models.processing import build_processor
from saqsam.models.sam.official import from_official
from saqsam.models.state_dicts import find_model
from saqsam.utils.errors import CheckpointError
from support.state_dict_names import official_names
from support.tiny_sam import tiny_config, tiny_sam

HEADS = 8
"""Of the official decoder."""


def source_model() -> SamModel:
    config = tiny_config()
    config.mask_decoder_config.num_attention_heads = HEADS
    config.mask_decoder_config.layer_norm_eps = 1e-5
    return tiny_sam(seed=1, config=config)


MODEL = source_model()
OFFICIAL = official_names(MODEL)
TRANSFORMERS = {name: value.clone() for name, value in MODEL.state_dict().items()}
HEAD = {"head.weight": torch.ones(2), "head.num_batches_tracked": torch.tensor(3)}
IMAGENET = {
    "pixel_mean": torch.tensor([123.675, 116.28, 103.53]).reshape(3, 1, 1),
    "pixel_std": torch.tensor([58.395, 57.12, 57.375]).reshape(3, 1, 1),
}
BOOKKEEPING: dict[str, Any] = {
    "epoch": 3,
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
    "hyper_parameters": {"lr": 1e-4},
}


def add(prefix: str, state: dict[str, Tensor] = OFFICIAL) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def assert_same(model: SamModel) -> None:
    for name, value in MODEL.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


LAYOUTS: dict[str, Any] = {
    "plain": OFFICIAL,
    "ordered": OrderedDict(OFFICIAL),
    "DataParallel": add("module."),
    "model": {"model": OFFICIAL} | BOOKKEEPING,
    "model, DataParallel": {"model": add("module.")} | BOOKKEEPING,
    "model_state_dict": {"model_state_dict": OFFICIAL} | BOOKKEEPING,
    "net": {"net": OFFICIAL},
    "ema": {"ema": add("module."), "epoch": 1},
    "state_dict, DataParallel": {"state_dict": add("module.")} | BOOKKEEPING,
    "nested": {"checkpoint": {"model": {"state_dict": OFFICIAL}}},
    "Lightning": {"state_dict": add("model."), "pytorch-lightning_version": "2.4.0"} | BOOKKEEPING,
    "Lightning, deeper": {"state_dict": add("net.sam.")},
    "Lightning, compiled": {"state_dict": add("model._orig_mod.")},
    "DataParallel inside": {"state_dict": add("model.module.")},
    "one encoder wrapped": {
        name.replace("encoder.", "encoder.module.", 1): v for name, v in OFFICIAL.items()
    },
    "the same twice": {"model": OFFICIAL, "state_dict": OFFICIAL},
    "parameters": {name: nn.Parameter(value) for name, value in OFFICIAL.items()},
    "pixel statistics": OFFICIAL | IMAGENET,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_trainers(tmp_path: Path, layout: str) -> None:
    torch.save(LAYOUTS[layout], tmp_path / "sam.pth")
    assert_same(load(tmp_path / "sam.pth")[0])


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "sam."])
def test_safetensors_with_a_prefix(tmp_path: Path, prefix: str) -> None:
    save_file(add(prefix), tmp_path / "sam.safetensors")
    assert_same(load(tmp_path / "sam.safetensors")[0])


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(["model", "net", "sam", "module", "0", "a_b"]), max_size=4),
    st.lists(st.sampled_from(["model", "state_dict", "params", "ema"]), max_size=3),
)
def test_any_prefix_under_any_key_is_found(prefix: list[str], keys: list[str]) -> None:
    content: dict[str, Any] = add("".join(f"{part}." for part in prefix))
    for key in keys:
        content = {key: content, "epoch": 1}
    found = find_model(content, Path("sam.pth"))
    assert found.is_official
    assert found.tensors.keys() == OFFICIAL.keys()
    assert not found.extra_names


@pytest.mark.parametrize("prefix", ["", "model."])
def test_other_modules_beside_the_model_are_counted(tmp_path: Path, prefix: str) -> None:
    torch.save({"state_dict": add(prefix) | HEAD}, tmp_path / "sam.pth")
    with pytest.warns(
        UserWarning, match=r"ignored 2 tensors beside the model: head\.num_batches_tracked, head"
    ):
        model, _ = load(tmp_path / "sam.pth")
    assert_same(model)


def test_other_modules_are_not_mentioned_where_the_model_is_incomplete(tmp_path: Path) -> None:
    state = OFFICIAL | HEAD
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, tmp_path / "sam.pth")
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(CheckpointError, match=r"1 missing: mask_decoder\.iou_token\.weight"),
    ):
        load(tmp_path / "sam.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": OFFICIAL, "ema": add("module.")},
            "holds 2 Segment Anything models, under 'model', 'ema': save",
        ),
        (add("student.") | add("teacher."), "under 'prefix student.', 'prefix teacher.'"),
        (OFFICIAL | add("module."), "twice, with and without 'module.'"),
        (
            {"model": {"state": {"inner": {"deep": {"deeper": OFFICIAL}}}}},
            "expected the tensors of a Segment Anything",
        ),
        (
            OFFICIAL | {"image_encoder.blocks.0.attn.qkv.lora_A.weight": torch.zeros(2)},
            r"has 1 tensors that a SAM does not have: image_encoder\.blocks\.0\.attn\.qkv\.lora_A\.weight: merge",
        ),
        (OFFICIAL | {"w_a_000": torch.zeros(2)}, "has 1 tensors that a SAM does not have: w_a_000"),
        (
            OFFICIAL | {"image_encoder.blocks.0.MLP_Adapter.D_fc1.weight": torch.zeros(2)},
            "has 1 tensors that a SAM does not have",
        ),
        (
            OFFICIAL | {"mask_decoder.hf_token.weight": torch.zeros(2)},
            r"sam\.pth: not a complete SAM-HQ: mask_decoder\.compress_vit_conv1\.weight is missing",
        ),
        (
            OFFICIAL | {"mask_decoder.depth_token.weight": torch.zeros(2)},
            r"1 unknown tensors .* a SAM does not have: mask_decoder\.depth_token",
        ),
    ],
)
def test_what_is_no_single_model_is_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    torch.save(content, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        load(tmp_path / "sam.pth")
    assert "\n" not in str(error.value)


def test_objects_in_a_file_are_named_with_a_way_out(tmp_path: Path) -> None:
    torch.save({"model": OFFICIAL, "args": argparse.Namespace(lr=1)}, tmp_path / "sam.pth")
    with pytest.raises(
        CheckpointError, match=r"holds a argparse\.Namespace, .* save the tensors alone, as by torch\.save\("
    ):
        load(tmp_path / "sam.pth")


def test_transformers_names_without_a_config(tmp_path: Path) -> None:
    """Nothing tells the eps of the decoder, 1e-6 by default in transformers."""
    torch.save(add("module.", TRANSFORMERS), tmp_path / "sam.bin")
    with pytest.warns(UserWarning, match=r"no config\.json beside it: assumed 8 heads in the decoder"):
        model, processor = load(tmp_path / "sam.bin")
    assert_same(model)
    assert processor.target_size == 64
    expected = MODEL.config.to_dict()
    expected["mask_decoder_config"]["layer_norm_eps"] = 1e-6
    found = model.config.to_dict()
    for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        assert {k: v for k, v in found[part].items() if k != "initializer_range"} == {
            k: v for k, v in expected[part].items() if k != "initializer_range"
        }


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(96, dtype=torch.int32),
        torch.zeros(96, dtype=torch.complex64),
        torch.zeros(96).to_sparse(),
        torch.zeros(96, dtype=torch.bool),
    ],
    ids=["int32", "complex64", "sparse", "bool"],
)
def test_tensors_of_another_kind_are_refused(tmp_path: Path, tensor: Tensor) -> None:
    torch.save(OFFICIAL | {"image_encoder.blocks.0.attn.qkv.bias": tensor}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="expected floating-point tensors, got others"):
        load(tmp_path / "sam.pth")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_other_float_dtypes_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({name: value.to(dtype) for name, value in OFFICIAL.items()}, tmp_path / "sam.pth")
    model, _ = load(tmp_path / "sam.pth")
    for name, value in MODEL.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.to(dtype).float()), name


def test_a_value_beyond_float32_is_named(tmp_path: Path) -> None:
    large = torch.full((96,), 1e300, dtype=torch.float64)
    torch.save(OFFICIAL | {"image_encoder.blocks.0.attn.qkv.bias": large}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=r"layers\.0\.attn\.qkv\.bias holds NaN or infinity"):
        load(tmp_path / "sam.pth")


def test_an_expanded_tensor_takes_no_memory(tmp_path: Path) -> None:
    """A few bytes on disk may claim any shape by strides of 0."""
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save(OFFICIAL | {"mask_decoder.iou_token.weight": huge}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="misshapen"):
        load(tmp_path / "sam.pth")


def test_official_names_of_the_helper_are_the_official_ones() -> None:
    config, tensors = from_official(OFFICIAL)
    assert_same(build_model(config, tensors, source="test"))


def test_the_statistics_of_a_file_are_used(tmp_path: Path) -> None:
    """A model trained with other pixel statistics than ImageNet's is normalized with its own."""
    plain = dict(OFFICIAL)
    own = {"pixel_mean": torch.full((3, 1, 1), 127.5), "pixel_std": torch.full((3, 1, 1), 51.0)}
    torch.save({**plain, **IMAGENET}, tmp_path / "usual.pth")
    torch.save({**plain, **own}, tmp_path / "own.pth")
    assert (
        load(tmp_path / "usual.pth")[1].image_processor.image_mean
        == build_processor(MODEL.config).image_processor.image_mean
    )
    with pytest.warns(UserWarning, match=r"normalized with the pixel_(mean|std) of the file"):
        processor = load(tmp_path / "own.pth")[1].image_processor
    assert (processor.image_mean, processor.image_std) == ([0.5] * 3, pytest.approx([0.2] * 3))
    for bad in (torch.zeros(3), torch.tensor([1.0, float("nan"), 1.0]), torch.ones(2), torch.full((3,), 1e9)):
        torch.save({**plain, "pixel_std": bad}, tmp_path / "bad.pth")
        with pytest.raises(CheckpointError, match="pixel_std: expected three numbers"):
            load(tmp_path / "bad.pth")
