"""Count the multiply-accumulate operations (MACs) of each part of a SAM on the meta device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from saqsam.models.parts import MASK_PRODUCT, RELATIVE_POSITIONS
from saqsam.models.registry import family_of, structure_of


@dataclass(frozen=True)
class MacCounts:
    """Multiply-accumulate operations of a model.

    Attributes:
        parts: MACs by part, including `relative_positions` and `mask_product`.
        probabilities: MACs of attention probabilities times values by part, which `parts` include. Probabilities may
            have other bits than the rest of a part.
    """

    parts: Counter[str]
    probabilities: Counter[str]


def count_macs(config: Any, prompts: int = 1) -> MacCounts:
    """Count the MACs of each part for one image and a number of box prompts.

    Softmax, normalization, other elementwise operations and the prompt encoder are not counted.

    Args:
        config: Configuration of the model.
        prompts: Number of box prompts.
    """
    family, structure = family_of(config), structure_of(config)
    counts = MacCounts(Counter(), Counter())

    def count_layer(part: str) -> Callable[..., None]:
        def hook(layer: Any, _: Any, output: torch.Tensor) -> None:
            counts.parts[part] += output.numel() * _inputs_per_output(layer)

        return hook

    def count_attention(part: str) -> Callable[..., None]:
        def hook(attention: nn.Module, _: Any, kwargs: dict[str, Any], __: Any) -> None:
            macs = family.attention_macs(attention, kwargs)
            counts.parts[part] += 2 * macs.logits
            counts.probabilities[part] += macs.logits
            if macs.relative_positions:
                counts.parts[RELATIVE_POSITIONS] += macs.relative_positions

        return hook

    with torch.device("meta"), torch.inference_mode():
        model = family.build(config).eval()
        family.simplify(model)
        modules = dict(model.named_modules())
        for site in (*structure.weighted_sites, *structure.unquantized):
            if site.name in modules:  # not a parameter
                modules[site.name].register_forward_hook(count_layer(site.part))
        for site in structure.attentions:
            model.get_submodule(site.name).register_forward_hook(count_attention(site.part), with_kwargs=True)
        features = family.encode(model, torch.zeros(family.input_spec(config).pixels))
        family.decode(
            model,
            features,
            points=None,
            labels=None,
            boxes=torch.zeros(prompts, 4),
            mask_inputs=None,
            multimask_output=False,
        )
    counts.parts[MASK_PRODUCT] += family.mask_macs(config, prompts)
    return counts


def _inputs_per_output(layer: Any) -> int:
    """Return the multiply-accumulates of one output value of a layer."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(layer, nn.ConvTranspose2d):
        # Stride equals the kernel size: every output value is one sum over the input channels.
        return layer.in_channels
    return int(layer.weight[0].numel())
