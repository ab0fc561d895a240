"""SAM-HQ is quantized, saved, loaded, evaluated and inspected like SAM v1."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, SamHQModel

import saqsam
from saqsam.analysis.inventory import take_inventory
from saqsam.checkpoint import save_checkpoint
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepare
from saqsam.inference.backend import TorchBackend
from saqsam.inference.predictor import Predictor
from saqsam.inference.prompts import Prompts
from saqsam.models.registry import structure_of
from saqsam.models.sam_hq.mask_head import CorrectedMaskDecoder
from saqsam.ptq.calibration_images import choose_calibration_images
from saqsam.ptq.equalization import equalize, observe_channels
from saqsam.ptq.pipeline import quantize
from saqsam.ptq.units import JointUnit, NeckUnit, reconstruction_units
from saqsam.quant.layers import PackedConv2d, PackedConvTranspose2d, PackedLinear
from saqsam.recipes.deployment import deployable
from saqsam.recipes.recipe import Calibration
from saqsam.report.sensitivity import find_groups
from support.tiny_quantized import mixed_recipe, tiny_data, tiny_recipe
from support.tiny_sam import tiny_pixels
from support.tiny_sam_hq import tiny_sam_hq, tiny_sam_hq_config, tiny_sam_hq_processor, upscaling_image_tokens

BOXES = torch.tensor([[[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0]]])
RECIPES = {
    "mse": tiny_recipe("mse"),
    "saq-sam": tiny_recipe("saq-sam"),
    "saq-sam-plus": tiny_recipe("saq-sam-plus"),
    "everything": mixed_recipe(),
    "deploy": deployable(tiny_recipe("mse", "w4a8")),
}


@functools.cache
def quantized(name: str) -> SamHQModel:
    return quantize(tiny_sam_hq(), tiny_sam_hq_processor(), RECIPES[name], tiny_data()).model


@torch.inference_mode()
def masks(model: SamHQModel, *, multimask: bool = True) -> tuple[Tensor, Tensor]:
    found = model(pixel_values=tiny_pixels(), input_boxes=BOXES, multimask_output=multimask)
    return found.pred_masks, found.iou_scores


def assert_same(model: SamHQModel, other: SamHQModel) -> None:
    for multimask in (True, False):
        for one, two in zip(
            masks(model, multimask=multimask), masks(other, multimask=multimask), strict=True
        ):
            assert torch.equal(one, two)


@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_computes_the_same_masks(name: str, tmp_path: Path) -> None:
    model = quantized(name)
    folder = save_checkpoint(model, tiny_sam_hq_processor(), tmp_path / "packed")
    loaded, _ = saqsam.load(folder)
    assert_same(loaded, model)
    assert_same(AutoModel.from_pretrained(folder), model)
    # The model's own forward pass and that in parts, which saqsam runs, are the same function.
    backend = TorchBackend(model)
    with torch.inference_mode():
        logits, ious = backend.decode(backend.encode(tiny_pixels()), Prompts(boxes=BOXES[0]), True)
    torch.testing.assert_close(logits, masks(model)[0][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ious, masks(model)[1][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mse", "saq-sam-plus"])
def test_quantization_changes_masks_but_keeps_them_alike(name: str) -> None:
    expected = masks(upscaling_image_tokens(tiny_sam_hq()))[0]
    found = masks(quantized(name))[0]
    assert 0.01 < float((found - expected).norm() / expected.norm()) < 1
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.7


def test_layers_of_the_high_quality_mask_can_be_quantized() -> None:
    decoder = quantized("everything").mask_decoder
    for name in ("compress_vit_conv1", "compress_vit_conv2", "encoder_conv1", "encoder_conv2"):
        assert isinstance(getattr(decoder, name), PackedConvTranspose2d)
    assert isinstance(decoder.mask_conv1, PackedConv2d)
    assert isinstance(decoder.mask_conv2, PackedConv2d)
    assert isinstance(decoder.hq_mask_mlp.proj_out, PackedLinear)
    # For integer kernels, all but the convolutions at the resolution of the masks is quantized, as for SAM v1.
    deployed = quantized("deploy").mask_decoder
    assert isinstance(deployed.hq_mask_mlp.proj_out, PackedLinear)
    for name in ("compress_vit_conv1", "encoder_conv1", "upscale_conv1"):
        assert isinstance(getattr(deployed, name), PackedConvTranspose2d)
    for name in ("compress_vit_conv2", "encoder_conv2", "upscale_conv2"):
        assert type(getattr(deployed, name)) is torch.nn.ConvTranspose2d
    assert type(deployed.mask_conv1) is type(deployed.mask_conv2) is torch.nn.Conv2d


def test_the_inventory_counts_the_layers_of_the_high_quality_mask() -> None:
    inventory = take_inventory(quantized("everything"))
    parts = {part.part: part for part in inventory.parts}
    assert sum(part.parameters for part in inventory.parts) == sum(
        p.numel() for p in tiny_sam_hq().parameters()
    )
    decoder, plain = tiny_sam_hq().mask_decoder, ("upscale_conv1", "upscale_conv2")
    own = (
        "compress_vit_conv1",
        "compress_vit_conv2",
        "encoder_conv1",
        "encoder_conv2",
        "mask_conv1",
        "mask_conv2",
    )
    hidden = ("upscale_conv1", "compress_vit_conv1", "encoder_conv1")
    for part, names in (
        ("upscaling.hidden", hidden),
        ("upscaling.output", [name for name in (*plain, *own) if name not in hidden]),
    ):
        counted = sum(p.numel() for name in names for p in getattr(decoder, name).parameters())
        assert parts[part].parameters == counted
        assert (parts[part].weight_bits, parts[part].activation_bits) == (6, 6)
    grid = 8 * 8
    fusion = 2 * (grid * 32 * 32 * 4) - grid * 32 * 24 * 4 + 2 * (4 * grid * 4 * 4) * 20
    head = grid * 32 * 8 * 4 + 4 * grid * 8 * 4 * 4 + 2 * 16 * grid * 4 * 8 * 9
    assert parts["upscaling.hidden"].macs + parts["upscaling.output"].macs == fusion + head
    assert parts["mask_product"].macs == 16 * grid * 5 * 4


def test_a_float_copy_is_corrected_too() -> None:
    model = quantized("mse").dequantize()
    assert isinstance(model, SamHQModel)
    assert isinstance(model.mask_decoder, CorrectedMaskDecoder)


def test_weights_alone_are_quantized(tmp_path: Path) -> None:
    tiny_sam_hq().save_pretrained(tmp_path)
    config = saqsam.SaqsamConfig(weight_only="w4")
    model = AutoModel.from_pretrained(tmp_path, quantization_config=config)
    assert isinstance(model.mask_decoder, CorrectedMaskDecoder)
    own = saqsam.quantize(saqsam.load(tmp_path)[0], recipe=saqsam.recipe_for("weight-only", "w4")).model
    assert_same(model, own)


@torch.no_grad()
def test_an_equalized_model_computes_what_it_did_before() -> None:
    model = tiny_sam_hq()
    structure = structure_of(model.config)
    images = choose_calibration_images(
        model, tiny_sam_hq_processor(), tiny_data(), Calibration(images=2, prompts=4)
    )
    prepared = copy.deepcopy(model)
    prepare(prepared, plan_quantization(model.config, tiny_recipe()))
    equalized = copy.deepcopy(model)
    equalize(equalized, structure, observe_channels(prepared, structure, images))
    name = structure.normalized_layers[0].norm
    assert not torch.equal(equalized.get_submodule(name).weight, model.get_submodule(name).weight)
    one, two = TorchBackend(equalized), TorchBackend(model)
    for found, expected in zip(one.encode(tiny_pixels()).maps, two.encode(tiny_pixels()).maps, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for found, expected in zip(masks(equalized), masks(model), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_predictor_and_evaluation() -> None:
    model = quantized("mse")
    predictor = Predictor(model, tiny_sam_hq_processor())
    predictor.set_image(tiny_data()[0].image)
    found, scores, low = predictor.predict(box=[4.0, 4.0, 40.0, 40.0], multimask_output=True)
    assert (found.shape, scores.shape, low.shape) == ((3, 48, 64), (3,), (3, 32, 32))
    assert (scores[:-1] >= scores[1:]).all()
    for one in (model, tiny_sam_hq()):
        result = saqsam.evaluate(one, tiny_sam_hq_processor(), tiny_data(count=3))
        assert 0 <= result.metrics["prompt"]["miou"] <= 1


def test_sensitivity_encodes_again_for_layers_that_fuse_features() -> None:
    recipe = mixed_recipe()
    plan = plan_quantization(tiny_sam_hq_config(), recipe)
    decoder = {group.name: group.is_decoder for group in find_groups(plan, "layers")}
    assert not decoder["mask_decoder.encoder_conv1"]
    assert decoder["mask_decoder.mask_conv1"]
    parts = {group.name: group.is_decoder for group in find_groups(plan, "parts")}
    assert not parts["upscaling.hidden"]
    assert not parts["upscaling.output"]


def test_the_neck_is_learned_through_the_fusion_of_features() -> None:
    plan = plan_quantization(tiny_sam_hq_config(), tiny_recipe("saq-sam", extra={"upscaling": 8}))
    units = reconstruction_units(plan)
    (neck,) = (unit for unit in units if isinstance(unit, NeckUnit))
    fusion = ("compress_vit_conv1", "compress_vit_conv2", "encoder_conv1", "encoder_conv2")
    assert set(neck.passed_slots) == {f"mask_decoder.{name}.input_quantizer" for name in fusion}
    assert not any(
        unit.passed_slots for unit in units if unit is not neck and not isinstance(unit, JointUnit)
    )
