"""Convert official Segment Anything checkpoints to transformers' `SamModel` by renaming their keys.

`facebookresearch/segment-anything` publishes ``sam_vit_{b,l,h}_*.pth``: the state dict of its own `Sam` class, without
a configuration. Both implementations hold the same tensors in the same shapes, so renaming suffices, and the
configuration is inferred from the shapes:

=====================  ==============================================================================
image grid             ``pos_embed`` is (1, h, w, C); image size = grid x patch size
heads                  C / length of a relative-position vector
window                 a windowed layer's ``rel_pos_h`` has 2 x window - 1 rows
global layers          those whose ``rel_pos_h`` has 2 x grid - 1 rows
=====================  ==============================================================================

For ViT-B, L and H that gives the configurations of ``segment_anything/build_sam.py``: 12, 24, 32 layers of
width 768, 1024, 1280 with 12, 16, 16 heads, global attention in layers 2 5 8 11, 5 11 17 23, 7 15 23 31.

Three values do not follow from the shapes and are taken from the official code: the decoder has 8 attention heads;
the encoder's layer norms use eps 1e-6; the decoder's two-way blocks use `torch.nn.LayerNorm`'s 1e-5, for which
transformers' default is 1e-6.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from transformers import SamConfig

from saqsam.models.official_rules import PARAM, compile_rules, rename, shared_rules
from saqsam.models.sam.shape_inference import infer_sam_config
from saqsam.utils.errors import CheckpointError, shorten, shorten_names

DECODER_LAYER_NORM_EPS = 1e-5
_HYPERNETWORK_DEPTH = 3  # fixed in the official MaskDecoder, and in transformers' SamMaskDecoder

_GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
# Buffers of the official `Sam` that some tools save; the processor holds their values.
_IGNORED = frozenset({"pixel_mean", "pixel_std"})

# (official, transformers): whole keys; a key that no rule matches is unknown. `_HEAD` matches the MLP heads, whose
# first and last layers have names of their own in transformers.
_RULES = (
    *compile_rules(
        (
            (r"image_encoder\.pos_embed", r"vision_encoder.pos_embed"),
            (rf"image_encoder\.patch_embed\.proj\.{PARAM}", r"vision_encoder.patch_embed.projection.\1"),
            (
                rf"image_encoder\.blocks\.(\d+)\.norm([12])\.{PARAM}",
                r"vision_encoder.layers.\1.layer_norm\2.\3",
            ),
            (
                rf"image_encoder\.blocks\.(\d+)\.attn\.(qkv|proj)\.{PARAM}",
                r"vision_encoder.layers.\1.attn.\2.\3",
            ),
            (r"image_encoder\.blocks\.(\d+)\.attn\.(rel_pos_[hw])", r"vision_encoder.layers.\1.attn.\2"),
            (
                rf"image_encoder\.blocks\.(\d+)\.mlp\.(lin[12])\.{PARAM}",
                r"vision_encoder.layers.\1.mlp.\2.\3",
            ),
            (r"image_encoder\.neck\.0\.weight", r"vision_encoder.neck.conv1.weight"),
            (rf"image_encoder\.neck\.1\.{PARAM}", r"vision_encoder.neck.layer_norm1.\1"),
            (r"image_encoder\.neck\.2\.weight", r"vision_encoder.neck.conv2.weight"),
            (rf"image_encoder\.neck\.3\.{PARAM}", r"vision_encoder.neck.layer_norm2.\1"),
            # One matrix encodes prompts and image alike; transformers ties the prompt encoder's copy to it.
            (re.escape(_GAUSSIAN), r"shared_image_embedding.positional_embedding"),
            (r"prompt_encoder\.point_embeddings\.(\d+)\.weight", r"prompt_encoder.point_embed.\1.weight"),
            (
                r"(mask_decoder\.transformer\.(?:layers\.\d+\.(?:self_attn|cross_attn_\w+)|final_attn_\w+))"
                rf"\.out_proj\.{PARAM}",
                r"\1.out_proj.\2",
            ),
            (
                rf"mask_decoder\.transformer\.layers\.(\d+)\.mlp\.(lin[12])\.{PARAM}",
                r"mask_decoder.transformer.layers.\1.mlp.\2.\3",
            ),
        )
    ),
    *shared_rules("prompt_encoder", "mask_decoder"),
)
_HEAD = re.compile(
    rf"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.(\d+)\.{PARAM}"
)


def rename_key(key: str, *, iou_head_depth: int = 3) -> str:
    """Return the name in transformers' `SamModel` of an official parameter or buffer.

    Args:
        key: A key of the official state dict, such as ``image_encoder.blocks.0.norm1.weight``.
        iou_head_depth: Number of linear layers of the IoU head; its last one has a name of its own.

    Returns:
        The new key, such as ``vision_encoder.layers.0.layer_norm1.weight``. Of the two tied names of the Gaussian
        matrix of the position encoding, ``shared_image_embedding.positional_embedding`` is returned.

    Raises:
        CheckpointError: The official model has no such key.
    """
    renamed = rename(key, _RULES)
    if renamed is not None:
        return renamed
    match = _HEAD.fullmatch(key)
    if not match:
        raise CheckpointError(f"not a tensor of the official Segment Anything model: {shorten(key)}")
    head, index, param = match[1], int(match[2]), match[3]
    depth = iou_head_depth if head.endswith("iou_prediction_head") else _HYPERNETWORK_DEPTH
    if index == 0:
        layer = "proj_in"
    elif index == depth - 1:
        layer = "proj_out"
    else:
        layer = f"layers.{index - 1}"
    return f"{head}.{layer}.{param}"


def from_official(tensors: Mapping[str, object]) -> tuple[SamConfig, dict[str, torch.Tensor]]:
    """Return the configuration and the renamed state dict of an official checkpoint.

    Args:
        tensors: Official state dict: floating-point tensors of any dtype. They are passed on as they are, neither
            copied nor cast.

    Returns:
        The `SamConfig` inferred from the shapes, and the tensors by their names in `SamModel`, without the tied copy of
        the positional embedding. `build_model` checks that the keys are complete and the shapes right.

    Raises:
        CheckpointError: A key is unknown or has no tensor under it, two shapes contradict each other, or a tensor
            from which the configuration is inferred is missing.
    """
    renamed = rename_state_dict(tensors)
    shapes = {name: tuple(value.shape) for name, value in renamed.items()}
    return infer_sam_config(shapes, decoder_layer_norm_eps=DECODER_LAYER_NORM_EPS), renamed


def rename_state_dict(tensors: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Return an official state dict under the names of transformers' `SamModel`.

    Raises:
        CheckpointError: A key is unknown, or has no tensor under it.
    """
    depth = _iou_head_depth(tensors)
    renamed: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for key, value in tensors.items():
        if key in _IGNORED:
            continue
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"expected a tensor under {shorten(key)}, got {type(value).__name__}")
        try:
            renamed[rename_key(key, iou_head_depth=depth)] = value
        except ValueError:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} unknown tensors in an official checkpoint, which a SAM does not have: "
            f"{shorten_names(unknown)}"
        )
    return renamed


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> SamConfig:
    """Return the configuration of the official model whose tensors have these shapes.

    Args:
        shapes: Shape of each tensor by its official key.

    Returns:
        Configuration for `SamModel` under which its outputs equal the official ones.

    Raises:
        CheckpointError: As for `infer_sam_config`, or a key is unknown.
    """
    depth = _iou_head_depth(shapes)
    renamed = {rename_key(key, iou_head_depth=depth): shape for key, shape in shapes.items()}
    return infer_sam_config(renamed, decoder_layer_norm_eps=DECODER_LAYER_NORM_EPS)


def _iou_head_depth(keys: Iterable[str]) -> int:
    """Return the number of linear layers of the IoU head, counted in official keys."""
    matches = (re.match(r"mask_decoder\.iou_prediction_head\.layers\.(\d{1,4})\.", key) for key in keys)
    return max((int(match[1]) + 1 for match in matches if match), default=0)
