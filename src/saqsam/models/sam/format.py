"""Files of SAM v1: transformers' `SamConfig` and state dict, and the official `sam_vit_*.pth`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import SamConfig, SamProcessor

from saqsam.models.format import Canvas, ModelFormat
from saqsam.models.sam.configuration import check_sam_config, count_parameters, parse_sam_config, sam_fields
from saqsam.models.sam.official import from_official, rename_state_dict
from saqsam.models.sam.resizing import resize_sam
from saqsam.models.sam.shape_inference import infer_sam_config


class SamFormat(ModelFormat):
    """Files of SAM v1 (arXiv 2304.02643)."""

    model_types = ("sam",)
    canvas: Canvas = "pad"
    processor_class = SamProcessor
    anchor = "vision_encoder.patch_embed.projection.weight"
    official_anchor = "image_encoder.patch_embed.proj.weight"
    roots = ("vision_encoder", "prompt_encoder", "mask_decoder", "shared_image_embedding")
    official_roots = ("image_encoder", "prompt_encoder", "mask_decoder")

    def parse_config(self, raw: Mapping[str, Any], source: str) -> SamConfig:
        """Return the `SamConfig` of a `config.json`."""
        return parse_sam_config(raw, source)

    def config_fields(self, config: SamConfig) -> dict[str, Any]:
        """Return the fields that affect a mask; `mlp_dim` is resolved and the indexes of global blocks are sorted."""
        return sam_fields(config)

    def check_config(self, config: SamConfig, source: str) -> None:
        """Check a `SamConfig`."""
        check_sam_config(config, source)

    def count_parameters(self, config: SamConfig) -> int:
        """Return the approximate number of parameters; biases are not counted."""
        return count_parameters(config)

    def from_official(self, tensors: Mapping[str, object]) -> tuple[SamConfig, dict[str, Tensor]]:
        """Convert the state dict of `sam_vit_{b,l,h}_*.pth`, or of another model of that class."""
        return from_official(tensors)

    def rename_official(self, tensors: Mapping[str, object]) -> dict[str, Tensor]:
        """Return an official state dict under the names of `SamModel`."""
        return rename_state_dict(tensors)

    def infer_config(self, tensors: Mapping[str, Tensor]) -> SamConfig:
        """Return the configuration by the shapes; the decoder's heads are those of the official code."""
        return infer_sam_config({name: tuple(value.shape) for name, value in tensors.items()})

    def resize(
        self, config: SamConfig, tensors: Mapping[str, Tensor], image_size: int
    ) -> tuple[SamConfig, Mapping[str, Tensor]]:
        """Return the model at another input size, a multiple of the patch; its position tables are interpolated."""
        return resize_sam(config, tensors, image_size)
