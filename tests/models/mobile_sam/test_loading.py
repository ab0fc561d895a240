"""MobileSAM is loaded from the official file, from a training script's checkpoint, and from folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saqsam.models import load
from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.models.processing import build_processor, input_side, processor_fields
from saqsam.utils.errors import CheckpointError
from support.mobile_sam_reference import SHARED_COPY, convert, small_official
from support.tiny_mobile_sam import pixels, tiny_mobile_sam

ONE = torch.zeros(1)


@pytest.fixture(scope="module")
def official() -> Any:
    return small_official()


@pytest.fixture(scope="module")
def state(official: Any) -> dict[str, Any]:
    return dict(official.state_dict())


def assert_same(found: Any, expected: Any) -> None:
    assert isinstance(found, MobileSamModel)
    assert not found.training
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_the_official_file_is_found_under_any_prefix(
    official: Any, state: dict[str, Any], prefix: str, tmp_path: Path
) -> None:
    path = tmp_path / "mobile_sam.pt"
    torch.save({"model": {prefix + name: value for name, value in state.items()}, "epoch": 3}, path)
    model, processor = load(path)
    # The file does not tell the image size; the published one is assumed.
    assert model.config.vision_config.image_size == input_side(processor) == 1024
    assert_same(model, convert(official, 1024))
    assert processor_fields(processor) == processor_fields(build_processor(model.config))


def test_an_official_file_that_lacks_a_tensor_is_refused(state: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "mobile_sam.pt"
    for missing in ("image_encoder.neck.0.weight", "mask_decoder.iou_token.weight"):
        torch.save({name: value for name, value in state.items() if name != missing}, path)
        with pytest.raises(CheckpointError, match=r"mobile_sam\.pt: .*(is missing|1 missing: )") as error:
            load(path)
        assert "\n" not in str(error.value)


def test_a_folder_and_its_file_are_loaded(tmp_path: Path) -> None:
    model = tiny_mobile_sam()
    model.save_pretrained(tmp_path)
    build_processor(model.config).save_pretrained(tmp_path)
    for where in (tmp_path, tmp_path / "model.safetensors"):
        found, processor = load(where)
        assert_same(found, model)
        assert input_side(processor) == 128
    with torch.inference_mode():
        expected = model.get_image_embeddings(pixels())
        assert torch.equal(found.get_image_embeddings(pixels()), expected)


def test_without_a_configuration_the_shapes_tell_it(tmp_path: Path) -> None:
    config = tiny_mobile_sam().config
    config.mask_decoder_config.num_attention_heads = 8  # cannot be told by the shapes
    model = MobileSamModel(config)
    tensors = {name: value for name, value in model.state_dict().items() if name != SHARED_COPY}
    save_file(tensors, tmp_path / "mobile.safetensors")
    with pytest.warns(UserWarning, match="no config.json beside it: assumed 8 heads"):
        found, _ = load(tmp_path / "mobile.safetensors")
    assert_same(found, model)
    assert found.config.vision_config.image_size == 1024


def test_a_folder_with_official_names_is_converted(
    official: Any, state: dict[str, Any], tmp_path: Path
) -> None:
    model = convert(official)
    model.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(load(tmp_path)[0], model)


def test_the_tensors_of_another_family_are_refused(tmp_path: Path) -> None:
    tiny_mobile_sam().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["vision_encoder.patch_embed.conv1.weight"]
    save_file(tensors | {"vision_encoder.patch_embed.projection.weight": ONE}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="describes a MobileSAM, the tensors are those of a SAM"):
        load(tmp_path)
