"""SAM v1 (arXiv 2304.02643): the `ModelFamily` of transformers' `SamModel`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import SamConfig, SamModel
from transformers.models.sam.modeling_sam import SamPositionalEmbedding

from saqsam.models.family import AttentionMacs, Features, State, unflatten_image
from saqsam.models.format import ModelFormat
from saqsam.models.sam.attention import to_quant_attention
from saqsam.models.sam.format import SamFormat
from saqsam.models.sam.structure import TRANSFORMER, sam_structure
from saqsam.models.structure import InputSpec, ModelStructure
from saqsam.models.two_way_family import TwoWayFamily, decoder_label

# Other families have other modules under the same names.
_BLOCK = re.compile(r"vision_encoder\.layers\.(\d+)\.((?:attn|mlp|layer_norm[12])(?:\..+)?)")
_ENCODER_ENDS = re.compile(
    r"vision_encoder\.(?:patch_embed\.projection|neck\.(?:conv|layer_norm)[12])(?:\..+)?"
)


class SamFamily(TwoWayFamily):
    """SAM v1: a ViT with windowed and global attention, a neck, and a two-way mask decoder."""

    name = "sam"
    label = "SAM"
    format: ModelFormat = SamFormat()
    iou_token = 0
    mask_token = 1
    coordinate_encoding: type[nn.Module] = SamPositionalEmbedding

    def build(self, config: SamConfig) -> SamModel:
        """Return an untrained `SamModel`."""
        return SamModel(config)

    def structure(self, config: SamConfig) -> ModelStructure:
        """Return the module names of a `SamModel`."""
        return sam_structure(config)

    def input_spec(self, config: SamConfig) -> InputSpec:
        """Return the sizes of inputs and outputs."""
        vision = config.vision_config
        return InputSpec(
            channels=vision.num_channels,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            embedding_channels=config.prompt_encoder_config.hidden_size,
            masks=config.mask_decoder_config.num_multimask_outputs + 1,
        )

    def tie(self, model: SamModel) -> None:
        """Tie the prompt encoder's positional embedding to the image-wide one."""
        model.prompt_encoder.shared_embedding.positional_embedding = (
            model.shared_image_embedding.positional_embedding
        )

    def quantizable_attention(
        self, attention: nn.Module, *, quantized_rel_pos_query: bool, row_scaled: bool
    ) -> nn.Module:
        """Return a `QuantVisionAttention` or `QuantDecoderAttention` with empty slots."""
        return to_quant_attention(
            attention, quantized_rel_pos_query=quantized_rel_pos_query, row_scaled=row_scaled
        )

    def embed_patches(self, model: SamModel, pixel_values: Tensor) -> State:
        """Embed patches and add the absolute positions."""
        encoder = model.vision_encoder
        hidden: Tensor = encoder.patch_embed(pixel_values)
        return (hidden if encoder.pos_embed is None else hidden + encoder.pos_embed,)

    def run_blocks(self, model: SamModel, blocks: Iterable[int], state: State) -> State:
        """Run encoder blocks one after another."""
        (hidden,) = state
        for index in blocks:
            hidden = model.vision_encoder.layers[index](hidden)
        return (hidden,)

    def run_neck(self, model: SamModel, state: State) -> Features:
        """Run the neck."""
        return Features(model.vision_encoder.neck(state[0]))

    def encode(self, model: SamModel, pixel_values: Tensor) -> Features:
        """Run the vision encoder."""
        return Features(model.vision_encoder(pixel_values).last_hidden_state)

    def run_mask_head(
        self, model: SamModel, tokens: Tensor, image: Tensor, extras: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Upscale the image tokens and multiply them with the hypernetworks' output."""
        decoder = model.mask_decoder
        features = decoder.upscale_conv1(unflatten_image(image))
        features = decoder.activation(decoder.upscale_layer_norm(features))
        features = decoder.activation(decoder.upscale_conv2(features))
        return self.multiply_masks(model, tokens, features)

    def attention_macs(self, attention: nn.Module, inputs: Mapping[str, Any]) -> AttentionMacs:
        """Count the MACs of a vision attention or a decoder attention."""
        if "hidden_states" not in inputs:
            return super().attention_macs(attention, inputs)
        batch, height, width, channels = inputs["hidden_states"].shape
        tokens = height * width
        relative = batch * tokens * (height + width) * channels if attention.use_rel_pos else 0
        return AttentionMacs(batch * tokens * tokens * channels, relative)

    def module_label(self, name: str) -> str:
        """Return a label such as `encoder block 3, attn.qkv` or `decoder layer 1, token-to-image attention, q_proj`."""
        match = _BLOCK.fullmatch(name)
        if match is not None:
            return f"encoder block {int(match[1]) + 1}, {match[2]}"
        if _ENCODER_ENDS.fullmatch(name):
            return name.removeprefix("vision_encoder.")
        return decoder_label(name, TRANSFORMER)
