"""The part of a `Recipe` that says how channels are equalized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from saqsam.recipes.specs import check_choice, check_number, check_positive

EqualizedLayers = Literal["all", "normalizations"]


@dataclass(frozen=True)
class Equalization:
    """Equalization of channels that share a scale, where a recipe is `equalized`.

    Attributes:
        layers: `all` equalizes every pair of layers that factors can be folded across. `normalizations` equalizes only
            normalizations of the encoder and the layers that read them (RepQ-ViT, arXiv 2212.08254).
        groups: Number of groups of channels of a normalization that share a factor and an offset (channel-aware
            grouping of AHCPTQ, arXiv 2503.03088), found by k-means; None gives each channel its own.
        strength: Migration strength of the normalizations' factors (alpha of SmoothQuant, arXiv 2211.10438): the part
            of the range of activations that is moved to weights. 1 moves all of it; 0 only evens out weight columns.
    """

    layers: EqualizedLayers = "all"
    groups: int | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_choice("layers", self.layers, get_args(EqualizedLayers))
        check_number("strength", self.strength, 0, 1)
        if self.groups is not None:
            check_positive("groups", self.groups)
            if self.strength != 1:
                raise ValueError(
                    "strength must be 1 with groups: weight columns would give channels of a group different factors"
                )
