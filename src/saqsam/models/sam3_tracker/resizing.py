"""Resize SAM 3's tracker to another input size, by its configuration alone.

Absolute positions are tiled at run time, and the rotations of global blocks always cover the range of a window.
"""

from __future__ import annotations

import copy
from typing import Any

from saqsam.models.image_sizes import check_image_size
from saqsam.models.limits import MAX_GRID, MAX_IMAGE_SIZE
from saqsam.models.sam3_tracker.structure import LEVELS


def resize_sam3_tracker_config(config: Any, image_size: int) -> Any:
    """Return the configuration of a model at another input size.

    Raises:
        ValueError: The size is no multiple of the patch size, or too large.
    """
    patch = config.prompt_encoder_config.patch_size
    size = check_image_size(image_size, multiple=patch, largest=min(MAX_IMAGE_SIZE, patch * MAX_GRID))
    resized = copy.deepcopy(config)
    resized.prompt_encoder_config.image_size = size
    resized.vision_config.backbone_config.image_size = size
    resized.vision_config.backbone_feature_sizes = [[int(level * (size // patch))] * 2 for level in LEVELS]
    return resized
