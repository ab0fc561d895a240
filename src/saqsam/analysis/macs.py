"""Multiply-accumulates of each part of a SAM, counted on a model that holds no data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import SamConfig, SamModel
from transformers.models.sam.modeling_sam import SamAttention, SamVisionAttention

from saqsam.models.sam.structure import SamStructure

RELATIVE_POSITIONS = "relative_positions"
"""The encoder's products of queries and relative positions."""
MASK_PRODUCT = "mask_product"
"""The decoder's product of the hypernetworks' output and the upscaled embedding: the masks."""


@dataclass(frozen=True)
class MacCounts:
    """Multiply-accumulates.

    Attributes:
        parts: By part, with `relative_positions` and `mask_product` for those two products.
        probabilities: Those among them that multiply attention's probabilities by values, whose bits can differ.
    """

    parts: Counter[str]
    probabilities: Counter[str]


def count_macs(config: SamConfig, prompts: int = 1) -> MacCounts:
    """Multiply-accumulates of each part for one image and a number of box prompts.

    Counted on a float model of this configuration that holds no data. Softmax, normalisation and other elementwise
    work is not counted, and neither is the prompt encoder.

    Args:
        config: Configuration of the model.
        prompts: Number of box prompts.
    """
    structure = SamStructure(config)
    counts = MacCounts(Counter(), Counter())

    def add(part: str, count: int) -> None:
        counts.parts[part] += count

    def add_attention(part: str, one_product: int) -> None:
        counts.parts[part] += 2 * one_product
        counts.probabilities[part] += one_product

    def count_layer(part: str) -> Callable[..., None]:
        def hook(layer: Any, _: Any, output: torch.Tensor) -> None:
            if isinstance(layer, nn.Linear):
                add(part, output.numel() * layer.in_features)
            elif isinstance(layer, nn.ConvTranspose2d):
                # Stride equals the kernel size: every output value is one sum over the input channels.
                add(part, output.numel() * layer.in_channels)
            else:
                add(part, output.numel() * layer.weight[0].numel())

        return hook

    def count_vision_attention(part: str) -> Callable[..., None]:
        def hook(attention: SamVisionAttention, _: Any, kwargs: dict[str, Any], __: Any) -> None:
            batch, height, width, channels = kwargs["hidden_states"].shape
            tokens = height * width
            add_attention(part, batch * tokens * tokens * channels)
            if attention.use_rel_pos:
                add(RELATIVE_POSITIONS, batch * tokens * (height + width) * channels)

        return hook

    def count_decoder_attention(part: str) -> Callable[..., None]:
        def hook(attention: SamAttention, _: Any, kwargs: dict[str, Any], __: Any) -> None:
            query, key = kwargs["query"], kwargs["key"]
            add_attention(part, query.shape[:3].numel() * key.shape[2] * attention.internal_dim)

        return hook

    with torch.device("meta"), torch.inference_mode():
        model = SamModel(config).eval()
        for site in [*structure.layers, *structure.float_layers]:
            model.get_submodule(site.name).register_forward_hook(count_layer(site.part))
        for site in structure.attentions:
            module = model.get_submodule(site.name)
            is_vision = isinstance(module, SamVisionAttention)
            count = count_vision_attention if is_vision else count_decoder_attention
            module.register_forward_hook(count(site.part), with_kwargs=True)
        vision = config.vision_config
        pixels = torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size)
        output = model(pixel_values=pixels, input_boxes=torch.zeros(1, prompts, 4), multimask_output=False)
    masks = config.mask_decoder_config.num_multimask_outputs + 1
    side = output.pred_masks.shape[-1]
    add(MASK_PRODUCT, prompts * masks * side * side * (config.mask_decoder_config.hidden_size // 8))
    return counts
