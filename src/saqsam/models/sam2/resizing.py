"""Resize a SAM 2 to another input size, by its configuration: positions are interpolated at run time."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saqsam.models.image_sizes import check_image_size
from saqsam.models.limits import MAX_GRID, MAX_IMAGE_SIZE
from saqsam.models.sam2.configuration import LEAST_SIDE, STAGES, STRIDE


def resize_sam2_config(config: Any, image_size: int) -> Any:
    """Return the configuration of a model at another input size.

    Raises:
        ValueError: The model cannot have this size: cells of the coarsest stage and windows of the first one divide it.
    """
    windows = config.vision_config.backbone_config.window_size_per_stage
    size = check_image_size(
        image_size,
        multiple=math.lcm(LEAST_SIDE, STRIDE * windows[0]),
        largest=min(MAX_IMAGE_SIZE, STRIDE * STRIDE * MAX_GRID),
    )
    resized = copy.deepcopy(config)
    resized.prompt_encoder_config.image_size = size
    resized.vision_config.backbone_config.image_size = [size, size]
    sides = [size // (STRIDE << level) for level in range(STAGES - 1)]
    resized.vision_config.backbone_feature_sizes = [[side, side] for side in sides]
    return resized


def bicubic_matrix(size: int, larger: int) -> Tensor:
    """Return the matrix, float32 [larger, size], by which torch's bicubic interpolation resizes one axis.

    The interpolation of a map is the product with one such matrix along each axis.
    """
    units = torch.eye(size)[None, None]
    resized = F.interpolate(units, size=(larger, size), mode="bicubic", align_corners=False)
    return resized[0, 0].contiguous()
