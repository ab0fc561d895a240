"""Forward pass of a `SamModel` in steps, split where reconstruction units begin and end.

Prompts are the batch of the decoder: tokens [P, 1, T, C], image tokens [P, 1, h * w, C], or [1, 1, h * w, C] as long
as all prompts share them. Unlike `get_image_embeddings`, no function disables gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import SamModel


def embed_patches(model: SamModel, pixel_values: Tensor) -> Tensor:
    """Return the input [1, h, w, C] of the first encoder block for pixel values [1, 3, S, S]."""
    encoder = model.vision_encoder
    hidden: Tensor = encoder.patch_embed(pixel_values)
    return hidden if encoder.pos_embed is None else hidden + encoder.pos_embed


def run_blocks(model: SamModel, blocks: Iterable[int], hidden: Tensor) -> Tensor:
    """Run encoder blocks by index, one after another: [1, h, w, C] to the same shape."""
    for index in blocks:
        hidden = model.vision_encoder.layers[index](hidden)
    return hidden


def run_neck(model: SamModel, hidden: Tensor) -> Tensor:
    """Return the image embedding [1, C, h, w] of the last block's output [1, h, w, C]."""
    embedding: Tensor = model.vision_encoder.neck(hidden)
    return embedding


def embed_boxes(model: SamModel, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the decoder's inputs for box prompts.

    Args:
        model: The model.
        boxes: [P, 4] xyxy in pixels of the S x S input.

    Returns:
        Tokens [P, 1, T, C] (IoU token, mask tokens, box) and the dense "no mask" embedding [1, C, h, w].
    """
    sparse, dense = model.prompt_encoder(
        input_points=None, input_labels=None, input_boxes=boxes.to(model.device)[:, None], input_masks=None
    )
    decoder = model.mask_decoder
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(len(boxes), 1, -1, -1), sparse], 2)
    return tokens, dense[:1]


def image_positions(model: SamModel) -> Tensor:
    """Return the positional embedding of the image tokens, [1, 1, h * w, C]."""
    return flatten_image(model.get_image_wide_positional_embeddings())


def flatten_image(image: Tensor) -> Tensor:
    """Turn a map [B, C, h, w] into image tokens [B, 1, h * w, C]."""
    return image.flatten(2).transpose(1, 2)[:, None]


def run_decoder_layer(
    model: SamModel, index: int, tokens: Tensor, image: Tensor, prompt: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Run one two-way layer of the decoder.

    Args:
        model: The model.
        index: Index of the layer.
        tokens: [P, 1, T, C] of the previous layer; `prompt` for the first.
        image: [P or 1, 1, h * w, C] of the previous layer; embedding plus dense embedding for the first.
        prompt: [P, 1, T, C] of `embed_boxes`.
        positions: [1, 1, h * w, C].

    Returns:
        Tokens [P, 1, T, C] and image tokens [P, 1, h * w, C].
    """
    tokens, image, _ = model.mask_decoder.transformer.layers[index](
        queries=tokens,
        keys=image,
        query_point_embedding=prompt,
        key_point_embedding=positions,
        attention_similarity=None,
    )
    return tokens, image


def run_final_attention(
    model: SamModel, tokens: Tensor, image: Tensor, prompt: Tensor, positions: Tensor
) -> Tensor:
    """Return the output [P, 1, T, C] of the final attention of tokens to the image, before residual and norm."""
    attended: Tensor
    attended, _ = model.mask_decoder.transformer.final_attn_token_to_image(
        query=tokens + prompt, key=image + positions, value=image
    )
    return attended


def run_transformer(
    model: SamModel,
    first: int,
    tokens: Tensor,
    image: Tensor,
    prompt: Tensor,
    positions: Tensor,
    *,
    with_final: bool,
) -> tuple[Tensor, Tensor]:
    """Run the decoder's layers from `first` on, and the final attention if `with_final` is set.

    Returns:
        Tokens [P, 1, T, C] and image tokens [P, 1, h * w, C].
    """
    transformer = model.mask_decoder.transformer
    for index in range(first, len(transformer.layers)):
        tokens, image = run_decoder_layer(model, index, tokens, image, prompt, positions)
    if with_final:
        attended = run_final_attention(model, tokens, image, prompt, positions)
        tokens = transformer.layer_norm_final_attn(tokens + attended)
    return tokens, image


def run_mask_head(model: SamModel, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Predict all masks and their IoUs from the transformer's output.

    Args:
        model: The model.
        tokens: [P, 1, T, C], after the final attention.
        image: Image tokens [P, 1, h * w, C]; the input is square.

    Returns:
        Logits [P, M, 4 h, 4 w] of the M masks (the single one first) and predicted IoUs [P, M].
    """
    decoder = model.mask_decoder
    side = math.isqrt(image.shape[2])
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
