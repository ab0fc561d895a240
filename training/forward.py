"""Forward pass for training a `SamModel`: windows of the frame, all four masks, prompts folded into the batch.

A window of h x w tokens at offset (top, left) of the model's frame uses the absolute positions of that place and the
middle of the relative-position tables, so a model trained on windows is the model of the whole frame: no parameter
changes its meaning when the window grows.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig
from transformers.models.sam.modeling_sam import SamAttention, SamVisionAttention


def sam_mini_config(width: int = 256) -> SamConfig:
    """Return the configuration of the bundled model: 256 px, patches of 8, four stages of two blocks.

    Prompt encoder and mask decoder have the width, heads and layers of the published models, and half their MLP.
    """
    size = {"image_size": 256, "patch_size": 8}
    return SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=192, output_channels=width, num_hidden_layers=8, num_attention_heads=3, window_size=8,
            global_attn_indexes=[1, 3, 5, 7], num_pos_feats=width // 2, initializer_range=0.02, **size,
        ).to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(hidden_size=width, **size).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=width, mlp_dim=1024, num_attention_heads=width // 32, iou_head_hidden_dim=128
        ).to_dict(),
    )  # fmt: skip


@torch.no_grad()
def initialize(model: SamModel) -> None:
    """Initialize scaled-normal weights, small position tables and Fourier features of several scales.

    transformers' defaults suit the loading of trained weights only: an initializer range of 1e-10 in the encoder and
    Fourier features of standard deviation hidden_size / 2, which make neighboring pixels look unrelated.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("positional_embedding"):
            # Frequencies from 0.1 to 2 cycles a unit, evenly in their logarithm: coarse ones to tell inside from
            # outside a box, fine ones to place its edges. Features of one scale took several times as long to train.
            magnitude = torch.exp(torch.empty(parameter.shape[1]).uniform_(math.log(0.1), math.log(2.0)))
            angle = torch.empty(parameter.shape[1]).uniform_(0, 2 * math.pi)
            parameter.copy_(torch.stack([magnitude * angle.cos(), magnitude * angle.sin()]))
        elif "rel_pos" in name or name.endswith("pos_embed"):
            nn.init.normal_(parameter, std=0.02)
        elif "layer_norm" in name:
            nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(("token.weight", "tokens.weight")) or (
            "_embed." in name and parameter.shape[0] == 1
        ):
            nn.init.normal_(parameter, std=0.5)
        else:
            fan_in = parameter[0].numel() if "upscale" not in name else parameter.shape[0]
            nn.init.normal_(parameter, std=0.8 * fan_in**-0.5)
    for name, module in model.mask_decoder.named_modules():
        if isinstance(module, SamAttention) and "token" in name:
            # Queries and keys both carry the Fourier features of their place. With equal projections a token looks,
            # from the first step on, where it is; otherwise hundreds of steps pass before it finds out.
            module.q_proj.weight.mul_(1.5)
            module.k_proj.weight.copy_(module.q_proj.weight)


class FoldedVisionAttention(SamVisionAttention):
    """`SamVisionAttention` without materialized relative positions.

    The decomposed relative positions `q . R_h[row]` and `q . R_w[column]` of a query are appended to it as channels,
    and every key carries the one-hot code of its row and column: one fused attention computes it all.
    """

    def forward(self, hidden_states: Tensor, output_attentions: bool | None = None) -> tuple[Tensor, None]:
        """Attend within hidden_states [B, h, w, C]."""
        batch, height, width, channels = hidden_states.shape
        heads = self.num_attention_heads
        head_dim = channels // heads
        qkv = self.qkv(hidden_states).reshape(batch, height * width, 3, heads, head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        grid = query.reshape(batch, heads, height, width, head_dim)
        rel_h = torch.einsum("bnhwc,hkc->bnhwk", grid, relative_table(self.rel_pos_h, height).to(query.dtype))
        rel_w = torch.einsum("bnhwc,wkc->bnhwk", grid, relative_table(self.rel_pos_w, width).to(query.dtype))
        query = torch.cat([grid * self.scale, rel_h, rel_w], -1).reshape(batch, heads, height * width, -1)
        one_hot = grid_one_hot(height, width, key).expand(batch, heads, -1, -1)
        key = torch.cat([key, one_hot], -1)
        value = F.pad(value, (0, height + width))  # the fused kernels want equal widths
        out = F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :head_dim]
        out = out.transpose(1, 2).reshape(batch, height, width, channels)
        return self.proj(out), None


def relative_table(rel_pos: Tensor, size: int) -> Tensor:
    """Return [size, size, C], whose entry (q, k) embeds the distance q - k, from the middle of a table of distances."""
    middle = rel_pos.shape[0] // 2
    distance = torch.arange(size, device=rel_pos.device)
    return rel_pos[middle + distance[:, None] - distance[None, :]]


def grid_one_hot(height: int, width: int, like: Tensor) -> Tensor:
    """Return the one-hot row and column of each token, [height * width, height + width]."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device)[:, None].expand(height, width, height)
    columns = torch.eye(width, dtype=like.dtype, device=like.device)[None].expand(height, width, width)
    return torch.cat([rows, columns], -1).reshape(height * width, height + width)


def use_folded_attention(model: SamModel) -> SamModel:
    """Replace the encoder's attentions by `FoldedVisionAttention`, which has the same state dict."""
    for layer in model.vision_encoder.layers:
        layer.attn.__class__ = FoldedVisionAttention
    return model


def encode(model: SamModel, pixels: Tensor, top: int, left: int) -> Tensor:
    """Return the embeddings [B, C, h, w] of a window [B, 3, H, W] whose first token is (top, left) of the frame."""
    return encode_at(model, pixels, window_positions(model, pixels, top, left))


def window_positions(model: SamModel, pixels: Tensor, top: int, left: int) -> Tensor:
    """Return the absolute positions [1, h, w, C] of a window [B, 3, H, W] whose first token is (top, left)."""
    patch = model.config.vision_config.patch_size
    height, width = (side // patch for side in pixels.shape[-2:])
    return model.vision_encoder.pos_embed[:, top : top + height, left : left + width]


def encode_at(model: SamModel, pixels: Tensor, positions: Tensor) -> Tensor:
    """Return the embeddings [B, C, h, w] of a window [B, 3, H, W], given its absolute positions [1, h, w, C]."""
    encoder = model.vision_encoder
    hidden = encoder.patch_embed.projection(pixels).permute(0, 2, 3, 1) + positions
    for layer in encoder.layers:
        hidden = layer(hidden)
    return encoder.neck(hidden)


def embed_prompts(model: SamModel, coords: Tensor, labels: Tensor) -> Tensor:
    """Return the sparse embeddings [B, P, N, C] of coords [B, P, N, 2] (x, y in frame pixels) and labels [B, P, N].

    Labels: 0 and 1 points, 2 and 3 the corners of a box, -1 not a point.
    """
    encoder = model.prompt_encoder
    size = encoder.input_image_size
    embedding = encoder.shared_embedding(coords + 0.5, (size, size))
    embedding = torch.where((labels == -1)[..., None], encoder.not_a_point_embed.weight[0], embedding)
    for value, table in enumerate(encoder.point_embed):
        embedding = embedding + (labels == value)[..., None] * table.weight[0]
    return embedding


def decode(
    model: SamModel, embeddings: Tensor, positions: Tensor, sparse: Tensor, mask_input: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Predict all four masks and their IoUs.

    Args:
        model: The model.
        embeddings: [B, C, h, w] image embeddings.
        positions: [1, C, h, w] image positions of the window.
        sparse: [B, P, N, C] prompt embeddings.
        mask_input: [B * P, 1, 4h, 4w] previous logits, or None.

    Returns:
        Logits [B, P, 4, 4h, 4w] and predicted IoUs [B, P, 4]; token 0 is the single mask.
    """
    decoder = model.mask_decoder
    batch, prompts = sparse.shape[:2]
    height, width = embeddings.shape[-2:]
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([tokens.expand(batch, prompts, -1, -1), sparse], 2).flatten(0, 1)[:, None]
    if mask_input is None:
        dense = model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    else:
        dense = model.prompt_encoder.mask_embed(mask_input)
    image = embeddings.repeat_interleave(prompts, 0) + dense
    tokens, image = decoder.transformer(
        point_embeddings=tokens,
        image_embeddings=image,
        image_positional_embeddings=positions.expand(batch * prompts, -1, -1, -1),
        attention_similarity=None,
    )
    image = image.transpose(2, 3).reshape(batch * prompts, -1, height, width)
    upscaled = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image)))
    upscaled = decoder.activation(decoder.upscale_conv2(upscaled)).flatten(2)
    mask_tokens = tokens[:, 0, 1 : 1 + decoder.num_mask_tokens]
    hyper = torch.stack(
        [mlp(mask_tokens[:, i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], 1
    )
    logits = (hyper @ upscaled).reshape(batch, prompts, -1, 4 * height, 4 * width)
    return logits, decoder.iou_prediction_head(tokens[:, 0, 0]).reshape(batch, prompts, -1)
