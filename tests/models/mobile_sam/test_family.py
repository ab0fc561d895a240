"""The forward pass of MobileSAM in parts is that of `MobileSamModel`."""

import copy

import pytest
import torch
from torch import Tensor

from saqsam.analysis.macs import count_macs
from saqsam.inference.backend import TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.family import flatten_image
from saqsam.models.mobile_sam.configuration import MobileSamConfig
from saqsam.models.mobile_sam.family import MobileSamFamily
from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.models.registry import family_of, module_label, structure_of
from saqsam.models.structure import replace_module
from saqsam.ptq.equalization import ChannelRange, equalize
from support.tiny_mobile_sam import pixels, tiny_config, tiny_mobile_sam

FAMILY = MobileSamFamily()
BOXES = torch.tensor([[10.0, 20.0, 90.0, 100.0], [0.0, 0.0, 127.0, 127.0], [40.0, 30.0, 60.0, 80.0]])
POINTS, LABELS = torch.tensor([[[30.0, 40.0], [90.0, 20.0]]] * 3), torch.tensor([[1, 0]] * 3)


@pytest.fixture(scope="module")
def model() -> MobileSamModel:
    return tiny_mobile_sam()


def with_quantizable_attentions(model: MobileSamModel, *, row_scaled: bool = False) -> MobileSamModel:
    quantizable = copy.deepcopy(model)
    for site in structure_of(model.config).attentions:
        new = FAMILY.quantizable_attention(
            quantizable.get_submodule(site.name), quantized_rel_pos_query=False, row_scaled=row_scaled
        )
        replace_module(quantizable, site.name, new)
    return quantizable


def in_parts(model: MobileSamModel) -> tuple[Tensor, Tensor]:
    features = FAMILY.encode(model, pixels())
    tokens, dense = FAMILY.embed_boxes(model, BOXES)
    image = flatten_image(features.embedding + dense)
    found = FAMILY.run_transformer(
        model, 0, tokens, image, tokens, FAMILY.image_positions(model), with_final=True
    )
    return FAMILY.run_mask_head(model, *found, features.extras)


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
@pytest.mark.parametrize("kind", ["boxes", "points", "points and boxes", "masks"])
def test_masks_are_those_of_the_model(model: MobileSamModel, kind: str, multimask: bool) -> None:
    boxes = BOXES if "boxes" in kind else None
    points = POINTS if "points" in kind else None
    given = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(3)) if kind == "masks" else None
    if kind == "masks":
        boxes = BOXES[:1]
    expected = model(
        pixel_values=pixels(),
        input_points=None if points is None else points[None],
        input_labels=None if points is None else LABELS[None],
        input_boxes=None if boxes is None else boxes[None],
        input_masks=given,
        multimask_output=multimask,
    )
    backend = TorchBackend(model)
    prompts = Prompts(
        boxes=boxes,
        points=points,
        labels=None if points is None else LABELS,
        mask_inputs=None if given is None else given[:, 0],
    )
    logits, ious = backend.decode(backend.encode(pixels()), prompts, multimask)
    torch.testing.assert_close(logits, expected.pred_masks[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ious, expected.iou_scores[0], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_decoder_in_parts_gives_the_selected_masks(model: MobileSamModel) -> None:
    logits, ious = in_parts(model)
    assert logits.shape == (3, 4, 32, 32)
    backend = TorchBackend(model)
    for multimask in (False, True):
        expected = backend.decode(backend.encode(pixels()), Prompts(boxes=BOXES), multimask)
        found = FAMILY.select_masks(model.config, logits, ious, multimask)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_attentions_with_empty_slots_equal_the_originals(model: MobileSamModel) -> None:
    quantizable = with_quantizable_attentions(model)
    assert torch.equal(
        FAMILY.encode(quantizable, pixels(2)).embedding, FAMILY.encode(model, pixels(2)).embedding
    )
    # Normalizing after the product instead of before it changes the last bits alone.
    row_scaled = with_quantizable_attentions(model, row_scaled=True)
    for found, expected in zip(in_parts(row_scaled), in_parts(model), strict=True):
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
