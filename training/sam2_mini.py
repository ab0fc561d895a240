"""Configuration, first weights and training forward pass of sam2-mini, the small SAM 2.1 (arXiv 2408.00714).

sam2-mini has the blocks of SAM 2.1 tiny (one, two, seven and one more in the last stage, the same global blocks) at
half its width and input. Its embedding has the grid of sam-mini's, so it starts from what sam-mini learned:

- prompt encoder and mask decoder are sam-mini's, with high-resolution features that begin at zero;
- the six blocks of the third stage after the pooled one are sam-mini's last six, without their relative positions;
- while it trains, its embedding is drawn towards sam-mini's (`teacher_loss`).

A window of h x w cells at offset (top, left) of the frame uses the absolute positions of that place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2VisionConfig,
    SamModel,
)
from transformers.models.sam2.configuration_sam2 import Sam2PromptEncoderConfig
from transformers.models.sam2.modeling_sam2 import Sam2MultiScaleAttention, do_pool

from saqsam.models.sam2.family import Sam2Family

FRAME = 512
CELL = 16
"""Pixels per side of the embedding's cells."""

FAMILY = Sam2Family()
Features = tuple[Tensor, ...]
"""The embedding [B, C, h, w] and the high-resolution features [B, C / 8, 4h, 4w] and [B, C / 4, 2h, 2w]."""

SHARED_BLOCKS = {block: block - 2 for block in range(4, 10)}
"""Blocks of the third stage, and the layers of sam-mini that they start from."""


def sam2_mini_config() -> Sam2Config:
    """Return the configuration: 512 px, four stages of 48 to 256 channels, and a decoder like sam-mini's."""
    grid, width = FRAME // 4, 256
    widths = [48, 96, 192, 256]
    backbone = Sam2HieraDetConfig(
        hidden_size=widths[0],
        image_size=[FRAME, FRAME],
        blocks_per_stage=[1, 2, 7, 1],
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[1, 2, 3, 4],
        window_size_per_stage=[8, 4, 8, 4],
        global_attention_blocks=[5, 7, 9],
        window_positional_embedding_background_size=[7, 7],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[grid >> level] * 2 for level in range(3)],
        fpn_hidden_size=width,
    )
    decoder = Sam2MaskDecoderConfig(
        hidden_size=width,
        mlp_dim=1024,
        num_attention_heads=width // 32,
        iou_head_hidden_dim=128,
        # Its single masks are softer than SAM 2.1's: most are below the threshold, and the mask that would replace them
        # is worse on held-back pictures (0.585 against 0.591 on COCO) and changes with the least error.
        dynamic_multimask_via_stability=False,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=width, image_size=FRAME, patch_size=CELL)
    return Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


@torch.no_grad()
def initialize(model: Sam2Model, teacher: SamModel) -> None:
    """Initialize a model with what it shares with sam-mini, and scaled-normal weights elsewhere."""
    encoder = model.vision_encoder
    for name, parameter in encoder.named_parameters():
        if "layer_norm" in name:
            nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "pos_embed" in name:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.normal_(parameter, std=0.8 * parameter[0].numel() ** -0.5)
            if ".neck." in f".{name}":
                parameter.mul_(0.05)  # the stages' outputs are not normalized, and sam-mini's embedding is
    shared = {
        f"vision_encoder.backbone.blocks.{block}": f"vision_encoder.layers.{layer}"
        for block, layer in SHARED_BLOCKS.items()
    }
    source, target = teacher.state_dict(), model.state_dict()
    for name, value in target.items():
        for block, layer in shared.items():
            name = name.replace(f"{block}.", f"{layer}.")
        name = name.replace("mlp.proj_in", "mlp.lin1").replace("mlp.proj_out", "mlp.lin2")
        name = name.replace("o_proj", "out_proj")
        if name == "prompt_encoder.point_embed.weight":
            value.copy_(torch.cat([source[f"prompt_encoder.point_embed.{i}.weight"] for i in range(4)]))
        elif name in source and source[name].shape == value.shape:
            value.copy_(source[name])
    decoder = model.mask_decoder
    nn.init.zeros_(decoder.obj_score_token.weight)
    for conv in (decoder.conv_s0, decoder.conv_s1):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    # SAM 2 predicts the IoU through a sigmoid. Its tangent at one half keeps sam-mini's prediction there.
    last = decoder.iou_prediction_head.proj_out
    last.weight.mul_(4)
    last.bias.mul_(4).sub_(2)
    # No object is ever absent in training. The score says so from the start.
    nn.init.zeros_(decoder.pred_obj_score_head.proj_out.weight)
    nn.init.constant_(decoder.pred_obj_score_head.proj_out.bias, 10.0)


class FusedMultiScaleAttention(Sam2MultiScaleAttention):
    """`Sam2MultiScaleAttention` without the softmax that nothing reads."""

    def forward(self, hidden_states: Tensor, **_: object) -> Tensor:
        """Attend within hidden states [B, h, w, C], pooling the queries where the stage begins."""
        batch, height, width, _channels = hidden_states.shape
        qkv = self.qkv(hidden_states).reshape(batch, height * width, 3, self.num_attention_heads, -1)
        query, key, value = qkv.unbind(2)
        if self.query_stride:
            query = do_pool(query.reshape(batch, height, width, -1), self.query_stride)
            height, width = query.shape[1:3]
            query = query.reshape(batch, height * width, self.num_attention_heads, -1)
        query, key, value = (operand.transpose(1, 2) for operand in (query, key, value))
        output = F.scaled_dot_product_attention(query, key, value)
        return self.proj(output.transpose(1, 2).reshape(batch, height, width, -1))


def prepare(model: Sam2Model) -> Sam2Model:
    """Replace the encoder's attentions by `FusedMultiScaleAttention`, which has the same state dict."""
    for block in model.vision_encoder.backbone.blocks:
        block.attn.__class__ = FusedMultiScaleAttention
    return model


def encode(model: Sam2Model, pixels: Tensor, top: int, left: int) -> Features:
    """Return the features of a window [B, 3, H, W] whose first cell is (top, left) of the frame."""
    backbone = model.vision_encoder.backbone
    hidden = backbone.patch_embed(pixels)
    side, steps = FRAME // 4, CELL // 4
    rows, columns = (
        slice(at * steps, at * steps + n) for at, n in zip((top, left), hidden.shape[1:3], strict=True)
    )
    state = (hidden + backbone._get_pos_embed((side, side))[:, rows, columns],)
    features = FAMILY.run_neck(model, FAMILY.run_blocks(model, range(len(backbone.blocks)), state))
    return (features.embedding, *features.extras)


def embed_prompts(model: Sam2Model, coords: Tensor, labels: Tensor) -> Tensor:
    """Return the sparse embeddings [B, P, N + 1, C] of coords [B, P, N, 2] (x, y in frame pixels) and labels [B, P, N].

    Labels: 0 and 1 points, 2 and 3 the corners of a box, -1 not a point. One that is not a point is appended.
    """
    return model.prompt_encoder._embed_points(coords, labels, pad=True)


def decode(
    model: Sam2Model, features: Features, positions: Tensor, sparse: Tensor, mask_input: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Predict all four masks and their IoUs.

    Args:
        model: The model.
        features: Of `encode`.
        positions: [1, C, h, w] image positions of the window.
        sparse: [B, P, N, C] prompt embeddings.
        mask_input: [B * P, 1, 4h, 4w] previous logits, or None.

    Returns:
        Logits [B, P, 4, 4h, 4w] and predicted IoUs [B, P, 4]; token 0 is the single mask.
    """
    batch, prompts = sparse.shape[:2]
    embedding, *extras = (feature.repeat_interleave(prompts, 0) for feature in features)
    if mask_input is None:
        dense = model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    else:
        dense = model.prompt_encoder.mask_embed(mask_input)
    tokens = FAMILY.output_tokens(model).expand(batch, prompts, -1, -1)
    tokens = torch.cat([tokens, sparse], 2).flatten(0, 1)[:, None]
    tokens, image = model.mask_decoder.transformer(
        point_embeddings=tokens,
        image_embeddings=embedding + dense,
        image_positional_embeddings=positions.expand(batch * prompts, -1, -1, -1),
        attention_similarity=None,
    )
    height, width = embedding.shape[-2:]
    decoder = model.mask_decoder
    image = image.transpose(2, 3).reshape(batch * prompts, -1, height, width)
    upscaled = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image) + extras[1]))
    upscaled = decoder.activation(decoder.upscale_conv2(upscaled) + extras[0]).flatten(2)
    mask_tokens = tokens[:, 0, 2 : 2 + decoder.num_mask_tokens]
    hyper = torch.stack(
        [mlp(mask_tokens[:, i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], 1
    )
    logits = (hyper @ upscaled).reshape(batch, prompts, -1, 4 * height, 4 * width)
    return logits, decoder.iou_prediction_head(tokens[:, 0, 1]).reshape(batch, prompts, -1)


def teacher_loss(features: Features, target: Tensor) -> Tensor:
    """Return the squared error of the embedding to sam-mini's [B, C, h, w], relative to that one's variance."""
    return F.mse_loss(features[0].float(), target.float()) / target.float().var()
