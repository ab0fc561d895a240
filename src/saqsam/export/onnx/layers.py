"""Layers of a quantized SAM as ONNX nodes: quantizers, linear layers, normalisations, products of attention.

Patterns are those that runtimes turn into integer kernels: `DequantizeLinear` right before a product, on both operands,
`QuantizeLinear` where a tensor is rounded. Linear layers are `Gemm` on [rows, channels] with the bias as int32 codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.packed import ExportError, along_axis, codes_and_zero_points, slot_module
from saqsam.models.sam.attention import MIN_NUMERATOR_SUM, SoftmaxProduct
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import ChannelScale, PackedLinear, PackedTensor
from saqsam.quant.logarithmic import LogQuantizer

_Moved = TypeVar("_Moved", Value, "Codes", "Value | Codes")


@dataclass(frozen=True)
class Codes:
    """A rounded tensor: 8-bit codes, and how to read them.

    Attributes:
        value: uint8, any shape.
        scale: Value, float32 [].
        zero_point: Value, uint8 [].
        scale_value: The scale.
    """

    value: Value
    scale: Value
    zero_point: Value
    scale_value: float

    def read(self, graph: Graph, factor: float = 1.0) -> Value:
        """The float tensor that the codes stand for, times `factor`, which costs nothing."""
        scale = self.scale if factor == 1 else graph.constant(np.float32(self.scale_value * factor), "scale")
        return graph.op("DequantizeLinear", self.value, scale, self.zero_point)


def quantize(graph: Graph, value: Value, quantizer: AffineQuantizer) -> Codes:
    """Round a float tensor to codes; each pair of tensor and quantizer once.

    Codes of fewer than 8 bits live in uint8 too. `QuantizeLinear` would let them grow to 255, so the range is cut
    before it.
    """
    scale, zero_point = float(quantizer.scale), int(quantizer.zero_point)
    scale_name = graph.constant(np.array(scale, dtype=np.float32), "scale")
    zero_name = graph.constant(np.array(zero_point, dtype=np.uint8), "zero_point")

    def make() -> Value:
        source = value
        if quantizer.bits < 8:
            low, high = (float(np.float32(end)) for end in quantizer.range)
            source = graph.op("Clip", value, graph.scalar(low), graph.scalar(high))
        return graph.op("QuantizeLinear", source, scale_name, zero_name)

    codes = graph.once(("codes", value, scale, zero_point, quantizer.bits), make)
    return Codes(codes, scale_name, zero_name, scale)


def rounded(graph: Graph, value: Value, quantizer: nn.Module, where: str) -> Value | Codes:
    """A float tensor after a slot's quantizer: codes, or the tensor itself if the slot is empty."""
    return value if isinstance(quantizer, nn.Identity) else quantize(graph, value, affine(quantizer, where))


def read(graph: Graph, given: Value | Codes) -> Value:
    """The float tensor that codes stand for; floats as they are."""
    return given.read(graph) if isinstance(given, Codes) else given


def affine(quantizer: nn.Module, where: str) -> AffineQuantizer:
    """The quantizer, if standard operators have it.

    Raises:
        ExportError: If not.
    """
    if isinstance(quantizer, LogQuantizer):
        raise ExportError(
            f"{where}: logarithmic codes of probabilities have no operator; quantize with --deploy, or with "
            "--set probabilities.kind=uniform"
        )
    if not isinstance(quantizer, AffineQuantizer):
        raise ExportError(f"{where}: a {type(quantizer).__name__} cannot be exported")
    return quantizer


def linear(graph: Graph, layer: Any, given: Value | Codes, where: str) -> Value:
    """A linear layer of rows [R, K]: [R, C]. Codes are what `layer_input` gave for it."""
    return product(graph, given, layer.weight, layer.bias, where, lambda weight: weight.T)


def product(
    graph: Graph,
    given: Value | Codes,
    weight: PackedTensor | torch.Tensor,
    bias: torch.Tensor | None,
    where: str,
    arrange: Callable[[NDArray[Any]], NDArray[Any]],
) -> Value:
    """Rows [R, K] times a weight, packed or float, plus a bias [C]: [R, C].

    Args:
        graph: The graph.
        given: Rows.
        weight: Of any shape.
        bias: Float, or None.
        where: Name of the layer, for errors.
        arrange: From an array in the weight's shape to [K, C].
    """
    if not isinstance(weight, PackedTensor):
        matrix = graph.parameter(torch.from_numpy(arrange(weight.detach().cpu().numpy())), "weight")
        return graph.op("Gemm", read(graph, given), matrix, *_float_bias(graph, bias))
    codes, zero_points = codes_and_zero_points(weight, where)

    def columns_of(channels: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(arrange(np.broadcast_to(channels, codes.shape))[0])

    columns = columns_of(along_axis(weight, weight.scale))
    integers = graph.signed_bytes(arrange(codes), columns_of(zero_points), weight.bits, name="weight")
    scales = graph.constant(columns, "weight_scale")
    # Zeros that say nothing new, but without which ONNX Runtime finds no integer kernel.
    # Each layer has its own: where 8-bit products could saturate ONNX Runtime makes weights unsigned, and fails on
    # zero points that several layers share.
    zeros = graph.constant(np.zeros(len(columns), dtype=np.int8), "weight_zero_point", shared=False)
    operand = graph.op("DequantizeLinear", integers, scales, zeros, axis=1)
    if isinstance(given, Codes):
        biases = _integer_bias(graph, bias, given, columns, scales, where)
    else:
        biases = _float_bias(graph, bias)
    return graph.op("Gemm", read(graph, given), operand, *biases)


def _float_bias(graph: Graph, bias: torch.Tensor | None) -> tuple[Value, ...]:
    return () if bias is None else (graph.parameter(bias, "bias"),)


def _integer_bias(
    graph: Graph,
    bias: torch.Tensor | None,
    given: Codes,
    columns: NDArray[np.float32],
    scales: Value,
    where: str,
) -> tuple[Value, ...]:
    """A bias as int32 multiples of the product of both scales, which it is in a checkpoint that says so."""
    if bias is None:
        return ()
    step = (np.float32(given.scale_value) * columns).astype(np.float64)
    exact = bias.detach().cpu().double().numpy() / step
    wanted = np.rint(exact)
    # The bias and the step have the 24 bits of float32.
    if not (np.abs(exact - wanted) <= 1e-3 + 2.0**-21 * np.abs(exact)).all():
        raise ExportError(
            f"{where}: integer kernels add biases that are multiples of the product of both scales; quantize with "
            "--deploy, or with --set integer_biases=true"
        )
    integers = graph.constant(np.clip(wanted, -(2**31), 2**31 - 1).astype(np.int32), "bias")
    zeros = graph.constant(np.zeros(len(columns), dtype=np.int32), "bias_zero_point")
    # Computed when a runtime loads: it would be half of what biases take in the file.
    both = graph.folded("Mul", given.scale, scales, name="bias_scale")
    return (graph.op("DequantizeLinear", integers, both, zeros, axis=0),)


def layer_input(graph: Graph, layer: Any, value: Value, where: str) -> Value | Codes:
    """What a linear layer reads of a float tensor: codes where it is quantized, after its channel scale if any."""
    if not isinstance(layer, PackedLinear):
        return value
    if isinstance(layer.input_scale, ChannelScale):
        gain = layer.input_scale.gain.detach()
        shift = -layer.input_scale.offset.detach() * gain
        value = graph.op("Mul", value, graph.parameter(gain, "gain"))
        value = graph.op("Add", value, graph.parameter(shift, "shift"))
    return rounded(graph, value, layer.input_quantizer, where)


def move(graph: Graph, given: _Moved, kind: str, *inputs: Value, **attributes: Any) -> _Moved:
    """Apply an operator that only moves values (Reshape, Transpose, Slice, ...) to codes or floats alike."""
    if isinstance(given, Codes):
        return replace(given, value=graph.op(kind, given.value, *inputs, **attributes))
    return graph.op(kind, given, *inputs, **attributes)


def layer_norm(graph: Graph, norm: nn.LayerNorm, value: Value) -> Value:
    """Normalise the last axis."""
    weight, bias = graph.parameter(norm.weight, "norm_weight"), graph.parameter(norm.bias, "norm_bias")
    return graph.op("LayerNormalization", value, weight, bias, axis=-1, epsilon=float(norm.eps))


_TANH_GELUS = ("GELUTanh", "NewGELUActivation", "FastGELUActivation", "AccurateGELUActivation")
_SIGMOID_FACTORS = {"SiLUActivation": 1.0, "SiLU": 1.0, "QuickGELUActivation": 1.702}
"""Activations x * sigmoid(factor * x)."""


def activation(graph: Graph, module: nn.Module, value: Value) -> Value:
    """Apply one of the activations that a configuration may name (`models.configuration.ACTIVATIONS`).

    Raises:
        ExportError: There is no operator for the activation.
    """
    kind = type(module).__name__
    if isinstance(module, nn.ReLU):
        return graph.op("Relu", value)
    if kind in ("GELU", "GELUActivation"):
        return graph.op("Gelu", value)
    if kind in _TANH_GELUS:
        return graph.op("Gelu", value, approximate="tanh")
    if kind in _SIGMOID_FACTORS:
        scaled = value
        if _SIGMOID_FACTORS[kind] != 1:
            factor = graph.constant(np.float32(_SIGMOID_FACTORS[kind]), "factor")
            scaled = graph.op("Mul", value, factor)
        return graph.op("Mul", value, graph.op("Sigmoid", scaled))
    raise ExportError(f"no operator for the activation {kind}")


def weighted_mean(graph: Graph, attention: Any, logits: Value, value: Value, where: str) -> Value:
    """Values [..., K, D] averaged by the softmax of logits [..., Q, K]: [..., Q, D]; see `models.attention`."""
    quantizer = slot_module(attention, "probability_quantizer")
    if isinstance(quantizer, nn.Identity):
        return graph.op("MatMul", graph.op("Softmax", logits, axis=-1), value)
    if isinstance(attention.product, SoftmaxProduct):
        probabilities = rounded(graph, graph.op("Softmax", logits, axis=-1), quantizer, where)
        return graph.op("MatMul", read(graph, probabilities), value)
    last = graph.ints(-1)
    below = graph.op("Sub", logits, graph.op("ReduceMax", logits, last, keepdims=1))
    codes = quantize(graph, graph.op("Exp", below), affine(quantizer, where))
    total = graph.op("ReduceSum", codes.read(graph), last, keepdims=1)
    total = graph.op("Max", total, graph.scalar(MIN_NUMERATOR_SUM))
    return graph.op("Div", graph.op("MatMul", codes.read(graph), value), total)
