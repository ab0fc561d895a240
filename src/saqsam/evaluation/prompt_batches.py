"""How many prompts fit into a memory budget."""

from __future__ import annotations

from transformers import SamProcessor

MOST_PROMPTS = 16
"""Beyond this a decoder hardly gains from more prompts at once."""
_PATCH = 16
_BYTES_PER_TOKEN = 12 * 1024
"""Peak of a decoder call for each image token of each prompt: 8 KiB measured on SAM-B in float, quantizers add."""


def prompts_within(memory: int, processor: SamProcessor) -> int:
    """Prompts per decoder call that stay within `memory` bytes, between 1 and 16.

    The answer depends on nothing else, so that processes and runs agree on it.
    """
    side = int(processor.image_processor.pad_size["height"]) // _PATCH
    return max(1, min(MOST_PROMPTS, memory // (side * side * _BYTES_PER_TOKEN)))
