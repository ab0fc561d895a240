"""Files of SAM-HQ: transformers' `SamHQConfig` and state dict, and the official `sam_hq_vit_*.pth`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import SamHQConfig, SamHQProcessor

from saqsam.models.sam.format import SamFormat
from saqsam.models.sam_hq.configuration import (
    check_sam_hq_config,
    count_parameters,
    parse_sam_hq_config,
    sam_hq_fields,
)
from saqsam.models.sam_hq.official import from_official, infer_sam_hq_config, rename_official


class SamHQFormat(SamFormat):
    """Files of SAM-HQ (arXiv 2306.01567), which have the tensors of SAM v1 and those of the high-quality mask."""

    model_types = ("sam_hq",)
    processor_class = SamHQProcessor
    anchor = "mask_decoder.hq_token.weight"
    official_anchor = "mask_decoder.hf_token.weight"

    def parse_config(self, raw: Mapping[str, Any], source: str) -> SamHQConfig:
        """Return the `SamHQConfig` of a `config.json`."""
        return parse_sam_hq_config(raw, source)

    def config_fields(self, config: SamHQConfig) -> dict[str, Any]:
        """Return the fields that affect a mask; `mlp_dim` is resolved and the indexes of global blocks are sorted."""
        return sam_hq_fields(config)

    def check_config(self, config: SamHQConfig, source: str) -> None:
        """Check a `SamHQConfig`."""
        check_sam_hq_config(config, source)

    def count_parameters(self, config: SamHQConfig) -> int:
        """Return the approximate number of parameters; biases are not counted."""
        return count_parameters(config)

    def from_official(self, tensors: Mapping[str, object]) -> tuple[SamHQConfig, dict[str, Tensor]]:
        """Convert the state dict of `sam_hq_vit_{b,l,h}.pth`, or of another model of that class."""
        return from_official(tensors)

    def rename_official(self, tensors: Mapping[str, object]) -> dict[str, Tensor]:
        """Return an official state dict under the names of `SamHQModel`."""
        return rename_official(tensors)

    def infer_config(self, tensors: Mapping[str, Tensor]) -> SamHQConfig:
        """Return the configuration by the shapes; the decoder's heads are those of the official code."""
        return infer_sam_hq_config(tensors)
