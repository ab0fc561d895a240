"""The forward pass of SAM 2 in parts is that of transformers' `Sam2Model`."""

import copy

import pytest
import torch
from transformers import Sam2Model

from saqsam.evaluation.fingerprint import encoder_identity
from saqsam.inference.predictor import Predictor
from saqsam.models.registry import family_of, structure_of
from saqsam.models.sam2.family import Sam2Family
from support.family_checks import (
    PROMPT_KINDS,
    check_masks,
    check_selected_masks,
    in_parts,
    with_quantizable_attentions,
)
from support.tiny_sam2 import tiny_sam2, tiny_sam2_config, tiny_sam2_pixels, tiny_sam2_processor

FAMILY = Sam2Family()
BOXES = torch.tensor([[10.0, 20.0, 90.0, 100.0], [0.0, 0.0, 127.0, 127.0], [40.0, 30.0, 60.0, 80.0]])


@pytest.fixture(scope="module")
def model() -> Sam2Model:
    return tiny_sam2()


def test_a_sam_2_belongs_to_its_family() -> None:
    assert isinstance(family_of(tiny_sam2_config()), Sam2Family)
    assert [list(stage) for stage in structure_of(tiny_sam2_config()).stages] == [[0], [1], [2, 3], [4], [5]]


@torch.inference_mode()
def test_features_are_the_model_s(model: Sam2Model) -> None:
    finest, fine, embedding = model.get_image_embeddings(tiny_sam2_pixels())
    features = FAMILY.encode(model, tiny_sam2_pixels())
    spec = FAMILY.input_spec(model.config)
    for found, expected, shape in zip(
        features.maps, (embedding, finest, fine), spec.features.values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert found.shape == shape


@torch.inference_mode()
def test_folding_changes_only_the_last_bits(model: Sam2Model) -> None:
    folded = copy.deepcopy(model)
    FAMILY.simplify(folded)
    FAMILY.simplify(folded)  # nothing is left to fold
    assert tuple(folded.vision_encoder.neck.convs[3].weight.shape) == (4, 16, 1, 1)
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in model.parameters())
    features = FAMILY.encode(folded, tiny_sam2_pixels())
    for found, expected in zip(features.maps, FAMILY.encode(model, tiny_sam2_pixels()).maps, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # transformers' own forward pass runs the folded model too.
    outputs = [
        one(pixel_values=tiny_sam2_pixels(), input_boxes=BOXES[None], multimask_output=True)
        for one in (model, folded)
    ]
    torch.testing.assert_close(outputs[0].pred_masks, outputs[1].pred_masks, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_unfolding_gives_a_plain_model_with_the_same_masks(model: Sam2Model) -> None:
    folded = copy.deepcopy(model)
    FAMILY.simplify(folded)
    plain = FAMILY.build(model.config)
    plain.load_state_dict(dict(FAMILY.plain_tensors(model.config, folded.state_dict())))
    for found, expected in zip(
        FAMILY.encode(plain.eval(), tiny_sam2_pixels()).maps,
        FAMILY.encode(folded, tiny_sam2_pixels()).maps,
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_blocks_in_parts_are_the_encoder(model: Sam2Model) -> None:
    state = FAMILY.embed_patches(model, tiny_sam2_pixels(2))
    for stage in structure_of(model.config).stages:
        state = FAMILY.run_blocks(model, stage, state)
    assert [tuple(part.shape[1:]) for part in state] == [(4, 4, 128), (32, 32, 16), (16, 16, 32), (8, 8, 64)]
    whole = FAMILY.encode(model, tiny_sam2_pixels(2))
    for found, expected in zip(FAMILY.run_neck(model, state).maps, whole.maps, strict=True):
        assert torch.equal(found, expected)


def test_skipping_leads_to_the_end_of_the_third_stage(model: Sam2Model) -> None:
    assert structure_of(model.config).skip_targets == (1, 2, 5, 5, 5, 6)
    # After the last block of the third stage nothing is skipped: the plain forward pass.
    state = FAMILY.run_blocks(model, range(5), FAMILY.embed_patches(model, tiny_sam2_pixels()))
    target = structure_of(model.config).skip_targets[4]
    rest = FAMILY.run_neck(model, FAMILY.run_blocks(model, range(target, 6), state))
    for found, expected in zip(rest.maps, FAMILY.encode(model, tiny_sam2_pixels()).maps, strict=True):
        assert torch.equal(found, expected)


@torch.inference_mode()
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_masks_are_those_of_the_model(model: Sam2Model, kind: str, multimask: bool) -> None:
    check_masks(model, tiny_sam2_pixels(), BOXES, kind, multimask=multimask)


@torch.inference_mode()
@pytest.mark.parametrize("threshold", [0.0, 0.98, 1.0])
def test_the_decoder_in_parts_gives_the_selected_masks(threshold: float) -> None:
    model = tiny_sam2(1, tiny_sam2_config(dynamic_multimask_stability_thresh=threshold))
    check_selected_masks(model, tiny_sam2_pixels(), BOXES)


@torch.inference_mode()
def test_unstable_masks_are_replaced_by_the_best_of_the_others() -> None:
    config = tiny_sam2_config(dynamic_multimask_stability_thresh=0.5)
    logits = torch.full((3, 4, 2, 2), 5.0)
    logits[0, 0] = 0.01  # unstable: within the delta of 0.05
    logits[1, 0] = -5.0  # empty, which counts as stable
    ious = torch.tensor([[0.9, 0.1, 0.4, 0.2]] * 3)
    masks, scores = FAMILY.select_masks(config, logits, ious, False)
    assert torch.equal(masks, torch.stack([logits[0, 2:3], logits[1, :1], logits[2, :1]]))
    assert scores.flatten().tolist() == pytest.approx([0.4, 0.9, 0.9])


@torch.inference_mode()
def test_attentions_with_empty_slots_are_transformers(model: Sam2Model) -> None:
    quantizable = with_quantizable_attentions(model)
    for found, expected in zip(
        in_parts(quantizable, tiny_sam2_pixels(), BOXES),
        in_parts(model, tiny_sam2_pixels(), BOXES),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["mask_decoder.conv_s0.weight", "mask_decoder.conv_s1.bias", "no_memory_embedding"]
)
def test_everything_that_features_depend_on_is_the_encoder(name: str) -> None:
    one, other = tiny_sam2(), tiny_sam2()
    processor = tiny_sam2_processor()
    same = encoder_identity(Predictor(one, processor))
    assert same == encoder_identity(Predictor(other, processor))
    with torch.no_grad():
        other.get_parameter(name).add_(1.0)
    assert encoder_identity(Predictor(other, processor)) != same
