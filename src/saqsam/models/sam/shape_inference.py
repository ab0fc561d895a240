"""Infer the configuration of a SAM from the shapes of its tensors, for files without `config.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import SamConfig

from saqsam.models.sam.configuration import check_sam_config
from saqsam.utils.errors import CheckpointError

DECODER_HEADS = 8
"""Heads of the decoder's attentions in the official code and transformers' default; shapes do not determine them."""

Shapes = Mapping[str, tuple[int, ...]]

_POS_EMBED = "vision_encoder.pos_embed"
_PATCH_EMBED = "vision_encoder.patch_embed.projection.weight"
_GAUSSIAN = "shared_image_embedding.positional_embedding"


def infer_sam_config(shapes: Shapes, *, decoder_layer_norm_eps: float = 1e-6) -> SamConfig:
    """Return the configuration of the SAM whose tensors have these shapes.

    Shapes determine everything except the number of decoder heads (`DECODER_HEADS`), and the activations and the eps
    of layer norms, which are transformers' defaults.

    Args:
        shapes: Shape of each tensor by its name in `SamModel`.
        decoder_layer_norm_eps: eps of the decoder's layer norms.

    Raises:
        CheckpointError: A needed tensor is missing, the image grid or a patch is not square, the windows of the
            image encoder's layers differ, or no SAM has these shapes.
    """
    grid, patch = _grid_and_patch(shapes)
    config = SamConfig(
        vision_config=_vision_config(shapes, grid, patch),
        prompt_encoder_config={
            "hidden_size": dims(shapes, "prompt_encoder.no_mask_embed.weight", 2)[1],
            "image_size": grid * patch,
            "patch_size": patch,
            "mask_input_channels": dims(shapes, "prompt_encoder.mask_embed.conv2.weight", 4)[0],
            "num_point_embeddings": count(shapes, r"prompt_encoder\.point_embed\.(\d+)\."),
        },
        mask_decoder_config=decoder_config(shapes, decoder_layer_norm_eps),
    )
    check_sam_config(config, "the shapes of the tensors")
    return config


def _grid_and_patch(shapes: Shapes) -> tuple[int, int]:
    """Return the patches per side of the image, and the pixels per side of a patch."""
    _, grid, grid_w, _ = dims(shapes, _POS_EMBED, 4)
    _, _, patch, patch_w = dims(shapes, _PATCH_EMBED, 4)
    if grid != grid_w or patch != patch_w or not grid or not patch:
        raise CheckpointError(
            f"expected square images, got a grid of {grid}x{grid_w} patches of {patch}x{patch_w}"
        )
    return grid, patch


def _vision_config(shapes: Shapes, grid: int, patch: int) -> dict[str, object]:
    layers = "vision_encoder.layers"
    width, channels, _, _ = dims(shapes, _PATCH_EMBED, 4)
    depth = count(shapes, r"vision_encoder\.layers\.(\d+)\.")
    rel_pos = [dims(shapes, f"{layers}.{i}.attn.rel_pos_h", 2) for i in range(depth)]
    if not rel_pos or not rel_pos[0][1] or width % rel_pos[0][1]:
        raise CheckpointError(
            f"cannot infer the heads of width {width} from relative positions {rel_pos[:1]}"
        )
    window, global_layers = _infer_windows([rows for rows, _ in rel_pos], grid)
    mlp = dims(shapes, f"{layers}.0.mlp.lin1.weight", 2)[0]
    return {
        "hidden_size": width,
        "output_channels": dims(shapes, "vision_encoder.neck.conv1.weight", 4)[0],
        "num_hidden_layers": depth,
        "num_attention_heads": width // rel_pos[0][1],
        "num_channels": channels,
        "image_size": grid * patch,
        "patch_size": patch,
        "qkv_bias": f"{layers}.0.attn.qkv.bias" in shapes,
        "mlp_ratio": mlp / width,
        "mlp_dim": mlp,
        "window_size": window,
        "global_attn_indexes": global_layers,
        "num_pos_feats": dims(shapes, _GAUSSIAN, 2)[1],
    }


def decoder_config(shapes: Shapes, layer_norm_eps: float) -> dict[str, object]:
    """Return the fields of the mask decoder's configuration.

    Args:
        shapes: Shape of each tensor by its name in `SamModel`.
        layer_norm_eps: eps of the decoder's layer norms.

    Raises:
        CheckpointError: A tensor is missing, or the decoder cannot have `DECODER_HEADS` heads.
    """
    layers, head = "mask_decoder.transformer.layers", "mask_decoder.iou_prediction_head"
    # transformers halves the width of each layer's cross attentions; the rate is that of the final attention.
    for attention in (
        f"{layers}.0.cross_attn_token_to_image",
        "mask_decoder.transformer.final_attn_token_to_image",
    ):
        inner, width = dims(shapes, f"{attention}.q_proj.weight", 2)
        if not inner or width % inner or inner % DECODER_HEADS:
            raise CheckpointError(
                f"expected a decoder attention of {DECODER_HEADS} heads, got {inner} of {width} channels"
            )
    return {
        "hidden_size": width,
        "mlp_dim": dims(shapes, f"{layers}.0.mlp.lin1.weight", 2)[0],
        "num_hidden_layers": count(shapes, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        "num_attention_heads": DECODER_HEADS,
        "attention_downsample_rate": width // inner,
        "num_multimask_outputs": dims(shapes, "mask_decoder.mask_tokens.weight", 2)[0] - 1,
        "iou_head_depth": 2 + count(shapes, re.escape(head) + r"\.layers\.(\d+)\."),
        "iou_head_hidden_dim": dims(shapes, f"{head}.proj_in.weight", 2)[0],
        "layer_norm_eps": layer_norm_eps,
    }


def dims(shapes: Shapes, key: str, rank: int) -> tuple[int, ...]:
    """Return the shape of a tensor.

    Raises:
        CheckpointError: There is no such tensor, or it has another number of dimensions.
    """
    if key not in shapes:
        raise CheckpointError(f"not a complete Segment Anything model: {key} is missing")
    if len(shapes[key]) != rank:
        raise CheckpointError(f"expected {key} to have {rank} dimensions, got shape {shapes[key]}")
    return shapes[key]


def _infer_windows(rows: list[int], grid: int) -> tuple[int, list[int]]:
    """Return the window size and the indexes of global layers, given each layer's number of relative positions."""
    global_rows = 2 * grid - 1
    windowed = {n for n in rows if n != global_rows}
    if len(windowed) > 1 or any(n % 2 == 0 for n in windowed):
        raise CheckpointError(
            f"expected relative positions of one window size beside {global_rows}, got {sorted(windowed)[:3]}"
        )
    # Without a windowed layer the value is never used.
    window = (windowed.pop() + 1) // 2 if windowed else 0
    return window, [i for i, n in enumerate(rows) if n == global_rows]


def count(shapes: Shapes, pattern: str) -> int:
    """Return one more than the highest index that `pattern` captures at the start of a key; 0 without any."""
    matches = (re.match(pattern, key) for key in shapes)
    return max((int(match[1]) + 1 for match in matches if match and len(match[1]) < 6), default=0)
