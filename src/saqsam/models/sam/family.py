"""SAM v1 (arXiv 2304.02643): the `ModelFamily` of transformers' `SamModel`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SamConfig, SamModel
from transformers.models.sam.modeling_sam import SamVisionAttention

from saqsam.models.family import AttentionMacs, Features, ModelFamily, flatten_image
from saqsam.models.sam.attention import QuantAttention, to_quant_attention
from saqsam.models.sam.structure import TRANSFORMER, sam_structure
from saqsam.models.structure import InputSpec, ModelStructure

_ATTENTION_LABELS = {
    "cross_attn_token_to_image": "tokens to image",
    "cross_attn_image_to_token": "image to tokens",
    "final_attn_token_to_image": "final attention",
    "self_attn": "self-attention",
}
_SLOT_LABELS = {
    "q_proj.input_quantizer": "input of the queries",
    "k_proj.input_quantizer": "input of the keys",
    "query_quantizer": "queries",
    "key_quantizer": "keys",
    "value_quantizer": "values",
    "probability_quantizer": "probabilities",
}
_UPSCALED_CHANNELS = 8
"""Ratio of the decoder's channels to those of the upscaled embedding."""


class SamFamily(ModelFamily):
    """SAM v1: a ViT with windowed and global attention, a neck, and a two-way mask decoder."""

    name = "sam"
    label = "SAM"
    model_types = ("sam",)
    mask_token = 1  # after the token of the predicted IoU

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

    def encoder(self, model: SamModel) -> nn.Module:
        """Return the vision encoder."""
        encoder: nn.Module = model.vision_encoder
        return encoder

    def encoder_fields(self, config_fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the fields of the vision encoder."""
        fields: Mapping[str, Any] = config_fields["vision_config"]
        return fields

    def tie(self, model: SamModel) -> None:
        """Tie the prompt encoder's positional embedding to the image-wide one."""
        model.prompt_encoder.shared_embedding.positional_embedding = (
            model.shared_image_embedding.positional_embedding
        )

    def quantizable_attention(
        self, attention: nn.Module, *, quantized_rel_pos_query: bool, row_scaled: bool
    ) -> QuantAttention:
        """Return a `QuantVisionAttention` or `QuantDecoderAttention` with empty slots."""
        return to_quant_attention(
            attention, quantized_rel_pos_query=quantized_rel_pos_query, row_scaled=row_scaled
        )

    def embed_patches(self, model: SamModel, pixel_values: Tensor) -> Tensor:
        """Embed patches and add the absolute positions."""
        encoder = model.vision_encoder
        hidden: Tensor = encoder.patch_embed(pixel_values)
        return hidden if encoder.pos_embed is None else hidden + encoder.pos_embed

    def run_blocks(self, model: SamModel, blocks: Iterable[int], hidden: Tensor) -> Tensor:
        """Run encoder blocks one after another."""
        for index in blocks:
            hidden = model.vision_encoder.layers[index](hidden)
        return hidden

    def run_neck(self, model: SamModel, hidden: Tensor) -> Features:
        """Run the neck."""
        return Features(model.vision_encoder.neck(hidden))

    def encode(self, model: SamModel, pixel_values: Tensor) -> Features:
        """Run the vision encoder."""
        return Features(model.vision_encoder(pixel_values).last_hidden_state)

    def decode(
        self,
        model: SamModel,
        features: Features,
        *,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        mask_inputs: Tensor | None,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Run prompt encoder and mask decoder."""
        # The prompts become the batch, because the prompt encoder takes one mask input per batch entry. The decoder
        # repeats the embedding for each prompt anyway, so this costs nothing.
        embedding = features.embedding
        sparse, dense = model.prompt_encoder(
            input_points=None if points is None else points[:, None],  # [P, 1, N, 2]
            input_labels=None if labels is None else labels[:, None],  # [P, 1, N]
            input_boxes=None if boxes is None else boxes[:, None],  # [P, 1, 4]
            input_masks=None if mask_inputs is None else mask_inputs[:, None].to(embedding.dtype),
        )
        count = len(dense)
        positions = model.get_image_wide_positional_embeddings()
        logits, ious = model.mask_decoder(
            image_embeddings=embedding.expand(count, -1, -1, -1),
            image_positional_embeddings=positions.expand(count, -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
        )
        return logits[:, 0], ious[:, 0]

    def embed_boxes(self, model: SamModel, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the IoU token, the mask tokens and the corners of each box."""
        sparse, dense = model.prompt_encoder(
            input_points=None,
            input_labels=None,
            input_boxes=boxes.to(model.device)[:, None],
            input_masks=None,
        )
        decoder = model.mask_decoder
        output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output.expand(len(boxes), 1, -1, -1), sparse], 2)
        return tokens, dense[:1]

    def image_positions(self, model: SamModel) -> Tensor:
        """Return the image-wide positional embedding as tokens."""
        return flatten_image(model.get_image_wide_positional_embeddings())

    def decoder_depth(self, model: SamModel) -> int:
        """Return the number of two-way blocks."""
        return len(model.mask_decoder.transformer.layers)

    def run_decoder_layer(
        self, model: SamModel, index: int, tokens: Tensor, image: Tensor, prompt: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run one two-way block."""
        tokens, image, _ = model.mask_decoder.transformer.layers[index](
            queries=tokens,
            keys=image,
            query_point_embedding=prompt,
            key_point_embedding=positions,
            attention_similarity=None,
        )
        return tokens, image

    def run_final_attention(
        self, model: SamModel, tokens: Tensor, image: Tensor, prompt: Tensor, positions: Tensor
    ) -> Tensor:
        """Run the final attention of tokens to the image."""
        attended: Tensor
        attended, _ = model.mask_decoder.transformer.final_attn_token_to_image(
            query=tokens + prompt, key=image + positions, value=image
        )
        return attended

    def finish_tokens(self, model: SamModel, tokens: Tensor, attended: Tensor) -> Tensor:
        """Add the residual and apply the last normalization."""
        finished: Tensor = model.mask_decoder.transformer.layer_norm_final_attn(tokens + attended)
        return finished

    def run_mask_head(
        self, model: SamModel, tokens: Tensor, image: Tensor, extras: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Upscale the image tokens and multiply them with the hypernetworks' output."""
        decoder = model.mask_decoder
        side = math.isqrt(image.shape[2])  # the input is square
        features = image[:, 0].transpose(1, 2)
        features = features.reshape(*features.shape[:2], side, side)
        features = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(features)))
        features = decoder.activation(decoder.upscale_conv2(features))
        count = decoder.num_mask_tokens
        weights = torch.stack(
            [mlp(tokens[:, 0, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps[:count])], 1
        )
        masks = torch.einsum("pmc,pchw->pmhw", weights, features)
        ious: Tensor = decoder.iou_prediction_head(tokens[:, 0, 0])
        return masks, ious

    def attention_macs(self, attention: nn.Module, inputs: Mapping[str, Any]) -> AttentionMacs:
        """Count the MACs of a vision attention or a decoder attention."""
        if isinstance(attention, SamVisionAttention):
            batch, height, width, channels = inputs["hidden_states"].shape
            tokens = height * width
            relative = batch * tokens * (height + width) * channels if attention.use_rel_pos else 0
            return AttentionMacs(batch * tokens * tokens * channels, relative)
        query, key = inputs["query"], inputs["key"]
        return AttentionMacs(query.shape[:3].numel() * key.shape[2] * attention.internal_dim)

    def mask_macs(self, config: SamConfig, prompts: int) -> int:
        """Count the MACs of hypernetworks times upscaled embedding."""
        spec = self.input_spec(config)
        channels = config.mask_decoder_config.hidden_size // _UPSCALED_CHANNELS
        return int(prompts * spec.masks * spec.mask_size**2 * channels)

    def module_label(self, name: str) -> str:
        """Return a label such as `encoder block 3, attn.qkv` or `decoder layer 1, tokens to image, q_proj`."""
        path = name.split(".")
        if name.startswith("vision_encoder.layers."):
            return f"encoder block {int(path[2]) + 1}, {'.'.join(path[3:])}"
        if name.startswith(f"{TRANSFORMER}.layers."):
            return f"decoder layer {int(path[3]) + 1}, {_attention_label('.'.join(path[4:]))}"
        return _attention_label(name.removeprefix(f"{TRANSFORMER}.").removeprefix("vision_encoder."))

    def slot_label(self, slot: str) -> str:
        """Return a label such as `decoder layer 1, tokens to image: keys`."""
        for suffix, label in _SLOT_LABELS.items():
            if slot.endswith(suffix):
                return f"{self.module_label(slot.removesuffix(suffix).rstrip('.'))}: {label}"
        return f"{self.module_label(slot.removesuffix('.input_quantizer'))}: input"


def _attention_label(name: str) -> str:
    for module, label in _ATTENTION_LABELS.items():
        if name.startswith(module):
            return f"{label}, {name.removeprefix(module).lstrip('.')}".removesuffix(", ")
    return name
