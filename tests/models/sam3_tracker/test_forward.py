"""The forward pass of SAM 3's tracker in parts is that of transformers' `Sam3TrackerModel`."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import Sam3TrackerModel

from saqsam.models import grid_attention
from saqsam.models.registry import family_of, structure_of
from saqsam.models.sam3_tracker.family import Sam3TrackerFamily
from saqsam.quant.layers import channel_axis
from support.family_checks import (
    PROMPT_KINDS,
    check_masks,
    check_selected_masks,
    in_parts,
    with_quantizable_attentions,
)
from support.tiny_sam3_tracker import (
    tiny_sam3_tracker,
    tiny_sam3_tracker_config,
    tiny_sam3_tracker_pixels,
)

FAMILY = Sam3TrackerFamily()
BOXES = torch.tensor([[10.0, 20.0, 90.0, 100.0], [0.0, 0.0, 111.0, 111.0], [40.0, 30.0, 60.0, 80.0]])


@pytest.fixture(scope="module")
def model() -> Sam3TrackerModel:
    return tiny_sam3_tracker()


def test_a_tracker_belongs_to_its_family() -> None:
    config = tiny_sam3_tracker_config()
    assert isinstance(family_of(config), Sam3TrackerFamily)
    structure = structure_of(config)
    structure.check(tiny_sam3_tracker())
    assert [list(stage) for stage in structure.stages] == [[0, 1], [2, 3]]
    assert structure.skip_targets == (4, 4, 4, 4)
    assert all(site.is_rotary != site.is_decoder for site in structure.attentions)


def test_published_units_end_at_global_blocks() -> None:
    config = FAMILY.format.parse_config({}, "defaults")
    assert [stage[-1] for stage in FAMILY.structure(config).stages] == [7, 15, 23, 31]


def test_every_layer_has_a_part(model: Sam3TrackerModel) -> None:
    named = {site.name for site in structure_of(model.config).weighted_sites}
    own = {
        name
        for name, module in model.named_modules()
        if hasattr(module, "weight")
        and module.weight.dim() > 1
        and not isinstance(module, torch.nn.Embedding)
    }
    # The decoder's convolutions of high-resolution features are folded into the neck's.
    prompts = {f"prompt_encoder.mask_embed.conv{i}" for i in (1, 2, 3)}
    assert own - named == {"mask_decoder.conv_s0", "mask_decoder.conv_s1", *prompts}
    transposed = [n for n in named if isinstance(model.get_submodule(n), torch.nn.ConvTranspose2d)]
    assert len(transposed) == 3 + 2
    assert all(channel_axis(model.get_submodule(name)) == 1 for name in transposed)


@torch.inference_mode()
@pytest.mark.parametrize("window", [4, 3])
def test_features_are_the_model_s(window: int) -> None:
    model = tiny_sam3_tracker(config=tiny_sam3_tracker_config(window=window))
    finest, fine, embedding = model.get_image_embeddings(tiny_sam3_tracker_pixels())
    features = FAMILY.encode(model, tiny_sam3_tracker_pixels())
    spec = FAMILY.input_spec(model.config)
    for found, expected, shape in zip(
        features.maps, (embedding, finest, fine), spec.features.values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert found.shape == shape


@torch.inference_mode()
def test_the_embedding_without_memory_is_added_to_the_image_embedding() -> None:
    whole, model = tiny_sam3_tracker(all_levels=True), tiny_sam3_tracker()
    pixels = tiny_sam3_tracker_pixels()
    difference = model.get_image_embeddings(pixels)[2] - whole.get_image_embeddings(pixels)[2]
    # transformers adds it to the fourth level of the neck, which nothing reads.
    expected = model.no_memory_embedding.reshape(1, -1, 1, 1).expand_as(difference)
    torch.testing.assert_close(difference, expected, rtol=1e-4, atol=1e-5)
    for found, other in zip(
        FAMILY.encode(whole, pixels).maps, FAMILY.encode(model, pixels).maps, strict=True
    ):
        assert torch.equal(found, other), "saqsam's forward pass is the same for both"
    FAMILY.simplify(whole)
    assert list(whole.config.vision_config.scale_factors) == [4.0, 2.0, 1.0]
    assert len(FAMILY.build(tiny_sam3_tracker_config()).vision_encoder.neck.fpn_layers) == 3


@torch.inference_mode()
def test_folding_changes_only_the_last_bits(model: Sam3TrackerModel) -> None:
    folded = copy.deepcopy(model)
    FAMILY.simplify(folded)
    FAMILY.simplify(folded)  # nothing is left to fold
    assert tuple(folded.vision_encoder.neck.fpn_layers[0].proj2.weight.shape) == (4, 32, 3, 3)
    plain = FAMILY.build(model.config).eval()
    plain.load_state_dict(dict(FAMILY.plain_tensors(model.config, folded.state_dict())))
    whole = FAMILY.encode(model, tiny_sam3_tracker_pixels()).maps
    for other in (folded, plain):
        features = FAMILY.encode(other, tiny_sam3_tracker_pixels())
        for found, expected in zip(features.maps, whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # transformers' own forward pass runs the folded model too.
    outputs = [
        one(pixel_values=tiny_sam3_tracker_pixels(), input_boxes=BOXES[None], multimask_output=True)
        for one in (model, folded)
    ]
    torch.testing.assert_close(outputs[0].pred_masks, outputs[1].pred_masks, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_blocks_in_parts_are_the_encoder(model: Sam3TrackerModel) -> None:
    state = FAMILY.embed_patches(model, tiny_sam3_tracker_pixels(2))
    for stage in structure_of(model.config).stages:
        state = FAMILY.run_blocks(model, stage, state)
    assert [tuple(part.shape) for part in state] == [(2, 8, 8, 32)]
    whole = FAMILY.encode(model, tiny_sam3_tracker_pixels(2))
    for found, expected in zip(FAMILY.run_neck(model, state).maps, whole.maps, strict=True):
        assert torch.equal(found, expected)


@torch.inference_mode()
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_masks_are_those_of_the_model(model: Sam3TrackerModel, kind: str, multimask: bool) -> None:
    check_masks(model, tiny_sam3_tracker_pixels(), BOXES, kind, multimask=multimask)


@torch.inference_mode()
@pytest.mark.parametrize("threshold", [0.0, 0.98, 1.0])
def test_the_decoder_in_parts_gives_the_selected_masks(threshold: float) -> None:
    config = tiny_sam3_tracker_config(dynamic_multimask_stability_thresh=threshold)
    model = tiny_sam3_tracker(1, config)
    check_selected_masks(model, tiny_sam3_tracker_pixels(), BOXES)


@torch.inference_mode()
@pytest.mark.parametrize("most", [2**20, 300])
def test_attentions_with_empty_slots_are_transformers(
    model: Sam3TrackerModel, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit: Callable[..., int] = lambda *_, **__: most  # noqa: E731
    monkeypatch.setattr(grid_attention, "max_chunk_logits", limit)
    quantizable = with_quantizable_attentions(model)
    for found, expected in zip(
        in_parts(quantizable, tiny_sam3_tracker_pixels(), BOXES),
        in_parts(model, tiny_sam3_tracker_pixels(), BOXES),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
