"""Resize models with SAM v1's image encoder to another input size, by interpolating their position tables.

Absolute positions are interpolated bicubically, as in ViTDet, whose encoder SAM uses. Relative positions of global
blocks are interpolated linearly, as the attention itself does at run time for grids of another size. Windowed blocks
keep their tables, since their windows stay the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saqsam.models.image_sizes import check_image_size
from saqsam.models.limits import MAX_GRID, MAX_IMAGE_SIZE
from saqsam.utils.errors import CheckpointError

_ENCODER = "vision_encoder"


def resize_sam(
    config: Any, tensors: Mapping[str, Tensor], image_size: int
) -> tuple[Any, Mapping[str, Tensor]]:
    """Return the configuration and the tensors of a model at another input size.

    Args:
        config: Configuration with the `vision_config` and `prompt_encoder_config` of `SamConfig` or `SamHQConfig`.
        tensors: Tensors by their names in transformers. All but the position tables are passed on as they are.
        image_size: Side of the square input in pixels.

    Raises:
        ValueError: The model cannot have this size.
        CheckpointError: A position table does not fit the configuration.
    """
    vision = config.vision_config
    size = check_image_size(
        image_size, multiple=vision.patch_size, largest=min(MAX_IMAGE_SIZE, MAX_GRID * vision.patch_size)
    )
    before, after = vision.image_size // vision.patch_size, size // vision.patch_size
    return resized_config(config, size), {**tensors, **_resized_tables(config, tensors, before, after)}


def resized_config(config: Any, size: int) -> Any:
    """Return a copy of a configuration with a `vision_config` and SAM v1's `prompt_encoder_config` at another size."""
    resized = copy.deepcopy(config)
    vision, prompt = resized.vision_config, resized.prompt_encoder_config
    vision.image_size = prompt.image_size = size
    prompt.image_embedding_size = size // vision.patch_size
    return resized


def _resized_tables(config: Any, tensors: Mapping[str, Tensor], before: int, after: int) -> dict[str, Tensor]:
    """Return the position tables that depend on the patches per side, for another number of them."""
    vision = config.vision_config
    width, head = vision.hidden_size, vision.hidden_size // vision.num_attention_heads
    tables = {}
    if vision.use_abs_pos:
        name = f"{_ENCODER}.pos_embed"
        if name in tensors:
            tables[name] = _absolute(_checked(name, tensors[name], (1, before, before, width)), after)
    for block in range(vision.num_hidden_layers if vision.use_rel_pos else 0):
        if vision.window_size and block not in vision.global_attn_indexes:
            continue
        for axis in "hw":
            name = f"{_ENCODER}.layers.{block}.attn.rel_pos_{axis}"
            if name in tensors:
                tables[name] = _relative(_checked(name, tensors[name], (2 * before - 1, head)), after)
    return tables


def _checked(name: str, table: Tensor, shape: tuple[int, ...]) -> Tensor:
    if table.shape != shape or not table.is_floating_point() or table.layout != torch.strided:
        raise CheckpointError(
            f"{name}: expected floating-point numbers of shape {shape}, got {table.dtype} of shape "
            f"{tuple(table.shape)}"
        )
    return table.detach().float()


def _absolute(table: Tensor, grid: int) -> Tensor:
    """Interpolate absolute positions [1, h, w, C]."""
    resized = F.interpolate(table.permute(0, 3, 1, 2), size=(grid, grid), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous()


def _relative(table: Tensor, grid: int) -> Tensor:
    """Interpolate relative positions [2h - 1, C]."""
    return F.interpolate(table.T[None], size=2 * grid - 1, mode="linear")[0].T.contiguous()
