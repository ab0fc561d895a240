"""Names that the official SAM v1 and SAM 2 share: their prompt encoder and mask decoder, in transformers' names."""

from __future__ import annotations

import re
from collections.abc import Iterable

PARAM = r"(weight|bias)"
"""Pattern of a parameter's own name."""

Rule = tuple[re.Pattern[str], str]
"""Pattern of a whole official name, and the template of transformers' name."""


def compile_rules(rules: Iterable[tuple[str, str]]) -> tuple[Rule, ...]:
    """Return rules with compiled patterns."""
    return tuple((re.compile(pattern), name) for pattern, name in rules)


def rename(key: str, rules: Iterable[Rule]) -> str | None:
    """Return transformers' name of an official one by the first rule that matches it; None if none does."""
    for pattern, name in rules:
        match = pattern.fullmatch(key)
        if match:
            return match.expand(name)
    return None


def shared_rules(prompt_encoder: str, mask_decoder: str) -> tuple[Rule, ...]:
    """Return the rules for names that are alike in all official models.

    Args:
        prompt_encoder: Official name of the prompt encoder.
        mask_decoder: Official name of the mask decoder.
    """
    downscaling = ((0, "conv1"), (1, "layer_norm1"), (3, "conv2"), (4, "layer_norm2"), (6, "conv3"))
    upscaling = ((0, "conv1"), (1, "layer_norm"), (3, "conv2"))
    transformer = rf"{mask_decoder}\.transformer"
    return compile_rules(
        (
            (
                rf"{prompt_encoder}\.(not_a_point_embed|no_mask_embed)\.weight",
                r"prompt_encoder.\1.weight",
            ),
            *(
                (
                    rf"{prompt_encoder}\.mask_downscaling\.{index}\.{PARAM}",
                    rf"prompt_encoder.mask_embed.{name}.\1",
                )
                for index, name in downscaling
            ),
            (rf"{mask_decoder}\.(iou_token|mask_tokens)\.weight", r"mask_decoder.\1.weight"),
            (
                rf"{transformer}\.(layers\.\d+\.(?:self_attn|cross_attn_\w+)|final_attn_\w+)"
                rf"\.([qkv])_proj\.{PARAM}",
                r"mask_decoder.transformer.\1.\2_proj.\3",
            ),
            (
                rf"{transformer}\.layers\.(\d+)\.norm([1-4])\.{PARAM}",
                r"mask_decoder.transformer.layers.\1.layer_norm\2.\3",
            ),
            (
                rf"{transformer}\.norm_final_attn\.{PARAM}",
                r"mask_decoder.transformer.layer_norm_final_attn.\1",
            ),
            *(
                (rf"{mask_decoder}\.output_upscaling\.{index}\.{PARAM}", rf"mask_decoder.upscale_{name}.\1")
                for index, name in upscaling
            ),
        )
    )
