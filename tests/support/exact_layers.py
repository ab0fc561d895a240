"""Layers with integer products, compared with sums of float64 while a model runs."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.integer import IntegerLinear


def compare(name: str, seen: set[str], layer: nn.Module, given: tuple[Tensor], found: Tensor) -> None:
    """A forward hook: the output is that of exact sums, but for the last digits of what follows them."""
    assert isinstance(layer, IntegerLinear)
    quantizer = layer.input_quantizer
    assert isinstance(quantizer, AffineQuantizer)
    codes = (quantizer(layer.input_scale(given[0])) / quantizer.scale).round().double()
    weight = layer.weight.unpack().double() - layer.weight.zero_point.double()[:, None]
    sums = codes @ weight.T  # integers below 2**53: exact
    wanted = sums * (quantizer.scale.double() * layer.weight.scale.double())
    if layer.bias is not None:
        wanted = wanted + layer.bias.double()
    # Three float32 operations, each right to half a unit.
    tolerance = 4 * 2**-24 * float(wanted.abs().max())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance, msg=name)
    seen.add(name)


@contextmanager
def exact_layers(model: nn.Module) -> Iterator[tuple[set[str], set[str]]]:
    """Compare all layers with integer products each time they run in the block.

    Yields:
        The names of these layers, and those that have run so far.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, IntegerLinear)}
    seen: set[str] = set()
    hooks = [
        layer.register_forward_hook(functools.partial(compare, name, seen)) for name, layer in layers.items()
    ]
    try:
        yield set(layers), seen
    finally:
        for hook in hooks:
            hook.remove()
