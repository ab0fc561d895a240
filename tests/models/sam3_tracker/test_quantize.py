"""SAM 3's tracker is quantized, saved, loaded, evaluated and inspected like SAM 2."""

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, Sam3TrackerModel

import saqsam
from saqsam.analysis.inventory import take_inventory
from saqsam.checkpoint import save_checkpoint
from saqsam.convert.plan import plan_quantization
from saqsam.inference.backend import TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.registry import family_of, module_label, slot_label, structure_of
from saqsam.ptq.calibration_images import choose_calibration_images
from saqsam.ptq.equalization import equalize, observe_channels
from saqsam.ptq.pipeline import quantize
from saqsam.quant.layers import PackedConvTranspose2d, PackedLayer
from saqsam.recipes.specs import Calibration
from support.tiny_quantized import mixed_recipe, tiny_data, tiny_recipe
from support.tiny_sam3_tracker import (
    tiny_sam3_tracker,
    tiny_sam3_tracker_config,
    tiny_sam3_tracker_pixels,
    tiny_sam3_tracker_processor,
)

BOXES = torch.tensor([[[10.0, 20.0, 90.0, 100.0], [40.0, 30.0, 60.0, 80.0]]])
RECIPES = {name: tiny_recipe(name) for name in ("mse", "saq-sam", "saq-sam-plus", "gptq", "repq-vit")} | {
    "everything": mixed_recipe()
}
BLOCK = "vision_encoder.backbone.layers"


@functools.cache
def quantized(name: str) -> Sam3TrackerModel:
    return quantize(tiny_sam3_tracker(), tiny_sam3_tracker_processor(), RECIPES[name], tiny_data()).model


@torch.inference_mode()
def masks(model: Sam3TrackerModel, *, multimask: bool = True) -> tuple[Tensor, Tensor]:
    found = model(pixel_values=tiny_sam3_tracker_pixels(), input_boxes=BOXES, multimask_output=multimask)
    return found.pred_masks, found.iou_scores


def assert_same(model: Sam3TrackerModel, other: Sam3TrackerModel) -> None:
    for multimask in (True, False):
        for one, two in zip(
            masks(model, multimask=multimask), masks(other, multimask=multimask), strict=True
        ):
            assert torch.equal(one, two)


@torch.no_grad()
@pytest.mark.parametrize("window", [4, 3])
def test_an_equalized_model_computes_what_it_did_before(window: int) -> None:
    model = tiny_sam3_tracker(config=tiny_sam3_tracker_config(window=window))
    model.get_submodule(f"{BLOCK}.1.layer_norm1").weight[3] *= 30
    model.get_submodule(f"{BLOCK}.2.attention.k_proj").bias[7] += 20
    model.get_submodule(f"{BLOCK}.2.attention.v_proj").bias[5] += 20
    equalized = copy.deepcopy(model)
    structure = structure_of(model.config)
    images = choose_calibration_images(
        model, tiny_sam3_tracker_processor(), tiny_data(), Calibration(images=2, prompts=4)
    )
    ranges = observe_channels(model, structure, images)
    equalize(equalized, structure, ranges)
    value = f"{BLOCK}.2.attention.v_proj"
    assert abs(float(equalized.get_submodule(value).bias[5])) < 5
    shifts = [pair.shifts for pair in structure.normalized_layers if pair.norm.endswith("layer_norm1")]
    assert shifts == [window == 4, True, window == 4, True], "padded windows rule out offsets"
    one, two = TorchBackend(equalized), TorchBackend(model)
    for found, expected in zip(
        one.encode(tiny_sam3_tracker_pixels()).maps, two.encode(tiny_sam3_tracker_pixels()).maps, strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for found, expected in zip(masks(equalized), masks(model), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_rotations_rule_out_offsets_of_keys() -> None:
    shifted = tiny_sam3_tracker()
    shifted.get_submodule(f"{BLOCK}.2.attention.k_proj").bias += 1.0
    assert not torch.allclose(masks(shifted)[0], masks(tiny_sam3_tracker())[0], atol=1e-2)


@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_computes_what_was_measured(name: str, tmp_path: Path) -> None:
    model = quantized(name)
    folder = save_checkpoint(model, tiny_sam3_tracker_processor(), tmp_path / "packed")
    loaded, processor = saqsam.load(folder)
    assert_same(loaded, model)
    assert processor.image_processor.image_mean == (0.5, 0.5, 0.5)
    auto = AutoModel.from_pretrained(folder)
    assert isinstance(auto, Sam3TrackerModel)
    assert_same(auto, model)
    plan = plan_quantization(model.config, RECIPES[name])
    assert all(isinstance(loaded.get_submodule(site.name), PackedLayer) for site, _ in plan.weights)
    if name == "mse":
        assert len(plan.weights) == 6 * 4 + 2 * 3 + 7 * 4 + 2 * 2  # blocks, neck, decoder
    # The model's own forward pass and that in parts, which saqsam runs, are the same function.
    backend = TorchBackend(model)
    with torch.inference_mode():
        logits, ious = backend.decode(
            backend.encode(tiny_sam3_tracker_pixels()), Prompts(boxes=BOXES[0]), True
        )
    torch.testing.assert_close(logits, masks(model)[0][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ious, masks(model)[1][0], rtol=1e-4, atol=1e-4)


def test_saved_by_transformers(tmp_path: Path) -> None:
    model = quantized("mse")
    for folder in (tmp_path / "one", tmp_path / "two"):
        model.save_pretrained(folder)
        tiny_sam3_tracker_processor().save_pretrained(folder)
        assert_same(saqsam.load(folder)[0], quantized("mse"))
        model = AutoModel.from_pretrained(folder)  # a model of `from_pretrained` is saved alike
        assert_same(model, quantized("mse"))


def test_eight_bits_stay_near_the_float_masks() -> None:
    recipe = tiny_recipe("mse", "w8a8")
    result = saqsam.quantize(tiny_sam3_tracker(), tiny_sam3_tracker_processor(), recipe, tiny_data())
    wanted = masks(tiny_sam3_tracker())[0]
    assert float((masks(result.model)[0] - wanted).norm() / wanted.norm()) < 0.1
    plain = result.model.dequantize()
    assert plain.state_dict().keys() == tiny_sam3_tracker().state_dict().keys()
    assert float((masks(plain)[0] - wanted).norm() / wanted.norm()) < 0.1


@pytest.mark.parametrize("all_levels", [True, False])
def test_weights_alone_are_quantized(tmp_path: Path, all_levels: bool) -> None:
    tiny_sam3_tracker(all_levels=all_levels).save_pretrained(tmp_path)
    config = saqsam.SaqsamConfig(weight_only="w4")
    model = AutoModel.from_pretrained(tmp_path, quantization_config=config)
    own = saqsam.quantize(saqsam.load(tmp_path)[0], recipe=saqsam.recipe_for("weight-only", "w4")).model
    assert_same(model, own)


def test_a_model_of_transformers_is_left_as_it_is() -> None:
    model = tiny_sam3_tracker(all_levels=True)
    result = saqsam.quantize(model, tiny_sam3_tracker_processor(), RECIPES["mse"], tiny_data())
    assert len(model.vision_encoder.neck.fpn_layers) == len(model.config.vision_config.scale_factors) == 4
    assert_same(result.model, quantized("mse"))


def test_bfloat16_keeps_rotations_in_float32(tmp_path: Path) -> None:
    folder = save_checkpoint(quantized("mse"), tiny_sam3_tracker_processor(), tmp_path / "packed")
    model = saqsam.load(folder)[0].to(torch.bfloat16)
    for layer in model.vision_encoder.backbone.layers:
        assert layer.position_ids.dtype == layer.rotary_emb.inv_freq.dtype == torch.float32
    found, expected = masks(model)[0].float(), masks(quantized("mse"))[0]
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.8


def test_the_inventory_counts_every_parameter() -> None:
    inventory = take_inventory(quantized("everything"))
    parts = {part.part: part for part in inventory.parts}
    assert sum(part.parameters for part in inventory.parts) == sum(
        p.numel() for p in tiny_sam3_tracker().parameters()
    )
    for part in ("upscaling.hidden", "upscaling.output"):
        assert (parts[part].weight_bits, parts[part].activation_bits) == (6, 6)
    finest = quantized("everything").vision_encoder.neck.fpn_layers[0].scale_layers[2]
    assert isinstance(finest, PackedConvTranspose2d)
    tokens, width = 64, 32
    own = 4 * tokens * 32 * 16 + 16 * tokens * 16 * 8 + 4 * tokens * 32 * 16
    assert parts["upscaling.hidden"].macs == own + 4 * tokens * 32 * 8
    assert parts["upscaling.output"].macs == 16 * tokens * 8 * 4
    assert parts["encoder.attention"].macs == 2 * width * (2 * 4 * 16**2 + 2 * tokens**2)


def test_labels() -> None:
    family = family_of(tiny_sam3_tracker_config())
    assert family.module_label(f"{BLOCK}.2.attention.q_proj") == "encoder block 3, attention.q_proj"
    slot = "vision_encoder.neck.fpn_layers.1.proj2.input_quantizer"
    assert family.slot_label(slot) == slot_label(slot) == "neck, level 2, proj2: input"
    for site in structure_of(tiny_sam3_tracker_config()).weighted_sites:
        assert module_label(site.name) == family.module_label(site.name)


def test_predictor_and_evaluation() -> None:
    predictor = saqsam.Predictor(quantized("mse"), tiny_sam3_tracker_processor())
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    found, _, low = predictor.predict(box=[5, 5, 70, 50], multimask_output=False)
    assert (found.shape, low.shape) == ((1, 60, 90), (1, 32, 32))
    result = saqsam.evaluate(quantized("mse"), tiny_sam3_tracker_processor(), tiny_data(count=2))
    assert 0 <= result.metrics["prompt"]["miou"] <= 1
