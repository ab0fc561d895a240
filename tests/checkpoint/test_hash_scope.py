"""The content hash covers everything that decides a mask; nothing else changes it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import SamImageProcessorPil, SamModel, SamProcessor

import saqsam
from saqsam import CheckpointError
from saqsam.checkpoint import load_checkpoint, save_checkpoint
from support.tiny_quantized import assert_same_outputs, quantized_tiny, tiny_data
from support.tiny_sam import tiny_processor


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def edit(path: Path, section: str, key: str, value: Any) -> None:
    content = json.loads(path.read_text())
    content.setdefault(section, {})[key] = value
    path.write_text(json.dumps(content))


# Legal values, other than those of the checkpoint, of fields that no tensor's shape depends on.
MODEL_EDITS = [
    ("vision_config", "layer_norm_eps", 0.05),
    ("vision_config", "hidden_act", "relu"),
    ("vision_config", "global_attn_indexes", [1]),
    ("vision_config", "num_attention_heads", 1),
    ("vision_config", "window_size", 4),
    ("vision_config", "use_rel_pos", False),
    ("prompt_encoder_config", "hidden_act", "relu"),
    ("prompt_encoder_config", "layer_norm_eps", 0.05),
    ("mask_decoder_config", "hidden_act", "gelu"),
    ("mask_decoder_config", "layer_norm_eps", 0.05),
    ("mask_decoder_config", "num_attention_heads", 2),
]
PROCESSOR_EDITS = [
    ("image_mean", [0.0, 0.0, 0.0]),
    ("image_std", [1.0, 1.0, 1.0]),
    ("image_std", [0.0, 1.0, 1.0]),
    ("image_std", [float("nan")] * 3),
    ("rescale_factor", 0.01),
    ("rescale_factor", "a"),
    ("do_normalize", False),
    ("do_rescale", False),
    ("do_resize", False),
    ("resample", 0),
    ("size", {"longest_edge": 32}),
    ("pad_size", {"height": 32, "width": 32}),
]


@pytest.mark.parametrize(("section", "key", "value"), MODEL_EDITS)
def test_an_altered_model_configuration_is_refused(copy: Path, section: str, key: str, value: Any) -> None:
    edit(copy / "config.json", section, key, value)
    for loader in (load_checkpoint, saqsam.load, SamModel.from_pretrained):
        with pytest.raises(CheckpointError):
            loader(copy)


@pytest.mark.parametrize(("key", "value"), PROCESSOR_EDITS)
def test_an_altered_processor_is_refused(copy: Path, key: str, value: Any) -> None:
    edit(copy / "processor_config.json", "image_processor", key, value)
    for loader in (load_checkpoint, saqsam.load, SamModel.from_pretrained):
        with pytest.raises(CheckpointError):
            loader(copy)


def test_fields_that_decide_no_mask_may_change(copy: Path) -> None:
    path = copy / "config.json"
    content = json.loads(path.read_text())
    content |= {"transformers_version": "99.0", "architectures": ["SamModel"], "some_note": "hello"}
    content["quantization_config"]["saqsam_version"] = "99.0"
    content["vision_config"]["initializer_range"] = 0.5
    path.write_text(json.dumps(content))
    for model in (load_checkpoint(copy), SamModel.from_pretrained(copy)):
        assert_same_outputs(model, quantized_tiny())


def test_a_checkpoint_keeps_the_processor_it_was_saved_with(tmp_path: Path) -> None:
    size = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    own = SamProcessor(SamImageProcessorPil(**size, image_mean=[0.1, 0.2, 0.3], resample=0))
    folder = save_checkpoint(quantized_tiny(), own, tmp_path / "own")
    processor = saqsam.load(folder)[1]
    image = tiny_data()[0].image
    found, expected = (p(images=image, return_tensors="pt")["pixel_values"].numpy() for p in (processor, own))
    assert np.array_equal(found, expected)
    (folder / "processor_config.json").unlink()  # stands for the default processor, which is another one
    with pytest.raises(
        CheckpointError, match=r"processor that this checkpoint was measured with, got no file"
    ):
        load_checkpoint(folder)
    tiny_processor().save_pretrained(folder)
    with pytest.raises(CheckpointError, match="got another one"):
        load_checkpoint(folder)


def test_the_default_processor_needs_no_file(copy: Path) -> None:
    (copy / "processor_config.json").unlink()
    model, _ = saqsam.load(copy)
    assert_same_outputs(model, quantized_tiny())


def test_a_null_byte_of_difference_in_the_recipe_is_noticed(copy: Path) -> None:
    path = copy / "config.json"
    content = json.loads(path.read_text())
    content["quantization_config"]["recipe"]["calibration"]["seed"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="recipe or the configuration were altered"):
        load_checkpoint(copy)
