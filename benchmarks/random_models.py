"""Models of random weights, float and quantized: what speed and memory are measured on where no trained one is here."""

from __future__ import annotations

import torch
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from saqsam.models.attention import PROBABILITIES
from saqsam.models.structure import SamStructure, replace_module
from saqsam.prepare import activation_slots, pack, prepare
from saqsam.quant.affine import AffineQuantizer
from saqsam.recipe import Recipe

ACTIVATION_RANGE = 16.0
"""Width of every activation's range, around zero: random weights have no ranges worth to be measured."""


def random_sam_b() -> SamModel:
    """ViT-B at 1024 px with weights of a sensible spread; the same each time."""
    torch.manual_seed(0)
    config = SamConfig(
        vision_config=SamVisionConfig(initializer_range=0.02).to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig().to_dict(),
        mask_decoder_config=SamMaskDecoderConfig().to_dict(),
    )
    model = SamModel(config)
    with torch.no_grad():
        model.shared_image_embedding.positional_embedding.normal_()
        for name, parameter in model.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.02)
    return model.eval()


def pack_uncalibrated(model: SamModel, recipe: Recipe) -> SamModel:
    """Quantize a float model in place with ranges that nothing was measured for; as fast and as large as any other."""
    structure = SamStructure(model.config)
    prepare(model, structure, recipe)
    for slot in activation_slots(structure, recipe):
        levels = 2**slot.bits - 1
        middle = torch.tensor(2 ** (slot.bits - 1))
        quantizer = AffineQuantizer(slot.bits, torch.tensor(ACTIVATION_RANGE / levels), middle)
        if slot.name.endswith(PROBABILITIES):
            quantizer = AffineQuantizer(slot.bits, torch.tensor(1 / levels), torch.tensor(0))
        replace_module(model, slot.name, quantizer)
    pack(model, structure, recipe)
    return model.eval()
