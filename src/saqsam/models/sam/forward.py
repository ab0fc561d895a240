"""A `SamModel` step by step: what its own `forward` computes, cut where units of reconstruction begin and end.

Prompts are the batch of the decoder, as in `backend.py`: tokens [P, 1, T, C], image tokens [P, 1, h * w, C], or
[1, 1, h * w, C] as long as all prompts share them. Unlike `get_image_embeddings` nothing here switches gradients off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import SamModel


def embed_patches(model: SamModel, pixel_values: Tensor) -> Tensor:
    """Input of the first encoder block, [1, h, w, C], of pixel values [1, 3, S, S]."""
    encoder = model.vision_encoder
    hidden: Tensor = encoder.patch_embed(pixel_values)
    return hidden if encoder.pos_embed is None else hidden + encoder.pos_embed


def run_blocks(model: SamModel, blocks: Iterable[int], hidden: Tensor) -> Tensor:
    """Output [1, h, w, C] of some encoder blocks, one after another."""
    for index in blocks:
        hidden = model.vision_encoder.layers[index](hidden)
    return hidden


def run_neck(model: SamModel, hidden: Tensor) -> Tensor:
    """Image embedding [1, C, h, w]."""
    embedding: Tensor = model.vision_encoder.neck(hidden)
    return embedding


def embed_boxes(model: SamModel, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """What the decoder is given of box prompts.

    Args:
        model: The model.
        boxes: [P, 4] xyxy in pixels of the S x S input.

    Returns:
        Tokens [P, 1, T, C] (IoU token, mask tokens, box) and the dense embedding [1, C, h, w] of no mask.
    """
    sparse, dense = model.prompt_encoder(
        input_points=None, input_labels=None, input_boxes=boxes.to(model.device)[:, None], input_masks=None
    )
    decoder = model.mask_decoder
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(len(boxes), 1, -1, -1), sparse], 2)
    return tokens, dense[:1]


def image_positions(model: SamModel) -> Tensor:
    """Positional embedding of the image tokens, [1, 1, h * w, C]."""
    return flatten_image(model.get_image_wide_positional_embeddings())


def flatten_image(image: Tensor) -> Tensor:
    """[B, C, h, w] -> image tokens [B, 1, h * w, C]."""
    return image.flatten(2).transpose(1, 2)[:, None]


def run_decoder_layer(
    model: SamModel, index: int, tokens: Tensor, image: Tensor, prompt: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """One two-way layer.

    Args:
        model: The model.
        index: Of the layer.
        tokens: [P, 1, T, C] from the layer before; `prompt` for the first.
        image: [P or 1, 1, h * w, C] from the layer before; embedding plus dense embedding for the first.
        prompt: [P, 1, T, C], the tokens as `embed_boxes` gives them.
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
    """Output [P, 1, T, C] of the attention of tokens to the image after the last layer."""
    output, _ = model.mask_decoder.transformer.final_attn_token_to_image(
        query=tokens + prompt, key=image + positions, value=image
    )
    found: Tensor = output
    return found


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
    """The layers from `first` on and, if wanted, the final attention: tokens and image tokens of the transformer."""
    transformer = model.mask_decoder.transformer
    for index in range(first, len(transformer.layers)):
        tokens, image = run_decoder_layer(model, index, tokens, image, prompt, positions)
    if with_final:
        attended = run_final_attention(model, tokens, image, prompt, positions)
        tokens = transformer.layer_norm_final_attn(tokens + attended)
    return tokens, image


def run_mask_head(model: SamModel, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """All masks and predicted IoUs that the decoder makes of what its transformer gives.

    Args:
        model: The model.
        tokens: [P, 1, T, C], with the final attention.
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
