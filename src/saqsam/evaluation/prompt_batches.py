"""Number of prompts per decoder call that fits a memory budget."""

from __future__ import annotations

from transformers import SamProcessor

from saqsam.models.processing import input_side
from saqsam.utils.sizes import parse_size

MOST_PROMPTS = 16
"""Prompts per call beyond which a decoder hardly gets faster."""
_PATCH = 16
_BYTES_PER_TOKEN = 12 * 1024
"""Peak memory of a decoder call per image token and prompt: 8 KiB measured on SAM-B in float, quantizers add."""


def prompts_within(memory: int | str, processor: SamProcessor) -> int:
    """Return how many prompts per decoder call stay within a memory budget, between 1 and 16.

    The answer depends on nothing else, so that processes and runs agree on it.

    Args:
        memory: Bytes, or text such as ``"1GiB"``.
        processor: The model's processor, which knows the size of its images.

    Raises:
        ValueError: `memory` is not a size, see `parse_size`.
    """
    side = input_side(processor) // _PATCH
    return max(1, min(MOST_PROMPTS, parse_size(memory) // (side * side * _BYTES_PER_TOKEN)))
