"""The part of a `Recipe` that says how weights make up for quantization errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from saqsam.recipes.specs import ReconstructionTarget, check_choice, check_number, check_positive, check_type

CompensatedLayers = Literal["all", "decoder"]


@dataclass(frozen=True)
class Compensation:
    """Closed-form compensation of quantization errors, layer by layer, before anything is learned.

    Attributes:
        layers: `all` layers of the papers' tensor set, or those of the `decoder`.
        rounding: Round the columns of a weight one after another, each making up for the error of those before it
            (GPTQ, arXiv 2210.17323).
        inputs: Change weights and biases to make up for the error of quantized inputs (ERQ, arXiv 2407.06794).
        queries: Change the query projections of the decoder's attentions to make up for the error of quantized keys,
            too (CAR-SAM, arXiv 2605.16901).
        target: Inputs of the float layer that gives the target: those of the `quantized` model before they are
            rounded, or those of the `float` model, which makes up for earlier layers, too.
        damping: Penalty of changes, relative to the mean square of a layer's inputs.
        images: Largest number of calibration images.
        tokens: For the encoder: number of image tokens that suffices; further images are left out.
        prompts: Largest number of prompts per image.
    """

    layers: CompensatedLayers = "all"
    rounding: bool = True
    inputs: bool = True
    queries: bool = False
    target: ReconstructionTarget = "quantized"
    damping: float = 0.01
    images: int = 32
    tokens: int = 16384
    prompts: int = 8

    def __post_init__(self) -> None:
        check_choice("layers", self.layers, get_args(CompensatedLayers))
        check_choice("target", self.target, get_args(ReconstructionTarget))
        for name in ("rounding", "inputs", "queries"):
            check_type(name, getattr(self, name), bool)
        check_number("damping", self.damping, 1e-6, 100)
        for name in ("images", "tokens", "prompts"):
            check_positive(name, getattr(self, name))
