"""Layers of a checkpoint on PyTorch's integer kernels: count them, time them, print both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import SamModel

from saqsam.cli.progress import busy
from saqsam.cli.result_tables import print_integer_layers, print_speed
from saqsam.inference.backend import Backend
from saqsam.runtimes import compare_with_float, find_integer_layers
from saqsam.runtimes.torch_integer import IntegerLayers, Speed


@dataclass(frozen=True)
class Integers:
    """Layers of a model that run on PyTorch's integer kernels, and its latency beside a float model.

    Attributes:
        layers: Counts of the layers.
        speeds: Latency of each part.
    """

    layers: IntegerLayers
    speeds: Sequence[Speed]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "integer_layers": dataclasses.asdict(self.layers),
            "speed": {one.part: {**dataclasses.asdict(one), "ratio": one.ratio} for one in self.speeds},
        }


def measure_integers(model: SamModel | Backend) -> Integers:
    """Count the layers that run on integers, and time the model."""
    assert isinstance(model, nn.Module)
    layers = find_integer_layers(model)
    with busy("timing against float"):
        return Integers(layers, compare_with_float(model))


def print_integers(integers: Integers) -> None:
    """Print the result of `measure_integers`."""
    print_integer_layers(integers.layers)
    print_speed(integers.speeds)
