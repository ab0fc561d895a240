"""Official Segment Anything checkpoints, renamed key by key into transformers' `SamModel`.

`facebookresearch/segment-anything` publishes ``sam_vit_{b,l,h}_*.pth``: a state dict of its own `Sam` class
and nothing else, no configuration. Both implementations hold the same tensors in the same shapes, so the
conversion is a renaming, and everything that the configuration needs is read off the shapes:

=====================  ==============================================================================
image grid             ``pos_embed`` is (1, h, w, C); image size = grid x patch size
heads                  C / length of a relative-position vector
window                 a windowed layer's ``rel_pos_h`` has 2 x window - 1 rows
global layers          those whose ``rel_pos_h`` has 2 x grid - 1 rows
=====================  ==============================================================================

For ViT-B, L and H that gives the configurations of ``segment_anything/build_sam.py``: 12, 24, 32 layers of
width 768, 1024, 1280 with 12, 16, 16 heads, global attention in layers 2 5 8 11, 5 11 17 23, 7 15 23 31.

Three things do not show in the shapes and are taken from the official code: the decoder attends with 8
heads; encoder layer norms use eps 1e-6; the decoder's two-way blocks use `torch.nn.LayerNorm`'s 1e-5, for
which transformers' default is 1e-6.
"""

import re
from collections.abc import Mapping

import torch
from transformers import SamConfig

from saqsam.models.weights import few

_DECODER_HEADS = 8
_DECODER_LAYER_NORM_EPS = 1e-5
_HYPERNETWORK_DEPTH = 3  # fixed in the official MaskDecoder, and in transformers' SamMaskDecoder

_GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_POS_EMBED = "image_encoder.pos_embed"
_PATCH_EMBED = "image_encoder.patch_embed.proj.weight"
# Buffers of the official `Sam` that some tools save; the processor holds their values.
_IGNORED = frozenset({"pixel_mean", "pixel_std"})
# Under these keys training scripts wrap the state dict.
_WRAPPERS = ("model", "state_dict")

_PARAM = r"(weight|bias)"
# (official, transformers): whole keys; a key that no rule matches is unknown. The MLP heads are apart, in
# `_rename_head`, because their first and last layers get names of their own.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"image_encoder\.pos_embed", r"vision_encoder.pos_embed"),
        (rf"image_encoder\.patch_embed\.proj\.{_PARAM}", r"vision_encoder.patch_embed.projection.\1"),
        (rf"image_encoder\.blocks\.(\d+)\.norm([12])\.{_PARAM}", r"vision_encoder.layers.\1.layer_norm\2.\3"),
        (
            rf"image_encoder\.blocks\.(\d+)\.attn\.(qkv|proj)\.{_PARAM}",
            r"vision_encoder.layers.\1.attn.\2.\3",
        ),
        (r"image_encoder\.blocks\.(\d+)\.attn\.(rel_pos_[hw])", r"vision_encoder.layers.\1.attn.\2"),
        (rf"image_encoder\.blocks\.(\d+)\.mlp\.(lin[12])\.{_PARAM}", r"vision_encoder.layers.\1.mlp.\2.\3"),
        (r"image_encoder\.neck\.0\.weight", r"vision_encoder.neck.conv1.weight"),
        (rf"image_encoder\.neck\.1\.{_PARAM}", r"vision_encoder.neck.layer_norm1.\1"),
        (r"image_encoder\.neck\.2\.weight", r"vision_encoder.neck.conv2.weight"),
        (rf"image_encoder\.neck\.3\.{_PARAM}", r"vision_encoder.neck.layer_norm2.\1"),
        # One matrix encodes prompts and image alike; transformers ties the prompt encoder's copy to it.
        (re.escape(_GAUSSIAN), r"shared_image_embedding.positional_embedding"),
        (r"prompt_encoder\.point_embeddings\.(\d+)\.weight", r"prompt_encoder.point_embed.\1.weight"),
        (r"prompt_encoder\.(not_a_point_embed|no_mask_embed)\.weight", r"prompt_encoder.\1.weight"),
        (rf"prompt_encoder\.mask_downscaling\.0\.{_PARAM}", r"prompt_encoder.mask_embed.conv1.\1"),
        (rf"prompt_encoder\.mask_downscaling\.1\.{_PARAM}", r"prompt_encoder.mask_embed.layer_norm1.\1"),
        (rf"prompt_encoder\.mask_downscaling\.3\.{_PARAM}", r"prompt_encoder.mask_embed.conv2.\1"),
        (rf"prompt_encoder\.mask_downscaling\.4\.{_PARAM}", r"prompt_encoder.mask_embed.layer_norm2.\1"),
        (rf"prompt_encoder\.mask_downscaling\.6\.{_PARAM}", r"prompt_encoder.mask_embed.conv3.\1"),
        (r"mask_decoder\.(iou_token|mask_tokens)\.weight", r"mask_decoder.\1.weight"),
        (
            r"(mask_decoder\.transformer\.(?:layers\.\d+\.(?:self_attn|cross_attn_\w+)|final_attn_\w+))"
            rf"\.([qkv]|out)_proj\.{_PARAM}",
            r"\1.\2_proj.\3",
        ),
        (
            rf"mask_decoder\.transformer\.layers\.(\d+)\.norm([1-4])\.{_PARAM}",
            r"mask_decoder.transformer.layers.\1.layer_norm\2.\3",
        ),
        (
            rf"mask_decoder\.transformer\.layers\.(\d+)\.mlp\.(lin[12])\.{_PARAM}",
            r"mask_decoder.transformer.layers.\1.mlp.\2.\3",
        ),
        (
            rf"mask_decoder\.transformer\.norm_final_attn\.{_PARAM}",
            r"mask_decoder.transformer.layer_norm_final_attn.\1",
        ),
        (rf"mask_decoder\.output_upscaling\.0\.{_PARAM}", r"mask_decoder.upscale_conv1.\1"),
        (rf"mask_decoder\.output_upscaling\.1\.{_PARAM}", r"mask_decoder.upscale_layer_norm.\1"),
        (rf"mask_decoder\.output_upscaling\.3\.{_PARAM}", r"mask_decoder.upscale_conv2.\1"),
    )
)
_HEAD = re.compile(
    rf"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.(\d+)\.{_PARAM}"
)


def rename_key(key: str, *, iou_head_depth: int = 3) -> str:
    """Name in transformers' `SamModel` of an official parameter or buffer.

    Args:
        key: A key of the official state dict, such as ``image_encoder.blocks.0.norm1.weight``.
        iou_head_depth: Number of linear layers of the IoU head; its last one has a name of its own.

    Returns:
        The new key, such as ``vision_encoder.layers.0.layer_norm1.weight``. The Gaussian matrix of the
        position encoding gets the name of the tensor that the other is tied to,
        ``shared_image_embedding.positional_embedding``.

    Raises:
        ValueError: The official model has no such key.
    """
    for pattern, name in _RULES:
        match = pattern.fullmatch(key)
        if match:
            return match.expand(name)
    match = _HEAD.fullmatch(key)
    if not match:
        raise ValueError(f"not a tensor of the official Segment Anything model: {key!r}")
    head, index, param = match[1], int(match[2]), match[3]
    depth = iou_head_depth if head.endswith("iou_prediction_head") else _HYPERNETWORK_DEPTH
    if index == 0:
        layer = "proj_in"
    elif index == depth - 1:
        layer = "proj_out"
    else:
        layer = f"layers.{index - 1}"
    return f"{head}.{layer}.{param}"


def is_official(tensors: Mapping[str, object]) -> bool:
    """Whether `tensors`, possibly wrapped in ``{"model": ...}``, carries the official model's key names."""
    return _POS_EMBED in _unwrap(tensors)


def from_official(tensors: Mapping[str, object]) -> tuple[SamConfig, dict[str, torch.Tensor]]:
    """Configuration and renamed state dict of an official checkpoint.

    Args:
        tensors: Official state dict, bare or under ``"model"`` or ``"state_dict"``. Floating-point tensors of
            any dtype; they are passed on as they are, neither copied nor cast.

    Returns:
        The `SamConfig` inferred from the shapes, and the tensors by their names in `SamModel`, without the
        tied copy of the positional embedding. Whether the set of keys is complete and each shape is right is
        checked where the model is built.

    Raises:
        ValueError: A key is unknown or has no tensor under it, two shapes contradict each other, or a tensor
            from which the configuration is inferred is missing.
    """
    state = {key: value for key, value in _unwrap(tensors).items() if key not in _IGNORED}
    shapes: dict[str, tuple[int, ...]] = {}
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"expected a tensor under {key!r}, got {type(value).__name__}")
        shapes[key] = tuple(value.shape)
    config = infer_config(shapes)
    depth = config.mask_decoder_config.iou_head_depth
    renamed: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for key, value in state.items():
        assert isinstance(value, torch.Tensor)
        try:
            renamed[rename_key(key, iou_head_depth=depth)] = value
        except ValueError:
            unknown.append(key)
    if unknown:
        raise ValueError(f"{len(unknown)} unknown tensors in an official checkpoint: {few(unknown)}")
    return config, renamed


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> SamConfig:
    """Configuration of the official model whose tensors have these shapes.

    Args:
        shapes: Shape of each tensor by its official key.

    Returns:
        Configuration for `SamModel` under which its outputs equal the official ones.

    Raises:
        ValueError: A needed tensor is missing, the image grid or a patch is not square, or the windows of the
            image encoder's layers differ.
    """
    grid, patch = _grid_and_patch(shapes)
    vision = _vision_config(shapes, grid, patch)
    return SamConfig(
        vision_config=vision,
        prompt_encoder_config={
            "hidden_size": _dims(shapes, "prompt_encoder.no_mask_embed.weight", 2)[1],
            "image_size": grid * patch,
            "patch_size": patch,
            "mask_input_channels": _dims(shapes, "prompt_encoder.mask_downscaling.3.weight", 4)[0],
            "num_point_embeddings": _count(shapes, r"prompt_encoder\.point_embeddings\.(\d+)\."),
        },
        mask_decoder_config=_decoder_config(shapes),
    )


def _grid_and_patch(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Patches per side of the image, and pixels per side of a patch."""
    _, grid, grid_w, _ = _dims(shapes, _POS_EMBED, 4)
    _, _, patch, patch_w = _dims(shapes, _PATCH_EMBED, 4)
    if grid != grid_w or patch != patch_w:
        raise ValueError(
            f"expected square images, got a grid of {grid}x{grid_w} patches of {patch}x{patch_w}"
        )
    return grid, patch


def _vision_config(shapes: Mapping[str, tuple[int, ...]], grid: int, patch: int) -> dict[str, object]:
    width, channels, _, _ = _dims(shapes, _PATCH_EMBED, 4)
    depth = _count(shapes, r"image_encoder\.blocks\.(\d+)\.")
    rel_pos = [_dims(shapes, f"image_encoder.blocks.{i}.attn.rel_pos_h", 2) for i in range(depth)]
    if not rel_pos or not rel_pos[0][1] or width % rel_pos[0][1]:
        raise ValueError(f"cannot infer the heads of width {width} from relative positions {rel_pos[:1]}")
    window, global_layers = _infer_windows([rows for rows, _ in rel_pos], grid)
    mlp = _dims(shapes, "image_encoder.blocks.0.mlp.lin1.weight", 2)[0]
    return {
        "hidden_size": width,
        "output_channels": _dims(shapes, "image_encoder.neck.0.weight", 4)[0],
        "num_hidden_layers": depth,
        "num_attention_heads": width // rel_pos[0][1],
        "num_channels": channels,
        "image_size": grid * patch,
        "patch_size": patch,
        "qkv_bias": "image_encoder.blocks.0.attn.qkv.bias" in shapes,
        "mlp_ratio": mlp / width,
        "mlp_dim": mlp,
        "window_size": window,
        "global_attn_indexes": global_layers,
        "num_pos_feats": _dims(shapes, _GAUSSIAN, 2)[1],
    }


def _decoder_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, object]:
    layers, head = "mask_decoder.transformer.layers", "mask_decoder.iou_prediction_head.layers"
    inner, width = _dims(shapes, f"{layers}.0.cross_attn_token_to_image.q_proj.weight", 2)
    if not inner or width % inner or inner % _DECODER_HEADS:
        raise ValueError(
            f"expected a decoder attention of {_DECODER_HEADS} heads, got {inner} of {width} channels"
        )
    return {
        "hidden_size": width,
        "mlp_dim": _dims(shapes, f"{layers}.0.mlp.lin1.weight", 2)[0],
        "num_hidden_layers": _count(shapes, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        "num_attention_heads": _DECODER_HEADS,
        "attention_downsample_rate": width // inner,
        "num_multimask_outputs": _dims(shapes, "mask_decoder.mask_tokens.weight", 2)[0] - 1,
        "iou_head_depth": _count(shapes, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
        "iou_head_hidden_dim": _dims(shapes, f"{head}.0.weight", 2)[0],
        "layer_norm_eps": _DECODER_LAYER_NORM_EPS,
    }


def _dims(shapes: Mapping[str, tuple[int, ...]], key: str, rank: int) -> tuple[int, ...]:
    if key not in shapes:
        raise ValueError(f"not a complete official Segment Anything checkpoint: {key} is missing")
    if len(shapes[key]) != rank:
        raise ValueError(f"expected {key} to have {rank} dimensions, got shape {shapes[key]}")
    return shapes[key]


def _infer_windows(rows: list[int], grid: int) -> tuple[int, list[int]]:
    """Window size, and indexes of the global layers, from each layer's number of relative positions."""
    global_rows = 2 * grid - 1
    windowed = {n for n in rows if n != global_rows}
    if len(windowed) > 1 or any(n % 2 == 0 for n in windowed):
        raise ValueError(
            f"expected relative positions of one window size beside {global_rows}, got {sorted(windowed)}"
        )
    # Without a windowed layer the value is never used.
    window = (windowed.pop() + 1) // 2 if windowed else 0
    return window, [i for i, n in enumerate(rows) if n == global_rows]


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """One more than the highest index that `pattern` captures at the start of a key; 0 without any."""
    matches = (re.match(pattern, key) for key in shapes)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _unwrap(tensors: Mapping[str, object]) -> Mapping[str, object]:
    for wrapper in _WRAPPERS:
        inner = tensors.get(wrapper)
        if isinstance(inner, Mapping):
            return inner
    return tensors
