"""Module names of SAM-HQ in transformers: SAM v1's, and the layers of the high-quality mask."""

from __future__ import annotations

from dataclasses import replace

from transformers import SamHQConfig

from saqsam.models.parts import UPSCALING_HIDDEN, UPSCALING_OUTPUT
from saqsam.models.sam.structure import sam_structure
from saqsam.models.structure import ModelStructure, Site

FUSION = (
    *("compress_vit_conv1", "compress_vit_norm", "compress_vit_conv2"),
    *("encoder_conv1", "encoder_norm", "encoder_conv2"),
)
"""Modules of the mask decoder that fuse the image embedding and the tap, whatever the prompts."""
_HYPERNETWORK = ("proj_in", "layers.0", "proj_out")


def sam_hq_structure(config: SamHQConfig) -> ModelStructure:
    """Return the structure of the models of a configuration."""
    base = sam_structure(config)
    fusion = tuple(f"mask_decoder.{name}" for name in FUSION if "conv" in name)
    convolutions = (*fusion, "mask_decoder.mask_conv1", "mask_decoder.mask_conv2")
    hidden = [name for name in fusion if name.endswith("conv1")]
    return replace(
        base,
        float_layers=(
            *base.float_layers,
            *(Site(name, UPSCALING_HIDDEN if name in hidden else UPSCALING_OUTPUT) for name in convolutions),
            *(Site(f"mask_decoder.hq_mask_mlp.{layer}", "hypernetworks") for layer in _HYPERNETWORK),
        ),
        encoding_layers=fusion,
    )


def tap_block(config: SamHQConfig) -> int | None:
    """Return the index of the block whose output the mask head reads: the first one with global attention."""
    vision = config.vision_config
    if not vision.window_size:
        return 0
    return min((i for i in vision.global_attn_indexes if 0 <= i < vision.num_hidden_layers), default=None)
