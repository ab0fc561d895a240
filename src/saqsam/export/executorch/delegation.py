"""Inspect a lowered ExecuTorch program: which nodes XNNPACK runs, and which matrix products use integers."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from types import BuiltinFunctionType
from typing import Any

import torch
from torch.fx import GraphModule, Node

_DELEGATE = "executorch_call_delegate"
_ROUNDING = ("choose_qparams", "quantize_per", "dequantize_per")
"""Prefixes of quantization operators, which are fused into the neighboring kernel and not counted as nodes."""
_FREE = ("view_copy", "sym_size")
"""Operators outside of delegates that only compute shapes and views; they copy no data and are not counted."""
_PRODUCTS = ("linear", "addmm", "mm", "bmm", "convolution")


@dataclass
class Delegation:
    """Counts of the nodes of a program, without quantization operators and views.

    Attributes:
        delegates: Number of subgraphs that XNNPACK runs.
        delegated: Number of nodes in these subgraphs.
        outside: Numbers of nodes that ExecuTorch's own kernels run, by operator.
        integer_products: Numbers of integer matrix products, by name of the XNNPACK kernel.
        float_products: Numbers of float matrix products, by operator.
    """

    delegates: int = 0
    delegated: int = 0
    outside: dict[str, int] = field(default_factory=dict)
    integer_products: dict[str, int] = field(default_factory=dict)
    float_products: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Fraction of the nodes that XNNPACK runs."""
        return self.delegated / (self.delegated + sum(self.outside.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and the share as plain JSON types."""
        return {**asdict(self), "share": self.share}


def inspect_delegation(program: GraphModule) -> Delegation:
    """Count the nodes of a program that was lowered to XNNPACK."""
    delegation = Delegation()
    outside: Counter[str] = Counter()
    integer: Counter[str] = Counter()
    floating: Counter[str] = Counter()

    def count_product(node: Node) -> None:
        if _operator_name(node) in _PRODUCTS:
            kernel = _integer_kernel(node)
            (floating if kernel is None else integer)[kernel or _operator_name(node)] += 1

    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if _DELEGATE in str(node.target):
            delegation.delegates += 1
            module: Any = getattr(program, node.args[0].target)
            for inner in module.original_module.graph.nodes:
                if inner.op == "call_function" and _is_counted(inner):
                    delegation.delegated += 1
                    count_product(inner)
        elif _is_counted(node) and _operator_name(node) not in _FREE:
            outside[_operator_name(node)] += 1
            # ExecuTorch's own kernels compute products in float for any operands.
            if _operator_name(node) in _PRODUCTS:
                floating[_operator_name(node)] += 1
    delegation.outside, delegation.integer_products, delegation.float_products = (
        dict(sorted(counter.items())) for counter in (outside, integer, floating)
    )
    return delegation


def _operator_name(node: Node) -> str:
    """Return the name of a node's operator without namespace and overload, such as `linear`."""
    full: str = getattr(node.target, "__name__", str(node.target))
    parts = full.split(".")
    return parts[-2] if len(parts) > 1 else full


def _is_counted(node: Node) -> bool:
    # Python's builtins compute shapes, or select one of several outputs.
    return not isinstance(node.target, BuiltinFunctionType) and not _operator_name(node).startswith(_ROUNDING)


def _integer_kernel(node: Node) -> str | None:
    """Return the XNNPACK kernel for a product of dynamically quantized rows and packed codes; None for any other."""
    operands = [arg for arg in node.args if isinstance(arg, Node)]
    rows = [arg for arg in operands if _operator_name(arg) == "dequantize_per_token"]
    weights = [arg for arg in operands if _operator_name(arg) == "dequantize_per_channel"]
    if len(rows) != 1 or len(weights) != 1:
        return None
    low, high, dtype = weights[0].args[4:7]
    if dtype is not torch.int8:
        return None
    return {(-8, 7): "qd8-f32-qc4w", (-128, 127): "qd8-f32-qc8w"}.get((low, high))  # type: ignore[arg-type]
