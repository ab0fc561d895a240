"""Convert the tracker in the official `sam3.pt` to transformers' `Sam3TrackerModel` by renaming its tensors.

`facebookresearch/sam3` publishes one file with the detector and the tracker of videos. They share an image encoder, and
each has a neck of its own; the tracker's is `sam2_convs`. The tensors keep their shapes, but for the joint projection
of queries, keys and values, and for the position of the class token, which the encoder does not use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from saqsam.models.official_rules import PARAM, compile_rules
from saqsam.models.sam2.official import DECODER_RULES, rename_tracker
from saqsam.utils.errors import CheckpointError

OFFICIAL_ANCHOR = "backbone.vision_backbone.trunk.patch_embed.proj.weight"
OFFICIAL_ROOTS = ("backbone", "sam_prompt_encoder", "sam_mask_decoder", "no_mem_embed")
"""First components of the names of the tracker's tensors, see `without_prefixes`."""
DETECTOR_ROOTS = (
    *("detector", "tracker", "inst_interactive_predictor"),
    *("transformer", "geometry_encoder", "segmentation_head", "dot_prod_scoring"),
)
"""First components of the names of the detector's tensors and of the memory's."""

_TRUNK, _NECK = (rf"backbone\.vision_backbone\.{name}" for name in ("trunk", "sam2_convs"))
_BACKBONE = "vision_encoder.backbone"
_LEVEL = rf"{_NECK}\.(\d)"
_LEVEL_NAME = r"vision_encoder.neck.fpn_layers.\1"
_RULES = (
    *compile_rules(
        (
            (rf"{_TRUNK}\.pos_embed", f"{_BACKBONE}.embeddings.position_embeddings"),
            (
                rf"{_TRUNK}\.patch_embed\.proj\.weight",
                f"{_BACKBONE}.embeddings.patch_embeddings.projection.weight",
            ),
            (rf"{_TRUNK}\.ln_pre\.{PARAM}", rf"{_BACKBONE}.layer_norm.\1"),
            (rf"{_TRUNK}\.blocks\.(\d+)\.norm([12])\.{PARAM}", rf"{_BACKBONE}.layers.\1.layer_norm\2.\3"),
            (
                rf"{_TRUNK}\.blocks\.(\d+)\.attn\.([qkv])\.{PARAM}",
                rf"{_BACKBONE}.layers.\1.attention.\2_proj.\3",
            ),
            (rf"{_TRUNK}\.blocks\.(\d+)\.attn\.proj\.{PARAM}", rf"{_BACKBONE}.layers.\1.attention.o_proj.\2"),
            (rf"{_TRUNK}\.blocks\.(\d+)\.mlp\.fc([12])\.{PARAM}", rf"{_BACKBONE}.layers.\1.mlp.fc\2.\3"),
            (rf"{_LEVEL}\.dconv_2x2(?:_0)?\.{PARAM}", rf"{_LEVEL_NAME}.scale_layers.0.\2"),
            (rf"{_LEVEL}\.dconv_2x2_1\.{PARAM}", rf"{_LEVEL_NAME}.scale_layers.2.\2"),
            (rf"{_LEVEL}\.conv_1x1\.{PARAM}", rf"{_LEVEL_NAME}.proj1.\2"),
            (rf"{_LEVEL}\.conv_3x3\.{PARAM}", rf"{_LEVEL_NAME}.proj2.\2"),
        )
    ),
    *DECODER_RULES,
)
_UNUSED = re.compile(
    rf"backbone\.language_backbone\..*|backbone\.vision_backbone\.convs\..*|{_TRUNK}\.blocks\.\d+\.attn\.freqs_cis"
)
"""Names of the text encoder, of the detector's neck, and of the table of rotations, which follows from the size."""
_JOINT = re.compile(rf"({_TRUNK}\.blocks\.\d+\.attn\.)qkv\.{PARAM}")
_PREFIX = re.compile(
    r"detector\.(?=backbone\.)"
    r"|(?:tracker|inst_interactive_predictor\.model)\.(?=(?:sam_prompt_encoder|sam_mask_decoder)\.|no_mem_embed$)"
)
"""Prefixes of the image encoder and of the tracker, in `sam3.pt` and in the state dict of the official image model."""


def without_prefixes(name: str) -> str:
    """Return the official name of a tensor of the tracker without the prefix of the module that holds it."""
    return _PREFIX.sub("", name, count=1)


def rename_official(tensors: Mapping[str, object]) -> dict[str, Tensor]:
    """Return an official state dict under the names of transformers' `Sam3TrackerModel`.

    Args:
        tensors: Official state dict without prefixes; tensors of the detector under `backbone` are dropped.

    Raises:
        CheckpointError: A key is unknown, or has no tensor under it, or the tracker or a part of it is missing.
    """
    kept = {key: value for key, value in tensors.items() if not _UNUSED.fullmatch(key)}
    for start in ("backbone.vision_backbone.sam2_convs.", "sam_mask_decoder."):
        if not any(key.startswith(start) for key in kept):
            raise CheckpointError(
                f"not a complete SAM 3: no tensor of its tracker under {start[:-1]}; saqsam needs the tracker, which "
                "the published sam3.pt contains"
            )
    renamed = rename_tracker(_split_joint(kept), _RULES, "SAM 3 tracker")
    position = f"{_BACKBONE}.embeddings.position_embeddings"
    if position in renamed:
        renamed[position] = _without_class_token(renamed[position])
    return renamed


def _split_joint(tensors: Mapping[str, object]) -> dict[str, object]:
    """Return the tensors with separate projections of queries, keys and values."""
    split: dict[str, object] = {}
    for key, value in tensors.items():
        joint = _JOINT.fullmatch(key)
        if joint is None or not isinstance(value, Tensor):
            split[key] = value
            continue
        if value.dim() == 0 or len(value) % 3:
            raise CheckpointError(
                f"{key}: expected queries, keys and values of one width, got {list(value.shape)}"
            )
        for name, part in zip("qkv", value.chunk(3), strict=True):
            split[f"{joint[1]}{name}.{joint[2]}"] = part
    return split


def _without_class_token(table: Tensor) -> Tensor:
    """Return a table of positions [1, N, C] without that of a class token: N is a square, or one more."""
    patches = table.shape[1] - 1 if table.dim() == 3 else 0
    return table[:, 1:] if patches > 0 and math.isqrt(patches) ** 2 == patches else table
