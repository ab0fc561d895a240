"""Quantizing SAM 2: equalization is exact, every method runs, and a checkpoint computes what was measured."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Sam2Model

import saqsam
from saqsam.analysis.inventory import take_inventory
from saqsam.checkpoint.dequantize import dequantized
from saqsam.convert.plan import plan_quantization
from saqsam.inference.backend import TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.registry import family_of, structure_of
from saqsam.ptq.calibration_images import choose_calibration_images
from saqsam.ptq.equalization import equalize, observe_channels
from saqsam.quant.layers import PackedLayer
from saqsam.recipes.specs import Calibration
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam2 import tiny_sam2, tiny_sam2_pixels, tiny_sam2_processor

BOXES = torch.tensor([[10.0, 20.0, 90.0, 100.0], [40.0, 30.0, 60.0, 80.0]])


@torch.inference_mode()
def logits_of(model: Sam2Model) -> Tensor:
    backend = TorchBackend(model)
    return backend.decode(backend.encode(tiny_sam2_pixels()), Prompts(boxes=BOXES), True)[0]


def test_equalization_leaves_the_masks_unchanged() -> None:
    model = tiny_sam2()
    with torch.no_grad():  # outliers: a channel of a normalization, and one of the keys
        model.vision_encoder.backbone.blocks[1].layer_norm1.weight[3] *= 30
        model.vision_encoder.backbone.blocks[2].attn.qkv.bias[70] += 20
    equalized = copy.deepcopy(model)
    structure = structure_of(model.config)
    images = choose_calibration_images(
        model, tiny_sam2_processor(), tiny_data(), Calibration(images=2, prompts=4)
    )
    ranges = observe_channels(model, structure, images)
    equalize(equalized, structure, ranges)
    widening = "vision_encoder.backbone.blocks.1.proj"
    assert not torch.equal(equalized.get_submodule(widening).weight, model.get_submodule(widening).weight), (
        "the projected residual reads the normalization, too"
    )
    torch.testing.assert_close(logits_of(equalized), logits_of(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "method",
    ["mse", "qdrop", "ptq4sam-s", "saq-sam-s", "saq-sam", "saq-sam-plus", "repq-vit", "gptq", "car-sam-s"],
)
def test_a_checkpoint_computes_what_was_measured(method: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(method)
    result = saqsam.quantize(tiny_sam2(), tiny_sam2_processor(), recipe, tiny_data())
    result.save(tmp_path / "checkpoint")
    loaded, _ = saqsam.load(tmp_path / "checkpoint")
    assert torch.equal(logits_of(loaded), logits_of(result.model))
    plan = plan_quantization(loaded.config, recipe)
    for site, bits in plan.weights:
        layer = loaded.get_submodule(site.name)
        assert isinstance(layer, PackedLayer), site.name
        assert layer.weight.bits == bits == 4
    assert len(plan.weights) == 4 * 6 + 3 + 4 + 7 * 4 + 2 * 2  # blocks, widened residuals, pyramid, decoder
    assert not torch.equal(logits_of(loaded), logits_of(tiny_sam2()))


def test_eight_bits_stay_near_the_float_masks() -> None:
    result = saqsam.quantize(tiny_sam2(), tiny_sam2_processor(), tiny_recipe("mse", "w8a8"), tiny_data())
    wanted, found = logits_of(tiny_sam2()), logits_of(result.model)
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


def test_dequantizing_gives_a_plain_model() -> None:
    model = saqsam.quantize(tiny_sam2(), tiny_sam2_processor(), tiny_recipe("mse", "w8a8"), tiny_data()).model
    plain = dequantized(model)
    assert plain.state_dict().keys() == tiny_sam2().state_dict().keys()
    wanted = logits_of(model)
    assert float((logits_of(plain) - wanted).norm() / wanted.norm()) < 0.1


def test_every_parameter_is_in_the_inventory() -> None:
    result = saqsam.quantize(tiny_sam2(), tiny_sam2_processor(), tiny_recipe("mse"), tiny_data())
    inventory = take_inventory(result.model)
    assert sum(part.parameters for part in inventory.parts) == sum(
        p.numel() for p in tiny_sam2().parameters()
    )
    family = family_of(result.model.config)
    assert family.module_label("vision_encoder.backbone.blocks.2.attn.qkv") == "encoder block 3, attn.qkv"
    assert family.slot_label("vision_encoder.neck.convs.1.input_quantizer") == "neck, level 2: input"
