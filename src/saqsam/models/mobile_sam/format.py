"""Files of MobileSAM: configuration and state dict of `MobileSamModel`, and the official `mobile_sam.pt`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import SamProcessor

from saqsam.models.format import Canvas, ModelFormat
from saqsam.models.image_sizes import check_image_size
from saqsam.models.limits import MAX_GRID, MAX_IMAGE_SIZE
from saqsam.models.mobile_sam.configuration import PATCH_EMBEDDING_STRIDE, MobileSamConfig
from saqsam.models.mobile_sam.official import from_official, infer_config
from saqsam.models.mobile_sam.validation import (
    check_mobile_sam_config,
    count_parameters,
    mobile_sam_fields,
    parse_mobile_sam_config,
)
from saqsam.models.sam.resizing import resized_config


class MobileSamFormat(ModelFormat):
    """Files of MobileSAM (arXiv 2306.14289)."""

    model_types = ("mobile_sam",)
    canvas: Canvas = "pad"
    processor_class = SamProcessor
    anchor = "vision_encoder.patch_embed.conv1.weight"
    official_anchor = "image_encoder.patch_embed.seq.0.c.weight"
    roots = ("vision_encoder", "prompt_encoder", "mask_decoder", "shared_image_embedding")
    official_roots = ("image_encoder", "prompt_encoder", "mask_decoder")

    def parse_config(self, raw: Mapping[str, Any], source: str) -> MobileSamConfig:
        """Return the `MobileSamConfig` of a `config.json`."""
        return parse_mobile_sam_config(raw, source)

    def config_fields(self, config: MobileSamConfig) -> dict[str, Any]:
        """Return the fields that affect a mask; entries of stage 0 that nothing reads are 1."""
        return mobile_sam_fields(config)

    def client_fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields with SAM v1's `model_type`: to clients of an export, only the encoder's file differs."""
        return {**fields, "model_type": "sam"}

    def check_config(self, config: MobileSamConfig, source: str) -> None:
        """Check a `MobileSamConfig`."""
        check_mobile_sam_config(config, source)

    def count_parameters(self, config: MobileSamConfig) -> int:
        """Return the approximate number of parameters; biases are not counted."""
        return count_parameters(config)

    def from_official(self, tensors: Mapping[str, object]) -> tuple[MobileSamConfig, dict[str, Tensor]]:
        """Convert the state dict of `mobile_sam.pt`, or of another model of that class for 1024-px images."""
        return from_official(tensors)

    def rename_official(self, tensors: Mapping[str, object]) -> dict[str, Tensor]:
        """Return an official state dict under the names of `MobileSamModel`, with folded batch normalizations."""
        return from_official(tensors)[1]

    def infer_config(self, tensors: Mapping[str, Tensor]) -> MobileSamConfig:
        """Return the configuration by the shapes, for 1024-px images."""
        return infer_config({name: tuple(value.shape) for name, value in tensors.items()})

    def resize(
        self, config: MobileSamConfig, tensors: Mapping[str, Tensor], image_size: int
    ) -> tuple[MobileSamConfig, Mapping[str, Tensor]]:
        """Return the model at another input size, a multiple of the patch; no tensor depends on it."""
        largest = min(MAX_IMAGE_SIZE, PATCH_EMBEDDING_STRIDE**2 * MAX_GRID)
        size = check_image_size(image_size, multiple=config.vision_config.patch_size, largest=largest)
        return resized_config(config, size), tensors
