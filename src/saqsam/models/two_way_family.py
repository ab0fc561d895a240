"""The part of `ModelFamily` that all families with transformers' two-way mask decoder share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saqsam.models.family import AttentionMacs, Features, ModelFamily, flatten_image
from saqsam.models.two_way import share_image

_ATTENTION_LABELS = {
    "cross_attn_token_to_image": "token-to-image attention",
    "cross_attn_image_to_token": "image-to-token attention",
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


class TwoWayFamily(ModelFamily):
    """Family whose models have `vision_encoder`, `prompt_encoder` and `mask_decoder`, named as in transformers.

    Attributes:
        iou_token: Index of the token of the predicted IoU.
    """

    iou_token: int

    def encoder(self, model: Any) -> nn.Module:
        """Return the vision encoder."""
        encoder: nn.Module = model.vision_encoder
        return encoder

    def encoder_fields(self, config_fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the fields of the vision encoder."""
        fields: Mapping[str, Any] = config_fields["vision_config"]
        return fields

    def output_tokens(self, model: Any) -> Tensor:
        """Return the tokens that precede those of the prompt, [T, C]: the IoU token and the mask tokens."""
        decoder = model.mask_decoder
        return torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])

    def embed_prompts(
        self,
        model: Any,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        mask_inputs: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Run the prompt encoder on P prompts; arguments are those of `decode`.

        Returns:
            Sparse embeddings [P, 1, T, C] and dense embeddings [P, C, h, w], or [1, C, h, w] without prompts.
        """
        # The prompts become the batch, because the prompt encoder takes one mask input per batch entry. The decoder
        # repeats the embedding for each prompt anyway, so this costs nothing.
        sparse, dense = model.prompt_encoder(
            input_points=None if points is None else points[:, None],  # [P, 1, N, 2]
            input_labels=None if labels is None else labels[:, None],  # [P, 1, N]
            input_boxes=None if boxes is None else boxes[:, None],  # [P, 1, 4]
            input_masks=None if mask_inputs is None else mask_inputs[:, None].to(model.dtype),
        )
        return sparse, dense

    def decode(
        self,
        model: Any,
        features: Features,
        *,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        mask_inputs: Tensor | None,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Run prompt encoder and mask decoder."""
        sparse, dense = self.embed_prompts(model, points, labels, boxes, mask_inputs)
        count = len(dense)
        positions = model.get_image_wide_positional_embeddings()
        logits, ious, *_ = model.mask_decoder(
            image_embeddings=features.embedding.expand(count, -1, -1, -1),
            image_positional_embeddings=positions.expand(count, -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
            **self.extra_inputs(features, count),
        )
        return logits[:, 0], ious[:, 0]

    def extra_inputs(self, features: Features, count: int) -> Mapping[str, Any]:
        """Return further arguments of the mask decoder for P prompts, from `Features.extras`."""
        return {}

    def share_image(self, model: Any) -> None:
        """Let the decoder project the image tokens of its first layer once for all prompts."""
        model.mask_decoder.transformer.register_forward_pre_hook(share_image, with_kwargs=True)

    def embed_boxes(self, model: Any, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output tokens and the corners of each box."""
        sparse, dense = self.embed_prompts(model, None, None, boxes.to(model.device), None)
        tokens = torch.cat([self.output_tokens(model).expand(len(boxes), 1, -1, -1), sparse], 2)
        return tokens, dense[:1]

    def image_positions(self, model: Any) -> Tensor:
        """Return the image-wide positional embedding as tokens."""
        return flatten_image(model.get_image_wide_positional_embeddings())

    def decoder_depth(self, model: Any) -> int:
        """Return the number of two-way blocks."""
        return len(model.mask_decoder.transformer.layers)

    def run_decoder_layer(
        self, model: Any, index: int, tokens: Tensor, image: Tensor, prompt: Tensor, positions: Tensor
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
        self, model: Any, tokens: Tensor, image: Tensor, prompt: Tensor, positions: Tensor
    ) -> Tensor:
        """Run the final attention of tokens to the image."""
        attended: Tensor
        attended, _ = model.mask_decoder.transformer.final_attn_token_to_image(
            query=tokens + prompt, key=image + positions, value=image
        )
        return attended

    def finish_tokens(self, model: Any, tokens: Tensor, attended: Tensor) -> Tensor:
        """Add the residual and apply the last normalization."""
        finished: Tensor = model.mask_decoder.transformer.layer_norm_final_attn(tokens + attended)
        return finished

    def multiply_masks(self, model: Any, tokens: Tensor, upscaled: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask logits [P, M, 4h, 4w] and predicted IoUs [P, M].

        Args:
            model: The model.
            tokens: [P, 1, T, C] of `finish_tokens`.
            upscaled: Upscaled embedding [P, C / 8, 4h, 4w].
        """
        decoder = model.mask_decoder
        count = decoder.num_mask_tokens
        weights = torch.stack(
            [
                mlp(tokens[:, 0, self.mask_token + i])
                for i, mlp in enumerate(decoder.output_hypernetworks_mlps[:count])
            ],
            1,
        )
        masks = torch.einsum("pmc,pchw->pmhw", weights, upscaled)
        ious: Tensor = decoder.iou_prediction_head(tokens[:, 0, self.iou_token])
        return masks, ious

    def attention_macs(self, attention: nn.Module, inputs: Mapping[str, Any]) -> AttentionMacs:
        """Count the MACs of a decoder attention."""
        query, key = inputs["query"], inputs["key"]
        return AttentionMacs(query.shape[:3].numel() * key.shape[2] * attention.internal_dim)

    def mask_macs(self, config: Any, prompts: int) -> int:
        """Count the MACs of hypernetworks times upscaled embedding."""
        spec = self.input_spec(config)
        channels = config.mask_decoder_config.hidden_size // _UPSCALED_CHANNELS
        return int(prompts * spec.masks * spec.mask_size**2 * channels)

    def slot_label(self, slot: str) -> str:
        """Return a label such as `decoder layer 1, token-to-image attention: keys`."""
        for suffix, label in _SLOT_LABELS.items():
            if slot.endswith(suffix):
                return f"{self.module_label(slot.removesuffix(suffix).rstrip('.'))}: {label}"
        return f"{self.module_label(slot.removesuffix('.input_quantizer'))}: input"


def decoder_label(name: str, transformer: str) -> str:
    """Return the display name of a module of the decoder, such as `decoder layer 1, token-to-image attention, q_proj`.

    An unknown name is unchanged.
    """
    if name.startswith(f"{transformer}.layers."):
        index, _, module = name.removeprefix(f"{transformer}.layers.").partition(".")
        return f"decoder layer {int(index) + 1}, {_attention_label(module)}"
    return _attention_label(name.removeprefix(f"{transformer}."))


def _attention_label(name: str) -> str:
    for module, label in _ATTENTION_LABELS.items():
        if name.startswith(module):
            return f"{label}, {name.removeprefix(module).lstrip('.')}".removesuffix(", ")
    return name
