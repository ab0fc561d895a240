"""MobileSAM as a model of transformers: a TinyViT image encoder with SAM v1's prompt encoder and mask decoder.

Modules of the image encoder, in the order of computation:

==================================================  =================================================================
``vision_encoder.patch_embed``                      `conv1`, `conv2`
``vision_encoder.layers.0.blocks.J``                inverted bottleneck: `pointwise_conv1`, `depthwise_conv`,
                                                    `pointwise_conv2`
``vision_encoder.layers.S.blocks.J``, S >= 1        TinyViT block: `layer_norm1`, `attn.qkv`, `attn.proj`, `local_conv`,
                                                    `layer_norm2`, `mlp.lin1`, `mlp.lin2`
``vision_encoder.layers.S.downsample``              patch merging after stage S, except the last: `pointwise_conv1`,
                                                    `depthwise_conv`, `pointwise_conv2`
``vision_encoder.neck``                             `conv1`, `layer_norm1`, `conv2`, `layer_norm2`
==================================================  =================================================================

All other modules have the names of transformers' `SamModel`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskGeneration, SamModel, initialization
from transformers.models.sam.modeling_sam import (
    SamMaskDecoder,
    SamPositionalEmbedding,
    SamPreTrainedModel,
    SamPromptEncoder,
    SamVisionEncoderOutput,
    SamVisionNeck,
)

from saqsam.models.mobile_sam.configuration import (
    MobileSamConfig,
    MobileSamVisionConfig,
    check_sizes,
    check_vision_config,
)
from saqsam.models.mobile_sam.tiny_vit import (
    MobileSamMBConv,
    MobileSamPatchEmbeddings,
    MobileSamPatchMerging,
    MobileSamVisionAttention,
    MobileSamVisionLayer,
)


class MobileSamVisionStage(nn.Module):
    """Blocks of one stage, and the patch merging after them.

    Args:
        config: Configuration of the encoder.
        stage: Index of the stage.
    """

    downsample: MobileSamPatchMerging | None

    def __init__(self, config: MobileSamVisionConfig, stage: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            MobileSamVisionLayer(config, stage) if stage else MobileSamMBConv(config, config.hidden_sizes[0])
            for _ in range(config.depths[stage])
        )
        is_last = stage == len(config.depths) - 1
        self.downsample = None if is_last else MobileSamPatchMerging(config, stage)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Run the stage, from [B, h, w, C] to the input of the next stage."""
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states if self.downsample is None else self.downsample(hidden_states)


class MobileSamPreTrainedModel(SamPreTrainedModel):  # type: ignore[misc]
    """Base class: loading, saving and initialization."""

    config_class = MobileSamConfig
    _no_split_modules = ["MobileSamMBConv", "MobileSamVisionLayer"]  # noqa: RUF012, transformers' attribute
    supports_gradient_checkpointing = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MobileSamVisionAttention):
            initialization.zeros_(module.attention_biases)


class MobileSamVisionEncoder(MobileSamPreTrainedModel):
    """Image encoder: TinyViT and SAM's neck.

    Raises:
        ValueError: The sizes in the configuration contradict each other; see `check_vision_config`.
    """

    config_class = MobileSamVisionConfig

    def __init__(self, config: MobileSamVisionConfig) -> None:
        check_vision_config(config)
        super().__init__(config)
        self.patch_embed = MobileSamPatchEmbeddings(config)
        self.layers = nn.ModuleList(
            MobileSamVisionStage(config, stage) for stage in range(len(config.depths))
        )
        self.neck = SamVisionNeck(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding."""
        return self.patch_embed

    def blocks(self) -> tuple[nn.Module, ...]:
        """Return blocks and patch mergings in the order of computation, as `block_names` names them.

        Each maps [B, h, w, C] to the [B, h', w', C'] that the next one reads.
        """
        names = (name for stage in block_names(self.config) for name in stage)
        return tuple(self.get_submodule(name.removeprefix("vision_encoder.")) for name in names)

    def forward(self, pixel_values: Tensor, **_: Any) -> SamVisionEncoderOutput:
        """Encode pixel values [B, 3, S, S]; `last_hidden_state` is the image embedding [B, 256, S / 16, S / 16]."""
        hidden_states = self.patch_embed(pixel_values)
        for stage in self.layers:
            hidden_states = stage(hidden_states)
        return SamVisionEncoderOutput(last_hidden_state=self.neck(hidden_states))


class MobileSamModel(MobileSamPreTrainedModel, SamModel):  # type: ignore[misc]
    """MobileSAM (arXiv 2306.14289). Inputs and outputs are those of transformers' `SamModel`.

    Hidden states and attentions of the image encoder are not recorded.

    Raises:
        ValueError: The sizes in the configuration contradict each other; see `check_sizes`.
    """

    def __init__(self, config: MobileSamConfig) -> None:
        check_sizes(config)
        super(SamModel, self).__init__(config)  # `SamModel.__init__` would build a ViT
        self.shared_image_embedding = SamPositionalEmbedding(config.vision_config)
        self.vision_encoder = MobileSamVisionEncoder(config.vision_config)
        self.prompt_encoder = SamPromptEncoder(config)
        # The decoder is no model of its own, so that it does not get the implementation of attention by itself.
        config.mask_decoder_config._attn_implementation = config._attn_implementation
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)
        self.post_init()


def block_names(config: MobileSamVisionConfig) -> tuple[tuple[str, ...], ...]:
    """Return the module names of `MobileSamVisionEncoder.blocks` within a model, one tuple for each stage.

    A patch merging is the last block of the stage before it.
    """
    last = len(config.depths) - 1
    return tuple(
        (
            *(f"vision_encoder.layers.{stage}.blocks.{index}" for index in range(depth)),
            *(() if stage == last else (f"vision_encoder.layers.{stage}.downsample",)),
        )
        for stage, depth in enumerate(config.depths)
    )


AutoModel.register(MobileSamConfig, MobileSamModel, exist_ok=True)
AutoModelForMaskGeneration.register(MobileSamConfig, MobileSamModel, exist_ok=True)
