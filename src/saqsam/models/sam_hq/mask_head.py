"""The mask head of SAM-HQ: fusion of features, masks of all tokens, and the choice among them.

transformers 5.23 upscales the image embedding from before the two-way transformer, with rows and columns swapped, where
the official code upscales the transformer's image tokens. The published weights were trained with the latter, which is
what this module computes; `correct` makes transformers' own forward pass agree.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.sam_hq.modeling_sam_hq import SamHQMaskDecoder


def fuse(decoder: Any, embedding: Tensor, tap: Tensor | None) -> Tensor:
    """Return the features of the high-quality mask, [B, C / 8, 4h, 4w].

    Args:
        decoder: The mask decoder.
        embedding: Image embedding [B, C, h, w].
        tap: Output [B, h, w, C'] of the first block with global attention; None to leave it out.
    """
    features = decoder.activation(decoder.encoder_norm(decoder.encoder_conv1(embedding)))
    features = decoder.encoder_conv2(features)
    if tap is not None:
        early = decoder.compress_vit_conv1(tap.permute(0, 3, 1, 2).contiguous())
        early = decoder.activation(decoder.compress_vit_norm(early))
        features = features + decoder.compress_vit_conv2(early)
    fused: Tensor = features
    return fused


def output_tokens(decoder: Any) -> Tensor:
    """Return the tokens of the IoU, the masks and the high-quality mask, [T, C]."""
    return torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, decoder.hq_token.weight])


def upscale(decoder: Any, image: Tensor) -> Tensor:
    """Return the upscaled embedding [P, C / 8, 4h, 4w] of image tokens as a map [P, C, h, w]."""
    upscaled = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image)))
    fine: Tensor = decoder.activation(decoder.upscale_conv2(upscaled))
    return fine


def high_quality_mask(decoder: Any, token: Tensor, upscaled: Tensor, features: Tensor) -> Tensor:
    """Return the logits [P, 1, 4h, 4w] of the high-quality mask.

    Args:
        decoder: The mask decoder.
        token: Token of the mask, [P, C].
        upscaled: Upscaled embedding [P, C / 8, 4h, 4w].
        features: Of `fuse`, [P or 1, C / 8, 4h, 4w].
    """
    hidden = decoder.activation(decoder.mask_norm(decoder.mask_conv1(upscaled)))
    refined = decoder.mask_conv2(hidden) + features
    return torch.einsum("pmc,pchw->pmhw", decoder.hq_mask_mlp(token)[:, None], refined)


def select(logits: Tensor, ious: Tensor, multimask_output: bool) -> tuple[Tensor, Tensor]:
    """Return the single mask, or the others by descending predicted IoU.

    Args:
        logits: [P, M, 4h, 4w], the single mask first.
        ious: Predicted IoUs [P, M].
        multimask_output: Return the others.

    Returns:
        Logits [P, C, 4h, 4w] and predicted IoUs [P, C].
    """
    if not multimask_output:
        return logits[:, :1], ious[:, :1]
    best, order = torch.sort(ious[:, 1:], dim=1, descending=True)
    prompts = torch.arange(len(logits), device=logits.device)[:, None]
    return logits[:, 1:][prompts, order], best


def correct(model: Any) -> None:
    """Let the forward pass of a `SamHQModel` compute what the official code computes, in place; tensors stay."""
    model.mask_decoder.__class__ = CorrectedMaskDecoder


class CorrectedMaskDecoder(SamHQMaskDecoder):  # type: ignore[misc]
    """transformers' mask decoder with the masks of the official code."""

    def forward(
        self,
        image_embeddings: Tensor,
        image_positional_embeddings: Tensor,
        sparse_prompt_embeddings: Tensor | None,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
        hq_token_only: bool,
        intermediate_embeddings: list[Tensor] | None = None,
        attention_similarity: Tensor | None = None,
        target_embedding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict masks; arguments and results are those of `SamHQMaskDecoder.forward`."""
        batch, sparse = len(image_embeddings), sparse_prompt_embeddings
        prompts = 1 if sparse is None else sparse.shape[1]
        tokens = output_tokens(self).repeat(batch, prompts, 1, 1)
        if sparse is not None:
            tokens = torch.cat([tokens, sparse], 2)
        image = (image_embeddings + dense_prompt_embeddings).repeat_interleave(prompts, 0)
        tokens, keys = self.transformer(
            point_embeddings=tokens,
            image_embeddings=image,
            image_positional_embeddings=image_positional_embeddings.repeat_interleave(prompts, 0),
            attention_similarity=attention_similarity,
            target_embedding=target_embedding,
        )
        tokens = tokens.flatten(0, 1)
        upscaled = upscale(self, keys.transpose(2, 3).reshape(image.shape))
        tap = intermediate_embeddings[0] if intermediate_embeddings else None
        features = fuse(self, image_embeddings, tap).repeat_interleave(prompts, 0)
        hq = high_quality_mask(self, tokens[:, self.num_mask_tokens], upscaled, features)
        weights = [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = torch.einsum("pmc,pchw->pmhw", torch.stack(weights, 1), upscaled)
        masks, ious = select(masks, self.iou_prediction_head(tokens[:, 0]), multimask_output)
        masks = hq if hq_token_only else masks + hq
        return masks.reshape(batch, prompts, *masks.shape[1:]), ious.reshape(batch, prompts, -1)
