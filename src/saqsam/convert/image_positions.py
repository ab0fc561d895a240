"""Positions of the image's tokens, as the constant part of what the decoder's projections read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from saqsam.convert.plan import QuantizationPlan
from saqsam.quant.layers import QuantizedInput


@torch.no_grad()
def place_image_positions(model: nn.Module, plan: QuantizationPlan) -> None:
    """Let the layers that read image tokens plus positions round the tokens alone, if the recipe says so, in place.

    A checkpoint does not store the positions: they follow from the prompt encoder and the input size.

    Args:
        model: Prepared or packed model.
        plan: Quantization plan of the run.
    """
    if not plan.recipe.separate_positions:
        return
    positions = plan.family.image_positions(model).flatten(0, -2).clone()  # [T, K]
    for name in plan.structure.position_readers:
        layer: Any = model.get_submodule(name)
        if isinstance(layer, QuantizedInput):
            layer.input_constant = positions
