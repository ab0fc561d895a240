"""Convert official SAM 2 and 2.1 checkpoints to transformers' `Sam2Model` by renaming their keys.

`facebookresearch/sam2` publishes ``sam2_hiera_*.pt`` and ``sam2.1_hiera_*.pt``: the state dict of its video predictor,
without a configuration. The tensors for images keep their shapes. Heads, windows and global blocks do not follow from
shapes, so the variant is looked up by its widths and depths in `VARIANTS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from transformers import Sam2Config

from saqsam.models.official_rules import PARAM, Rule, compile_rules, rename, shared_rules
from saqsam.models.sam2.configuration import parse_sam2_config
from saqsam.utils.errors import CheckpointError, shorten, shorten_names

DEFAULT_IMAGE_SIZE = 1024


@dataclass(frozen=True)
class Variant:
    """Architecture of a published encoder.

    Attributes:
        name: Name of the variant.
        width: Width of the first stage; it doubles from stage to stage.
        blocks: Blocks of each stage.
        heads: Heads of each stage.
        windows: Windows of each stage.
        global_blocks: Blocks with global attention.
    """

    name: str
    width: int
    blocks: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    windows: tuple[int, int, int, int]
    global_blocks: tuple[int, int, int]


VARIANTS = (
    Variant("tiny", 96, (1, 2, 7, 2), (1, 2, 4, 8), (8, 4, 14, 7), (5, 7, 9)),
    Variant("small", 96, (1, 2, 11, 2), (1, 2, 4, 8), (8, 4, 14, 7), (7, 10, 13)),
    Variant("base_plus", 112, (2, 3, 16, 3), (2, 4, 8, 16), (8, 4, 14, 7), (12, 16, 20)),
    Variant("large", 144, (2, 6, 36, 4), (2, 4, 8, 16), (8, 4, 16, 8), (23, 33, 43)),
)
"""The published encoders (`sam2/configs` of the official code)."""

_TRUNK, _DECODER = r"image_encoder\.trunk", r"sam_mask_decoder"
_BACKBONE = "vision_encoder.backbone"
DECODER_RULES = (
    *compile_rules(
        (
            (r"no_mem_embed", r"no_memory_embedding"),
            (rf"{_DECODER}\.obj_score_token\.weight", r"mask_decoder.obj_score_token.weight"),
            (rf"{_DECODER}\.(conv_s[01])\.{PARAM}", r"mask_decoder.\1.\2"),
            (
                rf"{_DECODER}\.(transformer\.(?:layers\.\d+\.(?:self_attn|cross_attn_\w+)|final_attn_\w+))"
                rf"\.out_proj\.{PARAM}",
                r"mask_decoder.\1.o_proj.\2",
            ),
            # SAM 2 numbers the layers of its MLPs, SAM 3 names them as SAM v1 does.
            (
                rf"{_DECODER}\.transformer\.layers\.(\d+)\.mlp\.(?:layers\.0|lin1)\.{PARAM}",
                r"mask_decoder.transformer.layers.\1.mlp.proj_in.\2",
            ),
            (
                rf"{_DECODER}\.transformer\.layers\.(\d+)\.mlp\.(?:layers\.1|lin2)\.{PARAM}",
                r"mask_decoder.transformer.layers.\1.mlp.proj_out.\2",
            ),
        )
    ),
    *shared_rules("sam_prompt_encoder", _DECODER),
)
"""Rules for the prompt encoder and mask decoder, which the trackers of SAM 2 and SAM 3 share."""
_RULES = (
    *compile_rules(
        (
            (rf"{_TRUNK}\.(pos_embed|pos_embed_window)", rf"{_BACKBONE}.\1"),
            (rf"{_TRUNK}\.patch_embed\.proj\.{PARAM}", rf"{_BACKBONE}.patch_embed.projection.\1"),
            (rf"{_TRUNK}\.blocks\.(\d+)\.norm([12])\.{PARAM}", rf"{_BACKBONE}.blocks.\1.layer_norm\2.\3"),
            (rf"{_TRUNK}\.blocks\.(\d+)\.attn\.(qkv|proj)\.{PARAM}", rf"{_BACKBONE}.blocks.\1.attn.\2.\3"),
            (rf"{_TRUNK}\.blocks\.(\d+)\.proj\.{PARAM}", rf"{_BACKBONE}.blocks.\1.proj.\2"),
            (rf"{_TRUNK}\.blocks\.(\d+)\.mlp\.layers\.0\.{PARAM}", rf"{_BACKBONE}.blocks.\1.mlp.proj_in.\2"),
            (rf"{_TRUNK}\.blocks\.(\d+)\.mlp\.layers\.1\.{PARAM}", rf"{_BACKBONE}.blocks.\1.mlp.proj_out.\2"),
            (rf"image_encoder\.neck\.convs\.(\d)\.conv\.{PARAM}", r"vision_encoder.neck.convs.\1.\2"),
        )
    ),
    *DECODER_RULES,
)
_HEAD = re.compile(
    rf"{_DECODER}\.(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)\.layers\.([012])\.{PARAM}"
)
_HEAD_LAYERS = ("proj_in", "layers.0", "proj_out")
_GAUSSIAN = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_GAUSSIAN_COPIES = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)
_POINT = re.compile(r"sam_prompt_encoder\.point_embeddings\.([0-3])\.weight")
_POINTS = 4


def rename_official(tensors: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Return an official state dict under the names of transformers' `Sam2Model`.

    Args:
        tensors: Official state dict without the tensors of the memory.

    Raises:
        CheckpointError: A key is unknown, or has no tensor under it, or an embedding of points is missing.
    """
    return rename_tracker(tensors, _RULES, "SAM 2")


def rename_tracker(
    tensors: Mapping[str, object], rules: Iterable[Rule], model: str
) -> dict[str, torch.Tensor]:
    """Return the state dict of an official SAM 2, or of SAM 3's tracker, under transformers' names.

    Args:
        tensors: Official state dict without the tensors of the memory.
        rules: Rules for single tensors, `DECODER_RULES` among them.
        model: The model's name in error messages.

    Raises:
        CheckpointError: As for `rename_official`.
    """
    renamed: dict[str, torch.Tensor] = {}
    points: dict[int, torch.Tensor] = {}
    unknown: list[str] = []
    for key, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"expected a tensor under {shorten(key)}, got {type(value).__name__}")
        point = _POINT.fullmatch(key)
        if point:
            points[int(point[1])] = value
        elif key == _GAUSSIAN:
            renamed.update(dict.fromkeys(_GAUSSIAN_COPIES, value))
        else:
            name = _rename_key(key, rules)
            unknown += [key] if name is None else []
            if name is not None:
                renamed[name] = value
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} unknown tensors in an official checkpoint, which a {model} does not have: "
            f"{shorten_names(unknown)}"
        )
    if points.keys() != set(range(_POINTS)) or len({tuple(value.shape) for value in points.values()}) != 1:
        raise CheckpointError(f"expected {_POINTS} embeddings of points of one shape, got {sorted(points)}")
    renamed["prompt_encoder.point_embed.weight"] = torch.cat([points[index] for index in range(_POINTS)])
    return renamed


def from_official(tensors: Mapping[str, object]) -> tuple[Sam2Config, dict[str, torch.Tensor]]:
    """Return the configuration and the renamed state dict of an official checkpoint.

    Args:
        tensors: Official state dict without the tensors of the memory: floating-point tensors of any dtype.

    Raises:
        CheckpointError: As for `rename_official`, or no published variant has these widths and depths.
    """
    renamed = rename_official(tensors)
    return config_of_variant(find_variant(renamed), renamed), renamed


def find_variant(tensors: Mapping[str, torch.Tensor]) -> Variant:
    """Return the published variant with the widths and depths of a state dict under transformers' names.

    Raises:
        CheckpointError: There is none.
    """
    blocks = f"{_BACKBONE}.blocks."
    width = _shape(tensors, f"{_BACKBONE}.patch_embed.projection.weight")[0]
    count = 1 + max(
        (int(name.removeprefix(blocks).partition(".")[0]) for name in tensors if name.startswith(blocks)),
        default=-1,
    )
    for variant in VARIANTS:
        if (variant.width, sum(variant.blocks)) == (width, count):
            return variant
    known = ", ".join(f"{one.name} {one.width} and {sum(one.blocks)}" for one in VARIANTS)
    raise CheckpointError(
        f"expected the width and number of blocks of a published SAM 2 ({known}), got {width} and {count}; "
        "convert other models to a folder of transformers, whose config.json describes them"
    )


def config_of_variant(variant: Variant, tensors: Mapping[str, torch.Tensor]) -> Sam2Config:
    """Return the configuration of a published variant at 1024 px; the size of its position table is in the tensors."""
    background = tuple(_shape(tensors, f"{_BACKBONE}.pos_embed"))[-2:]
    size = DEFAULT_IMAGE_SIZE
    widths = [variant.width << stage for stage in range(4)]
    raw = {
        "vision_config": {
            "backbone_config": {
                "hidden_size": variant.width,
                "blocks_per_stage": list(variant.blocks),
                "embed_dim_per_stage": widths,
                "num_attention_heads_per_stage": list(variant.heads),
                "window_size_per_stage": list(variant.windows),
                "global_attention_blocks": list(variant.global_blocks),
                "window_positional_embedding_background_size": list(background),
            },
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[size // (4 << level)] * 2 for level in range(3)],
        },
        "prompt_encoder_config": {"image_size": size},
    }
    return parse_sam2_config(raw, "the shapes of the tensors")


def _rename_key(key: str, rules: Iterable[Rule]) -> str | None:
    renamed = rename(key, rules)
    if renamed is not None:
        return renamed
    match = _HEAD.fullmatch(key)
    return f"mask_decoder.{match[1]}.{_HEAD_LAYERS[int(match[2])]}.{match[3]}" if match else None


def _shape(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Size:
    if name not in tensors or tensors[name].dim() != 4:
        raise CheckpointError(f"not a complete SAM 2: {name} is missing")
    return tensors[name].shape
