"""Build models with random weights to measure speed and memory."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Sam2Model,
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from saqsam.convert.pack import pack
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepare
from saqsam.models.building import build_model
from saqsam.models.sam2.official import VARIANTS, config_of_variant
from saqsam.models.structure import PROBABILITIES, replace_module
from saqsam.quant.affine import AffineQuantizer
from saqsam.recipes.recipe import Recipe

ACTIVATION_RANGE = 16.0
"""Width of every activation's range, around zero: random weights have no ranges worth to be measured."""


_VARIANTS: dict[str, dict[str, object]] = {
    "b": {},
    "l": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "global_attn_indexes": [5, 11, 17, 23],
        "mlp_dim": 4096,
    },
    "h": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
        "mlp_dim": 5120,
    },
}
"""Fields of the vision encoder that differ from those of ViT-B."""


def random_sam_b() -> SamModel:
    """ViT-B at 1024 px with weights of a sensible spread; the same each time."""
    return random_sam("b")


def random_sam_b_at(image_size: int) -> SamModel:
    """`random_sam_b`, resized to another input size."""
    model = random_sam_b()
    return build_model(model.config, model.state_dict(), source="SAM-B", image_size=image_size)


def random_sam(variant: str) -> SamModel:
    """SAM-B, SAM-L or SAM-H (`b`, `l`, `h`) at 1024 px with weights of a sensible spread; the same each time."""
    torch.manual_seed(0)
    config = SamConfig(
        vision_config=SamVisionConfig(initializer_range=0.02, **_VARIANTS[variant]).to_dict(),
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


def random_sam2(variant: str) -> Sam2Model:
    """SAM 2.1 (`tiny`, `small`, `base_plus`, `large`) at 1024 px with random weights; the same each time."""
    torch.manual_seed(0)
    chosen = next(one for one in VARIANTS if one.name == variant)
    side = 14 if variant == "base_plus" else 7
    table = {"vision_encoder.backbone.pos_embed": torch.zeros(1, chosen.width, side, side)}
    model = Sam2Model(config_of_variant(chosen, table))
    backbone = model.vision_encoder.backbone
    with torch.no_grad():
        backbone.pos_embed.normal_(std=0.02)
        backbone.pos_embed_window.normal_(std=0.02)
    return model.eval()


def random_small_sam() -> SamModel:
    """Four layers of width 32 at 64 px: for what depends on the number of images and not on the model."""
    torch.manual_seed(0)
    sizes = {"image_size": 64, "patch_size": 8}
    vision = {"hidden_size": 32, "output_channels": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    vision |= {"mlp_dim": 64, "window_size": 4, "global_attn_indexes": [1, 3], "num_pos_feats": 16}
    config = SamConfig(
        vision_config={**vision, **sizes, "initializer_range": 0.02},
        prompt_encoder_config={"hidden_size": 32, "mask_input_channels": 16, **sizes},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
        },
    )
    return SamModel(config).eval()


def pack_uncalibrated(model: Any, recipe: Recipe) -> Any:
    """Quantize a float model in place with ranges that nothing was measured for; as fast and as large as any other."""
    plan = plan_quantization(model.config, recipe)
    plan.family.simplify(model)
    prepare(model, plan)
    for slot in plan.slots:
        levels = 2**slot.bits - 1
        middle = torch.tensor(2 ** (slot.bits - 1))
        quantizer = AffineQuantizer(slot.bits, torch.tensor(ACTIVATION_RANGE / levels), middle)
        if slot.name.endswith(PROBABILITIES):
            quantizer = AffineQuantizer(slot.bits, torch.tensor(1 / levels), torch.tensor(0))
        replace_module(model, slot.name, quantizer)
    pack(model, plan)
    return model.eval()
