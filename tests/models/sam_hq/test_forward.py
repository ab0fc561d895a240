"""The forward pass of SAM-HQ in parts is that of transformers' `SamHQModel`, upscaling the two-way image tokens."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import SamHQModel
from transformers.models.sam_hq.modeling_sam_hq import SamHQAttention, SamHQVisionAttention

from saqsam.evaluation.fingerprint import module_digest
from saqsam.inference.backend import TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.family import flatten_image
from saqsam.models.registry import family_of, structure_of
from saqsam.models.sam_hq.family import SamHQFamily
from saqsam.models.structure import SLOTS, replace_module
from support.tiny_sam import tiny_pixels
from support.tiny_sam_hq import tiny_sam_hq, tiny_sam_hq_config, upscaling_image_tokens

FAMILY = SamHQFamily()
BOXES = torch.tensor([[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0], [1.0, 20.0, 33.0, 63.0]])
POINTS, LABELS = torch.tensor([[[30.0, 20.0], [5.0, 60.0]]] * 3), torch.tensor([[1, 0]] * 3)
MASK = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model() -> SamHQModel:
    return tiny_sam_hq()


@pytest.fixture(scope="module")
def fixed() -> SamHQModel:
    return upscaling_image_tokens(tiny_sam_hq())


def test_a_sam_hq_belongs_to_its_family() -> None:
    assert isinstance(family_of(tiny_sam_hq_config()), SamHQFamily)
    structure = structure_of(tiny_sam_hq_config())
    assert [list(stage) for stage in structure.stages] == [[0, 1], [2, 3]]
    structure.check(tiny_sam_hq())


def test_every_layer_of_the_encoder_and_the_mask_decoder_is_named() -> None:
    named = {site.name for site in structure_of(tiny_sam_hq_config()).weighted_sites}
    for name, module in tiny_sam_hq().named_modules():
        kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
        if isinstance(module, kinds) and not name.startswith("prompt_encoder."):
            assert name in named


@torch.inference_mode()
def test_features_are_the_model_s(model: SamHQModel) -> None:
    embedding, taps = model.get_image_embeddings(tiny_pixels())
    features = FAMILY.encode(model, tiny_pixels())
    spec = FAMILY.input_spec(model.config)
    assert torch.equal(features.embedding, embedding)
    assert [tuple(part.shape) for part in features.maps] == list(spec.features.values())
    state = FAMILY.run_blocks(model, range(2), FAMILY.embed_patches(model, tiny_pixels()))
    assert torch.equal(state[1], taps[0])


@torch.inference_mode()
def test_blocks_in_parts_are_the_encoder(model: SamHQModel) -> None:
    state = FAMILY.embed_patches(model, tiny_pixels(2))
    for stage in structure_of(model.config).stages:
        state = FAMILY.run_blocks(model, stage, state)
    assert [tuple(part.shape) for part in state] == [(2, 8, 8, 32)] * 2
    for found, expected in zip(
        FAMILY.run_neck(model, state).maps, FAMILY.encode(model, tiny_pixels(2)).maps, strict=True
    ):
        assert torch.equal(found, expected)


@torch.inference_mode()
def test_a_state_that_skipped_the_tapped_block_is_its_own_tap(model: SamHQModel) -> None:
    state = FAMILY.embed_patches(model, tiny_pixels())
    assert structure_of(model.config).skip_targets == (4,) * 4
    skipped, plain = FAMILY.run_neck(model, state), FAMILY.run_neck(model, (*state, *state))
    for found, expected in zip(skipped.maps, plain.maps, strict=True):
        assert torch.equal(found, expected)


@torch.inference_mode()
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", ["boxes", "points", "points and boxes", "masks", "boxes and masks"])
def test_masks_are_those_of_the_model(
    model: SamHQModel, fixed: SamHQModel, kind: str, multimask: bool
) -> None:
    boxes = BOXES[: 1 if "masks" in kind else 3] if "boxes" in kind else None
    points = POINTS if "points" in kind else None
    given = MASK if "masks" in kind else None
    inputs = {
        "pixel_values": tiny_pixels(),
        "input_points": None if points is None else points[None],
        "input_labels": None if points is None else LABELS[None],
        "input_boxes": None if boxes is None else boxes[None],
        "input_masks": given,
        "multimask_output": multimask,
    }
    expected, raw = fixed(**inputs), model(**inputs)
    prompts = Prompts(
        boxes=boxes,
        points=points,
        labels=None if points is None else LABELS,
        mask_inputs=None if given is None else given[:, 0],
    )
    backend = TorchBackend(model)
    logits, ious = backend.decode(backend.encode(tiny_pixels()), prompts, multimask)
    torch.testing.assert_close(logits, expected.pred_masks[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ious, raw.iou_scores[0], rtol=1e-4, atol=1e-5)
    # transformers upscales the embedding from before the two-way transformer.
    assert float((raw.pred_masks - expected.pred_masks).std()) > 0.1


@torch.inference_mode()
@pytest.mark.parametrize("hq_token_only", [True, False])
@pytest.mark.parametrize("multimask", [True, False])
def test_the_corrected_forward_pass_is_that_of_the_fixed_line(
    fixed: SamHQModel, multimask: bool, hq_token_only: bool
) -> None:
    corrected = tiny_sam_hq()
    FAMILY.simplify(corrected)
    pixels = torch.cat([tiny_pixels(), tiny_pixels(seed=1)])
    options = {"multimask_output": multimask, "hq_token_only": hq_token_only}
    found, expected = (
        one(pixel_values=pixels, input_boxes=torch.stack([BOXES, BOXES.flip(0)]), **options)
        for one in (corrected, fixed)
    )
    torch.testing.assert_close(found.pred_masks, expected.pred_masks, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.iou_scores, expected.iou_scores)
    scores = found.iou_scores
    assert torch.equal(scores, scores.sort(dim=-1, descending=True).values)


def in_parts(model: SamHQModel) -> tuple[Tensor, Tensor]:
    features = FAMILY.encode(model, tiny_pixels())
    tokens, dense = FAMILY.embed_boxes(model, BOXES)
    image = flatten_image(features.embedding + dense)
    found = FAMILY.run_transformer(
        model, 0, tokens, image, tokens, FAMILY.image_positions(model), with_final=True
    )
    return FAMILY.run_mask_head(model, *found, features.extras)


@torch.inference_mode()
def test_the_decoder_in_parts_gives_the_selected_masks(model: SamHQModel) -> None:
    logits, ious = in_parts(model)
    assert (logits.shape, ious.shape) == ((3, 4, 32, 32), (3, 4))
    backend = TorchBackend(model)
    for multimask in (False, True):
        expected = backend.decode(backend.encode(tiny_pixels()), Prompts(boxes=BOXES), multimask)
        found = FAMILY.select_masks(model.config, logits, ious, multimask)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_attentions_with_empty_slots_are_transformers(model: SamHQModel) -> None:
    quantizable = copy.deepcopy(model)
    for site in structure_of(model.config).attentions:
        old = quantizable.get_submodule(site.name)
        new = FAMILY.quantizable_attention(old, quantized_rel_pos_query=False, row_scaled=False)
        assert isinstance(new, (SamHQVisionAttention, SamHQAttention))
        assert all(hasattr(new, slot) for slot in SLOTS)
        replace_module(quantizable, site.name, new)
    for found, expected in zip(in_parts(quantizable), in_parts(model), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_features_depend_on_layers_of_the_mask_decoder() -> None:
    """Cached features and exchanged layers take the fusion for a part of the encoder."""
    model, other = tiny_sam_hq(), tiny_sam_hq()
    with torch.no_grad():
        other.mask_decoder.encoder_conv1.weight[0] += 1
    assert module_digest(FAMILY.encoder(model)) != module_digest(FAMILY.encoder(other))
    structure = structure_of(model.config)
    assert structure.is_encoder("mask_decoder.compress_vit_conv2")
    assert not structure.is_encoder("mask_decoder.mask_conv1")
