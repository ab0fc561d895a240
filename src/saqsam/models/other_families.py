"""Recognize checkpoints of segmentation models that saqsam does not support.

The error message then names the model, rather than the tensors that are missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SUPPORTED = "saqsam supports SAM v1, SAM-HQ, SAM 2, MobileSAM, and SAM 3's tracker"

_MODEL_TYPES = {
    "edgetam": "EdgeTAM",
    "edgetam_video": "EdgeTAM",
    "sam3": "SAM 3",
}
"""Names by the `model_type` of transformers' configurations."""

_OFFICIAL_KEYS = (
    ("SAM 3.1", r"backbone\.vision_backbone\.interactive_convs\."),
    ("EdgeTAM", r"image_encoder\.trunk\.body\."),
)
"""Model names with a pattern of tensor names each, in order of precedence; tensor names may have prefixes."""


def name_of_model_type(model_type: object) -> str | None:
    """Return the display name of an unsupported `model_type`; None for SAM v1 and unknown types."""
    return _MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None


def name_of_tensors(names: Iterable[str]) -> str | None:
    """Return the display name of the unsupported model with these tensor names; None for SAM v1 and unknown models."""
    listed = list(names)
    for name, pattern in _OFFICIAL_KEYS:
        anywhere = re.compile(rf"(?:^|\.){pattern}")
        if any(anywhere.search(key) for key in listed):
            return name
    return None


def refusal(name: str) -> str:
    """Return the error message for a checkpoint of an unsupported model."""
    article = "an" if name.startswith("Edge") else "a"
    return f"this is {article} {name} checkpoint; {SUPPORTED}"
