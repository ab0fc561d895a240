"""Torch with integer products: the linear layers of a checkpoint on torch's own 8-bit kernels, where it has them.

Everything else is unchanged: convolutions and attention products multiply dequantized floats.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import SamModel

from saqsam.checkpoint.dequantize import dequantized
from saqsam.inference.backend import Backend, TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.registry import family_of
from saqsam.models.structure import replace_module
from saqsam.quant.integer import IntegerLinear, choose_kernel
from saqsam.quant.layers import PackedLinear

MOST_ROUNDS = 7
TIMING_SECONDS = 10.0
"""Time in seconds after which no further round begins."""


@dataclass(frozen=True)
class IntegerLayers:
    """Counts of the quantized linear layers of a model that run on integers on its device.

    Attributes:
        integer: Number of layers that run on integers.
        left: Number of layers that stay dequantized, by reason.
    """

    integer: int
    left: Mapping[str, int]

    @property
    def total(self) -> int:
        """Number of quantized linear layers."""
        return self.integer + sum(self.left.values())


def find_integer_layers(model: SamModel) -> IntegerLayers:
    """Count the layers of a quantized model that `use_integer_kernels` moves, or has moved, to integers."""
    chosen = [choose_kernel(layer) for layer in model.modules() if isinstance(layer, PackedLinear)]
    left = Counter(reason for reason in chosen if isinstance(reason, str))
    return IntegerLayers(len(chosen) - left.total(), dict(left))


def use_integer_kernels(model: SamModel) -> IntegerLayers:
    """Run the quantized linear layers of a model on integers, in place, where torch has exact kernels for them.

    The state dict is unchanged. Call it after the model was moved to its device.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, PackedLinear)}
    for name, layer in layers.items():
        kernel = choose_kernel(layer)
        if not isinstance(kernel, str) and not isinstance(layer, IntegerLinear):
            replace_module(model, name, IntegerLinear(layer, kernel).train(layer.training))
    return find_integer_layers(model)


@dataclass(frozen=True)
class Speed:
    """Latency of a part of a model, beside that of the float model.

    Attributes:
        part: `encoder` or `decoder`.
        seconds: Median latency.
        float_seconds: Median latency of the float model.
    """

    part: str
    seconds: float
    float_seconds: float

    @property
    def ratio(self) -> float:
        """Speed relative to float: below 1, the model is slower."""
        return self.float_seconds / self.seconds


@torch.inference_mode()
def compare_with_float(model: SamModel, *, prompts: int = 16) -> list[Speed]:
    """Time a quantized model against a float one on its device, in alternating runs.

    Args:
        model: Quantized model.
        prompts: Number of box prompts for the decoder.

    Returns:
        Medians of encoder and decoder over up to `MOST_ROUNDS` rounds, after a warm-up round; large models
        get fewer rounds, so that timing takes no more than about `TIMING_SECONDS`.
    """
    spec = family_of(model.config).input_spec(model.config)
    pixels = torch.randn(spec.pixels, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.25, 0.25, 0.75, 0.75]]).repeat(prompts, 1) * spec.image_size
    backends = (TorchBackend(model), TorchBackend(dequantized(model)))
    rounds: list[list[float]] = []
    start = time.perf_counter()
    for index in range(1 + MOST_ROUNDS):
        times = [
            seconds for backend in backends for seconds in _run_once(backend, pixels, Prompts(boxes=boxes))
        ]
        if index > 0:
            rounds.append(times)
            if time.perf_counter() - start > TIMING_SECONDS:
                break
    encoder, decoder, float_encoder, float_decoder = (
        statistics.median(times) for times in zip(*rounds, strict=True)
    )
    return [Speed("encoder", encoder, float_encoder), Speed("decoder", decoder, float_decoder)]


def _run_once(backend: Backend, pixels: torch.Tensor, prompts: Prompts) -> tuple[float, float]:
    """Return the seconds of encoding and of decoding."""
    start = time.perf_counter()
    embedding = backend.encode(pixels)
    embedding.sum().item()  # a device that works on its own is waited for
    middle = time.perf_counter()
    logits, _ = backend.decode(embedding, prompts, False)
    logits.sum().item()
    return middle - start, time.perf_counter() - middle
