"""The tracker in the official `sam3.pt`: its tensors by name, and what the official code computes with them."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import Sam3TrackerConfig, Sam3TrackerModel

import saqsam
from saqsam.models.sam3_tracker import format as sam3_format
from saqsam.models.sam3_tracker.configuration import sam3_tracker_fields
from saqsam.models.sam3_tracker.neck import drop_unread_level
from saqsam.models.sam3_tracker.official import rename_official, without_prefixes
from saqsam.utils.errors import CheckpointError
from support.sam3_official import OTHERS, OfficialSam3, official_state_dict, small_official
from support.tiny_sam3_tracker import tiny_sam3_tracker, tiny_sam3_tracker_config, tiny_sam3_tracker_pixels


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Sam3TrackerModel:
    """The tiny model, in place of the published one: the file has no configuration of its own."""
    monkeypatch.setattr(
        sam3_format, "parse_sam3_tracker_config", lambda raw, source: tiny_sam3_tracker_config()
    )
    return tiny_sam3_tracker(all_levels=True)


def tracker(model: Sam3TrackerModel) -> dict[str, Any]:
    """Return the official tensors of the tracker, without prefixes."""
    named = {without_prefixes(name): value for name, value in official_state_dict(model).items()}
    return {name: value for name, value in named.items() if not name.startswith(("detector.", "tracker."))}


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_tracker_of_an_official_file_is_read_without_a_warning(
    published: Sam3TrackerModel, tmp_path: Path, suffix: str, prefix: str
) -> None:
    tensors = {f"{prefix}{name}": value for name, value in official_state_dict(published).items()}
    path = tmp_path / f"sam3{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save({"model": tensors}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, processor = saqsam.load(path)
    expected = tiny_sam3_tracker().state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert processor.image_processor.size["height"] == 112
    assert processor.image_processor.image_mean == (0.5, 0.5, 0.5)


def test_the_state_dict_of_the_official_image_model_is_read_as_well(
    published: Sam3TrackerModel, tmp_path: Path
) -> None:
    tensors = {
        re.sub(r"^tracker\.", "inst_interactive_predictor.model.", name).removeprefix("detector."): value
        for name, value in official_state_dict(published).items()
    }
    torch.save(tensors, tmp_path / "image_model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, _ = saqsam.load(tmp_path / "image_model.pt")
    expected = tiny_sam3_tracker().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_the_published_model_is_recognized_by_its_width_and_blocks() -> None:
    with torch.device("meta"):
        model = Sam3TrackerModel(Sam3TrackerConfig())
    config, tensors = sam3_format.Sam3TrackerFormat().from_official(tracker(model))
    expected = sam3_format.parse_sam3_tracker_config({}, "")
    assert sam3_tracker_fields(config) == sam3_tracker_fields(expected)
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in tensors.items()
    }
    with pytest.raises(CheckpointError, match="published SAM 3, 1024 and 32, got 32 and 4"):
        sam3_format.Sam3TrackerFormat().from_official(tracker(tiny_sam3_tracker()))


def test_unknown_and_missing_tensors_are_refused_by_name() -> None:
    tensors = tracker(tiny_sam3_tracker())
    qkv = "backbone.vision_backbone.trunk.blocks.2.attn.qkv.weight"
    for change, message in (
        (
            {"sam_mask_decoder.extra": torch.ones(1)},
            r"1 unknown tensors.*SAM 3 tracker.*sam_mask_decoder\.extra",
        ),
        ({"sam_mask_decoder.iou_token.weight": 3}, r"expected a tensor under .*iou_token\.weight.*, got int"),
        ({qkv: torch.ones(5, 3)}, r"blocks\.2\.attn\.qkv\.weight: expected queries, keys.*got \[5, 3\]"),
        ({qkv: torch.ones(())}, r"blocks\.2\.attn\.qkv\.weight: expected queries, keys.*got \[\]"),
    ):
        with pytest.raises(CheckpointError, match=message) as error:
            rename_official({**tensors, **change})
        assert "\n" not in str(error.value)
    missing = dict(tensors)
    del missing["sam_prompt_encoder.point_embeddings.2.weight"]
    with pytest.raises(CheckpointError, match=r"expected 4 embeddings of points.*\[0, 1, 3\]"):
        rename_official(missing)


@pytest.mark.parametrize("part", ["sam_mask_decoder", "sam2_convs"])
def test_a_detector_without_its_tracker_is_refused(tmp_path: Path, part: str) -> None:
    tensors = {
        name: value for name, value in official_state_dict(tiny_sam3_tracker()).items() if part not in name
    }
    torch.save(tensors, tmp_path / "sam3.pt")
    with pytest.raises(CheckpointError, match=rf"no tensor of its tracker under .*{part}") as error:
        saqsam.load(tmp_path / "sam3.pt")
    assert "\n" not in str(error.value)


def test_a_table_of_positions_without_a_class_token_is_kept() -> None:
    tensors = tracker(tiny_sam3_tracker())
    name = "backbone.vision_backbone.trunk.pos_embed"
    own = "vision_encoder.backbone.embeddings.position_embeddings"
    assert tensors[name].shape[1] == 10
    cut = rename_official({**tensors, name: tensors[name][:, 1:]})[own]
    assert torch.equal(cut, rename_official(tensors)[own])
    assert cut.shape[1] == 9


# The official code


@pytest.fixture(scope="module")
def official() -> OfficialSam3:
    return small_official()


def converted(official: OfficialSam3) -> Sam3TrackerModel:
    named = {without_prefixes(name): value for name, value in official.state_dict().items()}
    model = tiny_sam3_tracker(all_levels=True)
    assert not model.load_state_dict(rename_official(named), strict=True).missing_keys
    drop_unread_level(model)
    return model


POINTS = torch.tensor([[[20.0, 30.0], [90.5, 40.0]], [[64.0, 64.0], [1.0, 101.0]]])
LABELS = torch.tensor([[1, 0], [1, 1]])
BOXES = torch.tensor([[10.0, 12.0, 60.0, 70.5], [0.0, 0.0, 112.0, 112.0]])


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("prompt", ["points", "boxes"])
@torch.no_grad()
def test_the_official_code_computes_the_same_masks(
    official: OfficialSam3, prompt: str, multimask: bool
) -> None:
    model, pixels = converted(official), tiny_sam3_tracker_pixels()
    if prompt == "points":
        masks, scores, objects = official(pixels, (POINTS, LABELS), multimask)
        prompts = {"input_points": POINTS[None], "input_labels": LABELS[None]}
    else:
        # The official predictor passes the corners of a box as points with labels of their own.
        corners = (BOXES.reshape(-1, 2, 2), torch.tensor([[2, 3]] * len(BOXES)))
        masks, scores, objects = official(pixels, corners, multimask)
        prompts = {"input_boxes": BOXES[None]}
    outputs = model(pixel_values=pixels, **prompts, multimask_output=multimask)
    assert masks.std() > 0.1
    for actual, expected in (
        (outputs.pred_masks[0], masks),
        (outputs.iou_scores[0], scores),
        (outputs.object_score_logits[0], objects),
    ):
        torch.testing.assert_close(actual, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


def test_the_names_are_those_of_the_official_code(official: OfficialSam3) -> None:
    names = {
        name for name in official.state_dict() if not re.search(r"freqs_cis|vision_backbone\.convs\.", name)
    }
    made = {
        name
        for name in official_state_dict(tiny_sam3_tracker(all_levels=True))
        if name not in OTHERS and "freqs_cis" not in name
    }
    assert made == names
