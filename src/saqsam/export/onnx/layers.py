"""Layers of a quantized SAM as ONNX nodes: quantizers, linear layers, normalizations, attention.

The graph has the patterns that runtimes replace by integer kernels: `QuantizeLinear` where a tensor is quantized, and
`DequantizeLinear` on both operands right before a matrix product. Linear layers are `Gemm` nodes on [rows, channels]
with the bias as int32 codes.
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
from saqsam.export.packed import (
    ExportError,
    along_axis,
    check_input_constant,
    codes_and_zero_points,
    slot_module,
)
from saqsam.models.average import MIN_NUMERATOR_SUM, SoftmaxAverage
from saqsam.quant.affine import AffineQuantizer, DynamicQuantizer
from saqsam.quant.layers import ChannelScale, PackedLinear, PackedTensor
from saqsam.quant.logarithmic import LogQuantizer

_Tensor = TypeVar("_Tensor", Value, "Codes", "Value | Codes")


@dataclass(frozen=True)
class Codes:
    """A quantized tensor in the graph.

    Attributes:
        value: Codes, uint8, any shape.
        scale: Scale, float32 [].
        zero_point: Zero point, uint8 [].
        scale_value: The scale as a number.
    """

    value: Value
    scale: Value
    zero_point: Value
    scale_value: float

    def dequantize(self, graph: Graph, factor: float = 1.0) -> Value:
        """Return the dequantized tensor times `factor`, which is folded into the scale."""
        scale = self.scale if factor == 1 else graph.constant(np.float32(self.scale_value * factor), "scale")
        return graph.op("DequantizeLinear", self.value, scale, self.zero_point)


def quantize(graph: Graph, value: Value, quantizer: AffineQuantizer) -> Codes:
    """Quantize a float tensor; equal calls share their nodes.

    Codes of fewer than 8 bits are stored in uint8, too. `QuantizeLinear` clips at 255, so `Clip` limits the range
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

    codes = graph.cached(("codes", value, scale, zero_point, quantizer.bits), make)
    return Codes(codes, scale_name, zero_name, scale)


def quantized(graph: Graph, value: Value, quantizer: nn.Module, where: str) -> Value | Codes:
    """Apply the quantizer of a slot to a float tensor; the tensor is returned unchanged if the slot is empty."""
    return (
        value
        if isinstance(quantizer, nn.Identity)
        else quantize(graph, value, affine_quantizer(quantizer, where))
    )


def dequantized(graph: Graph, tensor: Value | Codes) -> Value:
    """Dequantize codes; a float tensor is returned unchanged."""
    return tensor.dequantize(graph) if isinstance(tensor, Codes) else tensor


def affine_quantizer(quantizer: nn.Module, where: str) -> AffineQuantizer:
    """Return the quantizer if it is affine.

    Raises:
        ExportError: ONNX has no operator for the quantizer.
    """
    if isinstance(quantizer, LogQuantizer):
        raise ExportError(
            f"{where}: logarithmic codes of probabilities have no operator; quantize with --deploy, or with "
            "--set probabilities.kind=uniform"
        )
    if isinstance(quantizer, DynamicQuantizer):
        raise ExportError(
            f"{where}: dynamic ranges have no operator; quantize with --deploy, or with --set dynamic_queries=false "
            "--set activations.dynamic=false"
        )
    if not isinstance(quantizer, AffineQuantizer):
        raise ExportError(f"{where}: expected an affine quantizer, got {type(quantizer).__name__}")
    return quantizer


def linear(graph: Graph, layer: Any, tensor: Value | Codes, where: str) -> Value:
    """Apply a linear layer to rows [R, K] from `layer_input`: [R, C]."""
    return gemm(graph, tensor, layer.weight, layer.bias, where, lambda weight: weight.T)


def gemm(
    graph: Graph,
    tensor: Value | Codes,
    weight: PackedTensor | torch.Tensor,
    bias: torch.Tensor | None,
    where: str,
    arrange: Callable[[NDArray[Any]], NDArray[Any]],
) -> Value:
    """Multiply rows [R, K] by a packed or float weight [K, C] and add a bias [C]: [R, C].

    Args:
        graph: The graph.
        tensor: Rows [R, K].
        weight: Weight of any shape.
        bias: Float [C], or None.
        where: Name of the layer, for errors.
        arrange: Function that turns an array in the weight's shape into [K, C].
    """
    if not isinstance(weight, PackedTensor):
        matrix = graph.parameter(torch.from_numpy(arrange(weight.detach().float().cpu().numpy())), "weight")
        return graph.op("Gemm", dequantized(graph, tensor), matrix, *_float_bias(graph, bias))
    codes, zero_points = codes_and_zero_points(weight, where)

    def columns_of(channels: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(arrange(np.broadcast_to(channels, codes.shape))[0])

    columns = columns_of(along_axis(weight, weight.scale))
    integers = graph.signed_bytes(arrange(codes), columns_of(zero_points), weight.bits, name="weight")
    scales = graph.constant(columns, "weight_scale")
    # Without these redundant zero points ONNX Runtime uses no integer kernel. They are not shared: on processors where
    # 8-bit products could saturate, ONNX Runtime makes weights unsigned, and fails on zero points of several layers.
    zeros = graph.constant(np.zeros(len(columns), dtype=np.int8), "weight_zero_point", shared=False)
    operand = graph.op("DequantizeLinear", integers, scales, zeros, axis=1)
    if isinstance(tensor, Codes):
        biases = _integer_bias(graph, bias, tensor, columns, scales, where)
    else:
        biases = _float_bias(graph, bias)
    return graph.op("Gemm", dequantized(graph, tensor), operand, *biases)


def _float_bias(graph: Graph, bias: torch.Tensor | None) -> tuple[Value, ...]:
    return () if bias is None else (graph.parameter(bias, "bias"),)


def _integer_bias(
    graph: Graph,
    bias: torch.Tensor | None,
    tensor: Codes,
    columns: NDArray[np.float32],
    scales: Value,
    where: str,
) -> tuple[Value, ...]:
    """Add a bias as int32 multiples of input scale times weight scale.

    Raises:
        ExportError: The bias is no such multiple: the recipe lacks `integer_biases`.
    """
    if bias is None:
        return ()
    step = (np.float32(tensor.scale_value) * columns).astype(np.float64)
    exact = bias.detach().cpu().double().numpy() / step
    codes = np.rint(exact)
    # Bias and step have the 24-bit precision of float32.
    if not (np.abs(exact - codes) <= 1e-3 + 2.0**-21 * np.abs(exact)).all():
        raise ExportError(
            f"{where}: integer kernels add biases that are multiples of the product of both scales; quantize with "
            "--deploy, or with --set integer_biases=true"
        )
    integers = graph.constant(np.clip(codes, -(2**31), 2**31 - 1).astype(np.int32), "bias")
    zeros = graph.constant(np.zeros(len(columns), dtype=np.int32), "bias_zero_point")
    # Folded when a runtime loads the graph; stored, it would take as much space as the bias itself.
    both = graph.folded("Mul", tensor.scale, scales, name="bias_scale")
    return (graph.op("DequantizeLinear", integers, both, zeros, axis=0),)


def layer_input(graph: Graph, layer: Any, value: Value, where: str) -> Value | Codes:
    """Apply the channel scale and the input quantizer of a linear layer, if it has them, to a float tensor."""
    if not isinstance(layer, PackedLinear):
        return value
    check_input_constant(layer, where, "--deploy")
    if isinstance(layer.input_scale, ChannelScale):
        gain = layer.input_scale.gain.detach()
        shift = -layer.input_scale.offset.detach() * gain
        value = graph.op("Mul", value, graph.parameter(gain, "gain"))
        value = graph.op("Add", value, graph.parameter(shift, "shift"))
    return quantized(graph, value, layer.input_quantizer, where)


def rearrange(graph: Graph, tensor: _Tensor, kind: str, *inputs: Value, **attributes: Any) -> _Tensor:
    """Apply a data-movement operator (Reshape, Transpose, Slice, ...) to codes or floats."""
    if isinstance(tensor, Codes):
        return replace(tensor, value=graph.op(kind, tensor.value, *inputs, **attributes))
    return graph.op(kind, tensor, *inputs, **attributes)


def layer_norm(graph: Graph, norm: nn.LayerNorm, value: Value) -> Value:
    """Apply layer normalization to the last axis."""
    weight, bias = graph.parameter(norm.weight, "norm_weight"), graph.parameter(norm.bias, "norm_bias")
    return graph.op("LayerNormalization", value, weight, bias, axis=-1, epsilon=float(norm.eps))


_TANH_GELUS = ("GELUTanh", "NewGELUActivation", "FastGELUActivation", "AccurateGELUActivation")
_SIGMOID_FACTORS = {"SiLUActivation": 1.0, "SiLU": 1.0, "QuickGELUActivation": 1.702}
"""Activations x * sigmoid(factor * x)."""


def activation(graph: Graph, module: nn.Module, value: Value) -> Value:
    """Apply one of the activations that a configuration may name (`models.limits.ACTIVATIONS`).

    Raises:
        ExportError: ONNX has no operator for the activation.
    """
    kind = type(module).__name__
    if isinstance(module, nn.ReLU):
        return graph.op("Relu", value)
    if kind in ("GELU", "GELUActivation"):
        return graph.gelu(value, approximate=False)
    if kind in _TANH_GELUS:
        return graph.gelu(value, approximate=True)
    if kind in _SIGMOID_FACTORS:
        scaled = value
        if _SIGMOID_FACTORS[kind] != 1:
            factor = graph.constant(np.float32(_SIGMOID_FACTORS[kind]), "factor")
            scaled = graph.op("Mul", value, factor)
        return graph.op("Mul", value, graph.op("Sigmoid", scaled))
    raise ExportError(f"activation: ONNX has no operator for {kind}")


def weighted_average(graph: Graph, attention: Any, logits: Value, value: Value, where: str) -> Value:
    """Average values [..., K, D] by the quantized softmax of logits [..., Q, K]: [..., Q, D].

    The graph computes the attention's `SoftmaxAverage` or `RowScaledAverage`.
    """
    quantizer = slot_module(attention, "probability_quantizer")
    if isinstance(quantizer, nn.Identity):
        return graph.op("MatMul", graph.op("Softmax", logits, axis=-1), value)
    if isinstance(attention.average, SoftmaxAverage):
        probabilities = quantized(graph, graph.op("Softmax", logits, axis=-1), quantizer, where)
        return graph.op("MatMul", dequantized(graph, probabilities), value)
    last = graph.ints(-1)
    below = graph.op("Sub", logits, graph.maximum(logits, -1, keepdims=True))
    codes = quantize(graph, graph.op("Exp", below), affine_quantizer(quantizer, where))
    total = graph.op("ReduceSum", codes.dequantize(graph), last, keepdims=1)
    total = graph.op("Max", total, graph.scalar(MIN_NUMERATOR_SUM))
    return graph.op("Div", graph.op("MatMul", codes.dequantize(graph), value), total)
