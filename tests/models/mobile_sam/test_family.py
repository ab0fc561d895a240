"""The forward pass of MobileSAM in parts is that of `MobileSamModel`."""

import pytest
import torch

from saqsam.analysis.macs import count_macs
from saqsam.models.mobile_sam.configuration import MobileSamConfig
from saqsam.models.mobile_sam.family import MobileSamFamily
from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.models.registry import family_of, module_label, structure_of
from saqsam.ptq.equalization import ChannelRange, equalize
from support.family_checks import (
    PROMPT_KINDS,
    check_masks,
    check_selected_masks,
    in_parts,
    with_quantizable_attentions,
)
from support.tiny_mobile_sam import pixels, tiny_config, tiny_mobile_sam

FAMILY = MobileSamFamily()
BOXES = torch.tensor([[10.0, 20.0, 90.0, 100.0], [0.0, 0.0, 127.0, 127.0], [40.0, 30.0, 60.0, 80.0]])


@pytest.fixture(scope="module")
def model() -> MobileSamModel:
    return tiny_mobile_sam()


def test_a_mobile_sam_belongs_to_its_family(model: MobileSamModel) -> None:
    assert isinstance(family_of(tiny_config()), MobileSamFamily)
    structure = structure_of(tiny_config())
    structure.check(model)
    assert [list(stage) for stage in structure.stages] == [[0, 1], [2, 3], [4, 5, 6], [7]]
    assert structure.skip_targets == (1, 2, 3, 4, 5, 6, 7, 8)  # nothing is skipped


@pytest.mark.parametrize("config", [tiny_config(), MobileSamConfig()], ids=["tiny", "published"])
def test_every_layer_of_the_encoder_and_the_decoder_is_named_once(config: MobileSamConfig) -> None:
    with torch.device("meta"):
        model = MobileSamModel(config)
    structure = structure_of(config)
    named = [site.name for site in (*structure.weighted_sites, *structure.unquantized)]
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    weighted = {
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and not name.startswith("prompt_encoder.")
    }
    biases = {name for name, _ in model.named_parameters() if name.endswith("attention_biases")}
    assert sorted(named) == sorted(weighted | biases)
    depthwise = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1}
    assert {site.name for site in structure.unquantized} == depthwise | biases


@torch.inference_mode()
def test_blocks_in_parts_are_the_encoder(model: MobileSamModel) -> None:
    state = FAMILY.embed_patches(model, pixels(2))
    shapes = []
    for stage in structure_of(model.config).stages:
        state = FAMILY.run_blocks(model, stage, state)
        shapes.append(tuple(state[0].shape))
    assert shapes == [(2, 16, 16, 16), (2, 8, 8, 24), (2, 8, 8, 32), (2, 8, 8, 32)]
    (found,) = FAMILY.run_neck(model, state).maps
    assert torch.equal(found, FAMILY.encode(model, pixels(2)).embedding)
    assert torch.equal(found, model.get_image_embeddings(pixels(2)))
    assert found[:1].shape == FAMILY.input_spec(model.config).embedding


@torch.inference_mode()
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_masks_are_those_of_the_model(model: MobileSamModel, kind: str, multimask: bool) -> None:
    check_masks(model, pixels(), BOXES, kind, multimask=multimask)


@torch.inference_mode()
def test_the_decoder_in_parts_gives_the_selected_masks(model: MobileSamModel) -> None:
    check_selected_masks(model, pixels(), BOXES)


@torch.inference_mode()
def test_attentions_with_empty_slots_equal_the_originals(model: MobileSamModel) -> None:
    quantizable = with_quantizable_attentions(model)
    assert torch.equal(
        FAMILY.encode(quantizable, pixels(2)).embedding, FAMILY.encode(model, pixels(2)).embedding
    )
    # Normalizing after the product instead of before it changes the last bits alone.
    row_scaled = with_quantizable_attentions(model, row_scaled=True)
    parts = (in_parts(one, pixels(), BOXES) for one in (row_scaled, model))
    for found, expected in zip(*parts, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_equalization_leaves_the_outputs_of_padded_windows_unchanged() -> None:
    model = tiny_mobile_sam().double()
    structure = structure_of(model.config)
    vision = model.config.vision_config
    assert all(grid % window for grid, window in zip(vision.grids[1:], vision.window_sizes[1:], strict=True))
    generator = torch.Generator().manual_seed(5)

    class AnyRanges(dict[str, ChannelRange]):
        def __missing__(self, name: str) -> ChannelRange:
            layer = model.get_submodule(name.split()[0])
            inputs = layer.weight.shape[1] if name.endswith("input") else layer.weight.shape[0]
            low = -torch.rand(inputs, generator=generator, dtype=torch.float64) - 0.1
            high = 3 * torch.rand(inputs, generator=generator, dtype=torch.float64) + 0.1
            return self.setdefault(name, ChannelRange(low, high, 1))

    images = pixels().double()
    before = FAMILY.encode(model, images).embedding
    assert all(pair.shifts for pair in structure.normalized_layers[:-1])
    weight = model.vision_encoder.layers[1].blocks[0].attn.qkv.weight.clone()
    equalize(model, structure, AnyRanges())
    assert not torch.allclose(weight, model.vision_encoder.layers[1].blocks[0].attn.qkv.weight, rtol=0.1)
    torch.testing.assert_close(FAMILY.encode(model, images).embedding, before, rtol=0, atol=1e-5)


def test_multiply_accumulates_are_those_counted_by_hand() -> None:
    parts = count_macs(tiny_config()).parts
    # Stage 0 has 32 x 32 cells of 8 channels, 32 within the block; a patch merging may halve the grid between its
    # pointwise convolutions.
    block = 32**2 * 2 * 8 * 32
    mergings = 32**2 * 8 * 16 + 16**2 * 16**2 + 16**2 * 16 * 24 + 8**2 * 24**2 + 8**2 * (24 * 32 + 32**2)
    assert parts["encoder.pointwise"] == block + mergings
    local = 16**2 * 16 + 2 * 8**2 * 24 + 8**2 * 32
    assert parts["depthwise"] == 9 * (32**2 * 32 + 16**2 * 16 + 8**2 * (24 + 32) + local)
    assert parts["patch_embedding"] == 9 * (64**2 * 3 * 4 + 32**2 * 4 * 8)
    # Windows of 5 on 16, 6 on 8 and 3 on 8 cells per side.
    assert parts["encoder.attention"] == 2 * (16 * 25**2 * 16 + 2 * 4 * 36**2 * 24 + 9 * 9**2 * 32)
    assert parts["relative_positions"] == 0


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("vision_encoder.layers.0.blocks.1.pointwise_conv1", "encoder stage 1, block 2, pointwise_conv1"),
        ("vision_encoder.layers.2.blocks.10.attn.qkv", "encoder stage 3, block 11, attn.qkv"),
        ("vision_encoder.layers.1.downsample.depthwise_conv", "encoder stage 2, merging, depthwise_conv"),
        ("vision_encoder.patch_embed.conv2", "patch_embed.conv2"),
        ("vision_encoder.neck.conv1", "neck.conv1"),
        ("mask_decoder.transformer.layers.0.self_attn.q_proj", "decoder layer 1, self-attention, q_proj"),
    ],
)
def test_modules_have_labels(name: str, label: str) -> None:
    assert module_label(name) == label
