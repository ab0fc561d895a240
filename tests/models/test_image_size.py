"""`load` at another input size: every source, the processor, and the sizes that are refused."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SamModel

import saqsam
from saqsam.inference.predictor import Predictor
from saqsam.models.format import ModelFormat
from saqsam.models.processing import build_processor, input_side, resize_processor
from saqsam.models.sam.format import SamFormat
from saqsam.utils.errors import CheckpointError
from support.state_dict_names import official_names
from support.tiny_quantized import assert_same_outputs, quantized_tiny, tiny_data, tiny_recipe
from support.tiny_sam import IMAGE_SIZE, tiny_config, tiny_sam

SIZES = (32, 96)


def same_tensors(one: SamModel, other: SamModel) -> None:
    found, expected = one.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def masks(model: Any, processor: Any) -> np.ndarray:
    predictor = Predictor(model, processor)
    predictor.set_image(tiny_data()[0].image)
    logits, ious, _ = predictor.predict(box=np.array([5, 6, 50, 40]), return_logits=True)
    assert np.isfinite(logits).all()
    assert np.isfinite(ious).all()
    return logits


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny SAM that the test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def test_the_models_own_size_changes_nothing(tiny: Path) -> None:
    (plain, processor), (sized, other) = saqsam.load(tiny), saqsam.load(tiny, image_size=IMAGE_SIZE)
    same_tensors(sized, plain)
    assert_same_outputs(sized, plain)
    assert sized.config.to_dict() == plain.config.to_dict()
    assert other.to_dict() == processor.to_dict()


@pytest.mark.parametrize("size", SIZES)
def test_model_and_processor_have_the_size(tiny: Path, size: int) -> None:
    model, processor = saqsam.load(tiny, image_size=size)
    assert not model.training
    assert model.config.vision_config.image_size == model.config.prompt_encoder_config.image_size == size
    assert processor.to_dict() == build_processor(model.config).to_dict()
    assert processor.target_size == input_side(processor) == size
    pixels = processor(tiny_data()[0].image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, size, size)
    assert model(pixel_values=pixels).pred_masks.shape[-2:] == (size // 2, size // 2)
    assert masks(model, processor).shape[-2:] == (48, 64)


def test_masks_follow_those_of_the_models_own_size() -> None:
    """On a trained model a resized one finds the same object."""
    found = []
    image = saqsam.open_dataset("scenes", limit=1)[0]
    box = np.array(max(image.instances, key=lambda one: one.mask().sum()).box)
    for size in (None, 192, 320):
        predictor = Predictor(*saqsam.load("sam-mini", image_size=size))
        predictor.set_image(image.image)
        found.append(predictor.predict(box=box, multimask_output=False)[0][0].astype(bool))
    for other in found[1:]:
        assert (found[0] & other).sum() / (found[0] | other).sum() > 0.8


def test_a_resized_model_saves_and_loads(tiny: Path, tmp_path: Path) -> None:
    model, processor = saqsam.load(tiny, image_size=96)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, other = saqsam.load(tmp_path)
    same_tensors(again, model)
    assert other.to_dict() == processor.to_dict()
    same_tensors(SamModel.from_pretrained(tmp_path), model)


def test_other_settings_of_the_processor_are_kept(folder: Path) -> None:
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"]["image_mean"] = [0.25, 0.5, 0.75]
    path.write_text(json.dumps(content))
    model, processor = saqsam.load(folder, image_size=96)
    assert list(processor.image_processor.image_mean) == [0.25, 0.5, 0.75]
    assert input_side(processor) == 96
    assert resize_processor(processor, model.config) is processor


@pytest.mark.parametrize("is_official", [True, False])
def test_files_without_a_configuration(tmp_path: Path, is_official: bool) -> None:
    model = tiny_sam()
    expected = SamFormat().resize(tiny_config(), model.state_dict(), 96)[1]
    torch.save(official_names(model) if is_official else model.state_dict(), tmp_path / "sam.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the values that shapes do not tell
        loaded, processor = saqsam.load(tmp_path / "sam.pth", image_size=96)
    assert input_side(processor) == 96
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name


# Quantized models


def test_quantized_at_another_size(tiny: Path, tmp_path: Path) -> None:
    model, processor = saqsam.load(tiny, image_size=96)
    result = saqsam.quantize(model, processor, tiny_recipe(), tiny_data())
    result.save(tmp_path / "packed")
    again, other = saqsam.load(tmp_path / "packed")
    assert input_side(other) == 96
    assert np.array_equal(masks(again, other), masks(result.model, processor))
    assert np.array_equal(masks(*saqsam.load(tmp_path / "packed", image_size=96)), masks(again, other))
    with pytest.raises(ValueError, match="is quantized at 96 px; quantize the float model at 64 px instead"):
        saqsam.load(tmp_path / "packed", image_size=64)


def test_packed_checkpoint_at_its_own_size(packed: Path) -> None:
    assert_same_outputs(saqsam.load(packed, image_size=IMAGE_SIZE)[0], quantized_tiny())
    for path in (packed, packed / "model.safetensors"):
        with pytest.raises(ValueError, match=r"^image_size: .*quantized at 64 px"):
            saqsam.load(path, image_size=96)


# Refusals


@pytest.mark.parametrize(
    ("size", "what"),
    [
        (100, r"such as 96 and 104; got 100"),
        (2047, r"such as 2040 and 2048; got 2047"),
        (4, "got 4"),
        (0, "got 0"),
        (-64, "got -64"),
        (2056, "got 2056"),
        (10**30, "got 10"),
        (96.0, r"got 96\.0"),
        ("96", "got '96'"),
        (True, "got True"),
    ],
)
def test_sizes_that_no_model_has(tiny: Path, size: Any, what: str) -> None:
    expected = r"^image_size: expected a multiple of 8 from 8 to 2048, "
    with pytest.raises(ValueError, match=expected + what) as error:
        saqsam.load(tiny, image_size=size)
    assert "\n" not in str(error.value)


def test_a_size_that_the_configuration_does_not_allow(folder: Path) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["vision_config"]["window_size"] = 65
    content["vision_config"]["image_size"] = content["prompt_encoder_config"]["image_size"] = 520
    content["prompt_encoder_config"]["image_embedding_size"] = 65
    path.write_text(json.dumps(content))
    (folder / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"the tensors|pos_embed"):
        saqsam.load(folder, image_size=64)


@pytest.mark.parametrize("name", ["vision_encoder.pos_embed", "vision_encoder.layers.3.attn.rel_pos_h"])
@pytest.mark.parametrize("damage", ["shape", "size", "dtype", "missing", "nan"])
def test_damaged_tables(folder: Path, name: str, damage: str) -> None:
    path = folder / "model.safetensors"
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    resized = SamFormat().resize(tiny_config(), tiny_sam().state_dict(), 96)[1]
    changed = {
        "shape": tensors[name].flatten(),
        "size": resized[name].clone(),
        "dtype": tensors[name].to(torch.int32),
        "missing": None,
        "nan": tensors[name].clone().fill_(torch.nan),
    }[damage]
    del tensors[name]
    save_file(tensors if changed is None else {**tensors, name: changed}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=name):
        saqsam.load(folder, image_size=96)


def test_families_of_one_size_refuse_others() -> None:
    class Fixed(SamFormat):
        resize = ModelFormat.resize

    with pytest.raises(ValueError, match=r"^image_size: models of type 'sam' have one input size"):
        Fixed().resize(tiny_config(), {}, 96)
