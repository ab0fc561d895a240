"""Separate positions: the constant part of what the decoder's projections of image tokens read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from saqsam.convert.plan import QuantizationPlan
from saqsam.quant.layers import QuantizedInput


@torch.no_grad()
def place_image_positions(model: nn.Module, plan: QuantizationPlan) -> None:
    """Set the image positions as constant inputs of the layers that read them, if the recipe separates them.

    Checkpoints do not store them: they follow from the prompt encoder and the input size.

    Args:
        model: Prepared or packed model; changed in place.
        plan: Quantization plan of the run.
    """
    if not plan.recipe.separate_positions:
        return
    positions = plan.family.image_positions(model).flatten(0, -2).clone()  # [T, K]
    for name in plan.structure.position_readers:
        layer: Any = model.get_submodule(name)
        assert isinstance(layer, QuantizedInput)
        layer.input_constant = positions
