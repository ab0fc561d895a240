"""Files of other segmentation models are refused by the name of the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from saqsam.models import load
from saqsam.models.other_families import name_of_model_type, name_of_tensors
from saqsam.utils.errors import CheckpointError
from support.state_dict_names import official_names
from support.tiny_sam import tiny_sam

OFFICIAL = official_names(tiny_sam())
ONE = torch.zeros(1)
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "edgetam.pt": (
        "an EdgeTAM",
        {"model": {"image_encoder.trunk.body.stem.weight": ONE, "sam_mask_decoder.iou_token.weight": ONE}},
    ),
    "sam3.1.pt": (
        "a SAM 3.1",
        {"detector.backbone.vision_backbone.interactive_convs.0.conv_1x1.weight": ONE},
    ),
}


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_refused_by_its_name(file: str, tmp_path: Path) -> None:
    name, content = FILES[file]
    torch.save(content, tmp_path / file)
    with pytest.raises(
        CheckpointError, match=rf"{file}: this is {name} checkpoint; saqsam supports SAM v1, "
    ) as error:
        load(tmp_path / file)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_safetensors_are_recognized_alike(tmp_path: Path) -> None:
    save_file(dict(FILES["sam3.1.pt"][1]), tmp_path / "sam3.1.safetensors")
    with pytest.raises(CheckpointError, match=r"this is a SAM 3\.1 checkpoint"):
        load(tmp_path / "sam3.1.safetensors")


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("edgetam", "EdgeTAM"),
        ("sam3", "SAM 3"),
    ],
)
def test_a_folder_is_refused_by_its_name(model_type: str, name: str, tmp_path: Path) -> None:
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"config\.json: this is an? {name} checkpoint; saqsam supports SAM v1"
    ):
        load(tmp_path)


def test_sam_itself_is_no_other_model() -> None:
    assert name_of_tensors(OFFICIAL) is None
    assert name_of_tensors(tiny_sam().state_dict()) is None
    assert name_of_model_type("sam") is name_of_model_type(None) is name_of_model_type(["sam2"]) is None
