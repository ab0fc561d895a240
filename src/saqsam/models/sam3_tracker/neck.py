"""The levels of the neck that the mask decoder reads, and the fusion of its last convolutions with the decoder's.

transformers 5.23 builds a neck with a fourth level of half the resolution by default. `Sam3TrackerModel` then adds the
embedding "no memory" to that level, which nothing reads, where the official code, and `Sam3TrackerVideoModel`, add it
to the third one, the image embedding. Without the fourth level, `Sam3TrackerModel` computes what the weights were
trained for.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import Sam3TrackerConfig

from saqsam.models.sam3_tracker.structure import LEVELS, NECK

FOLDED = {
    f"{NECK}.fpn_layers.0.proj2": "mask_decoder.conv_s0",
    f"{NECK}.fpn_layers.1.proj2": "mask_decoder.conv_s1",
}
"""Convolutions of the neck, and those of the decoder that are folded into them."""
UNREAD = f"{NECK}.fpn_layers.{len(LEVELS)}."
"""Start of the names of the tensors that nothing reads."""


def without_unread_level(config: Sam3TrackerConfig) -> Sam3TrackerConfig:
    """Return a configuration whose neck has the levels that are read; a copy if it has more."""
    if len(config.vision_config.scale_factors) > len(LEVELS):
        config = copy.deepcopy(config)
        config.vision_config.scale_factors = list(LEVELS)
    return config


def drop_unread_level(model: Any) -> None:
    """Remove the levels of the neck of a `Sam3TrackerModel` that are not read, in place."""
    del model.vision_encoder.neck.fpn_layers[len(LEVELS) :]
    for config in (model.config.vision_config, model.vision_encoder.config):
        config.scale_factors = list(LEVELS)
