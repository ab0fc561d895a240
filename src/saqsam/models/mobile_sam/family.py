"""MobileSAM (arXiv 2306.14289): the `ModelFamily` of `MobileSamModel`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from saqsam.models.family import AttentionMacs, State
from saqsam.models.mobile_sam.attention import to_quant_attention
from saqsam.models.mobile_sam.configuration import MobileSamConfig
from saqsam.models.mobile_sam.format import MobileSamFormat
from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.models.mobile_sam.structure import mobile_sam_structure
from saqsam.models.mobile_sam.tiny_vit import MobileSamVisionAttention
from saqsam.models.sam.family import SamFamily
from saqsam.models.structure import ModelStructure

_BLOCK = re.compile(r"vision_encoder\.layers\.(\d+)\.(?:blocks\.(\d+)|downsample)(?:\.(.+))?")


class MobileSamFamily(SamFamily):
    """MobileSAM: SAM v1 with a TinyViT of four stages as the image encoder.

    Stage 0 consists of convolutions, the others of attention within windows. A stage ends with the patch merging before
    the next one.
    """

    name = "mobile_sam"
    label = "MobileSAM"
    format = MobileSamFormat()

    def build(self, config: MobileSamConfig) -> MobileSamModel:
        """Return an untrained `MobileSamModel`."""
        return MobileSamModel(config)

    def structure(self, config: MobileSamConfig) -> ModelStructure:
        """Return the module names of a `MobileSamModel`."""
        return mobile_sam_structure(config)

    def quantizable_attention(
        self, attention: nn.Module, *, quantized_rel_pos_query: bool, row_scaled: bool
    ) -> nn.Module:
        """Return a `QuantWindowAttention` or `QuantDecoderAttention`; biases do not depend on the query."""
        return to_quant_attention(attention, row_scaled=row_scaled)

    def embed_patches(self, model: MobileSamModel, pixel_values: Tensor) -> State:
        """Run the two convolutions of the patch embedding."""
        return (model.vision_encoder.patch_embed(pixel_values),)

    def run_blocks(self, model: MobileSamModel, blocks: Iterable[int], state: State) -> State:
        """Run blocks and patch mergings one after another."""
        (hidden,) = state
        modules = model.vision_encoder.blocks()
        for index in blocks:
            hidden = modules[index](hidden)
        return (hidden,)

    def attention_macs(self, attention: nn.Module, inputs: Mapping[str, Any]) -> AttentionMacs:
        """Count the MACs of a window attention or a decoder attention; biases take none."""
        if not isinstance(attention, MobileSamVisionAttention):
            return super().attention_macs(attention, inputs)
        windows, height, width, channels = inputs["hidden_states"].shape
        return AttentionMacs(windows * (height * width) ** 2 * channels)

    def module_label(self, name: str) -> str:
        """Return a label such as `encoder stage 2, block 1, attn.qkv` or `encoder stage 1, merging, depthwise_conv`."""
        match = _BLOCK.fullmatch(name)
        if match is not None:
            stage, index, module = match.groups()
            place = "merging" if index is None else f"block {int(index) + 1}"
            return f"encoder stage {int(stage) + 1}, {place}" + ("" if module is None else f", {module}")
        if name.startswith("vision_encoder.patch_embed.conv"):
            return name.removeprefix("vision_encoder.")
        return super().module_label(name)
