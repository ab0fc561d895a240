"""Run the quantized linear layers of a checkpoint on torch's 8-bit integer kernels, where torch has them.

Convolutions and attention products still multiply dequantized floats.
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

MAX_ROUNDS = 7
MAX_TIMING_SECONDS = 10.0
"""Time after which no further round starts."""


@dataclass(frozen=True)
class IntegerLayers:
    """Numbers of a model's quantized linear layers that run on integer kernels and on dequantized floats.

    Attributes:
        integer: Number of layers on integer kernels.
        dequantized: Number of layers on dequantized floats, by reason.
    """

    integer: int
    dequantized: Mapping[str, int]

    @property
    def total(self) -> int:
        """Number of quantized linear layers."""
        return self.integer + sum(self.dequantized.values())


def find_integer_layers(model: SamModel) -> IntegerLayers:
    """Count the layers of a quantized model for which torch has integer kernels on the model's device."""
    kernels = [choose_kernel(layer) for layer in model.modules() if isinstance(layer, PackedLinear)]
    reasons = Counter(reason for reason in kernels if isinstance(reason, str))
    return IntegerLayers(len(kernels) - reasons.total(), dict(reasons))


def use_integer_kernels(model: SamModel) -> IntegerLayers:
    """Switch the quantized linear layers of a model to integer kernels, in place, where torch has exact kernels.

    The state dict of the model does not change. Call this function after moving the model to its device.

    Returns:
        The numbers of layers with and without integer kernels.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, PackedLinear)}
    for name, layer in layers.items():
        kernel = choose_kernel(layer)
        if not isinstance(kernel, str) and not isinstance(layer, IntegerLinear):
            replace_module(model, name, IntegerLinear(layer, kernel).train(layer.training))
    return find_integer_layers(model)


@dataclass(frozen=True)
class Speed:
    """Latency of a part of a quantized model and of the float model.

    Attributes:
        part: `encoder` or `decoder`.
        seconds: Median latency of the quantized model.
        float_seconds: Median latency of the float model.
    """

    part: str
    seconds: float
    float_seconds: float

    @property
    def ratio(self) -> float:
        """Speedup over the float model; below 1, the quantized model is slower."""
        return self.float_seconds / self.seconds


@torch.inference_mode()
def compare_with_float(model: SamModel, *, prompts: int = 16) -> list[Speed]:
    """Measure the latency of a quantized model and of its float version on its device, in alternating runs.

    Args:
        model: The quantized model.
        prompts: Number of box prompts per decoder call.

    Returns:
        Median latencies of encoder and decoder over up to `MAX_ROUNDS` rounds after a warm-up round. No round starts
        after `MAX_TIMING_SECONDS`, so that large models get fewer.
    """
    spec = family_of(model.config).input_spec(model.config)
    pixels = torch.randn(spec.pixels, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.25, 0.25, 0.75, 0.75]]).repeat(prompts, 1) * spec.image_size
    backends = (TorchBackend(model), TorchBackend(dequantized(model)))
    rounds: list[list[float]] = []
    start = time.perf_counter()
    for index in range(1 + MAX_ROUNDS):
        times = [
            seconds for backend in backends for seconds in _run_once(backend, pixels, Prompts(boxes=boxes))
        ]
        if index > 0:
            rounds.append(times)
            if time.perf_counter() - start > MAX_TIMING_SECONDS:
                break
    encoder, decoder, float_encoder, float_decoder = (
        statistics.median(times) for times in zip(*rounds, strict=True)
    )
    return [Speed("encoder", encoder, float_encoder), Speed("decoder", decoder, float_decoder)]


def _run_once(backend: Backend, pixels: torch.Tensor, prompts: Prompts) -> tuple[float, float]:
    """Return the seconds that encoding and decoding take."""
    start = time.perf_counter()
    features = backend.encode(pixels)
    features.embedding.sum().item()  # waits for an asynchronous device
    middle = time.perf_counter()
    logits, _ = backend.decode(features, prompts, False)
    logits.sum().item()
    return middle - start, time.perf_counter() - middle
