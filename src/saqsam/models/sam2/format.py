"""Files of SAM 2: transformers' `Sam2Config` and `Sam2VideoConfig`, and the official `sam2*_hiera_*.pt`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Sam2Config, Sam2Processor

from saqsam.models.format import Canvas, ModelFormat
from saqsam.models.sam2.configuration import (
    check_sam2_config,
    count_parameters,
    parse_sam2_config,
    sam2_fields,
)
from saqsam.models.sam2.official import config_of_variant, find_variant, from_official, rename_official
from saqsam.models.sam2.resizing import resize_sam2_config


class Sam2Format(ModelFormat):
    """Files of SAM 2 and 2.1 (arXiv 2408.00714). Of a video model, the memory is left out."""

    model_types = ("sam2", "sam2_video")
    canvas: Canvas = "stretch"
    processor_class = Sam2Processor
    anchor = "vision_encoder.backbone.patch_embed.projection.weight"
    official_anchor = "image_encoder.trunk.patch_embed.proj.weight"
    roots = (
        "vision_encoder",
        "prompt_encoder",
        "mask_decoder",
        "shared_image_embedding",
        "no_memory_embedding",
    )
    official_roots = ("image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "no_mem_embed")
    ignored_roots = (
        *("memory_attention", "memory_encoder", "mask_downsample"),
        *("maskmem_tpos_enc", "no_mem_pos_enc", "obj_ptr_proj", "obj_ptr_tpos_proj"),
        *("no_obj_ptr", "no_obj_embed_spatial"),
        *("memory_temporal_positional_encoding", "no_memory_positional_encoding", "object_pointer_proj"),
        *("temporal_positional_encoding_projection_layer", "no_object_pointer"),
        "occlusion_spatial_embedding_parameter",
    )

    def parse_config(self, raw: Mapping[str, Any], source: str) -> Sam2Config:
        """Return the `Sam2Config` of a `config.json`, the image part of a video model's."""
        return parse_sam2_config(raw, source)

    def config_fields(self, config: Sam2Config) -> dict[str, Any]:
        """Return the fields that affect a mask; the indexes of global blocks are sorted."""
        return sam2_fields(config)

    def check_config(self, config: Sam2Config, source: str) -> None:
        """Check a `Sam2Config`."""
        check_sam2_config(config, source)

    def count_parameters(self, config: Sam2Config) -> int:
        """Return the approximate number of parameters; biases are not counted."""
        return count_parameters(config)

    def from_official(self, tensors: Mapping[str, object]) -> tuple[Sam2Config, dict[str, Tensor]]:
        """Convert the state dict of `sam2_hiera_*.pt` or `sam2.1_hiera_*.pt`."""
        return from_official(tensors)

    def rename_official(self, tensors: Mapping[str, object]) -> dict[str, Tensor]:
        """Return an official state dict under the names of `Sam2Model`."""
        return rename_official(tensors)

    def infer_config(self, tensors: Mapping[str, Tensor]) -> Sam2Config:
        """Return the configuration of the published variant with these widths and depths."""
        return config_of_variant(find_variant(tensors), tensors)

    def resize(
        self, config: Sam2Config, tensors: Mapping[str, Tensor], image_size: int
    ) -> tuple[Sam2Config, Mapping[str, Tensor]]:
        """Return the model at another input size; no tensor depends on it."""
        return resize_sam2_config(config, image_size), tensors
