"""What of a lowered ExecuTorch program XNNPACK runs, and in which arithmetic its products are."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from types import BuiltinFunctionType
from typing import Any

import torch
from torch.fx import GraphModule, Node

_DELEGATE = "executorch_call_delegate"
_ROUNDING = ("choose_qparams", "quantize_per", "dequantize_per")
"""Operators that are part of the kernel beside them and not counted as nodes."""
_FREE = ("view_copy", "sym_size")
"""Outside of delegates: shapes and views, which copy nothing."""
_PRODUCTS = ("linear", "addmm", "mm", "bmm", "convolution")


@dataclass
class Delegation:
    """Nodes of a program, without those that round, which belong to the kernel beside them, and views.

    Attributes:
        delegates: Number of subgraphs that XNNPACK runs.
        delegated: Nodes in them.
        outside: Nodes that ExecuTorch's own kernels run, by operator.
        integer_products: Products of integers, by XNNPACK's name of the kernel.
        float_products: Products of floats, by operator.
    """

    delegates: int = 0
    delegated: int = 0
    outside: dict[str, int] = field(default_factory=dict)
    integer_products: dict[str, int] = field(default_factory=dict)
    float_products: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share of the nodes that XNNPACK runs."""
        return self.delegated / (self.delegated + sum(self.outside.values()))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the share among them."""
        return {**asdict(self), "share": self.share}


def inspect(program: GraphModule) -> Delegation:
    """Look into a program that has been lowered to XNNPACK."""
    found = Delegation()
    outside: Counter[str] = Counter()
    integer: Counter[str] = Counter()
    floating: Counter[str] = Counter()

    def count_product(node: Node) -> None:
        if _name(node) in _PRODUCTS:
            kernel = _kernel(node)
            (floating if kernel is None else integer)[kernel or _name(node)] += 1

    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if _DELEGATE in str(node.target):
            found.delegates += 1
            module: Any = getattr(program, node.args[0].target)
            for inner in module.original_module.graph.nodes:
                if inner.op == "call_function" and _counts(inner):
                    found.delegated += 1
                    count_product(inner)
        elif _counts(node) and _name(node) not in _FREE:
            outside[_name(node)] += 1
            if (
                _name(node) in _PRODUCTS
            ):  # whatever its operands are, ExecuTorch's own kernel is one for floats
                floating[_name(node)] += 1
    found.outside, found.integer_products, found.float_products = (
        dict(sorted(counter.items())) for counter in (outside, integer, floating)
    )
    return found


def _name(node: Node) -> str:
    """Of an operator without namespace and overload, such as `linear`."""
    full: str = getattr(node.target, "__name__", str(node.target))
    parts = full.split(".")
    return parts[-2] if len(parts) > 1 else full


def _counts(node: Node) -> bool:
    is_arithmetic_of_shapes = isinstance(
        node.target, BuiltinFunctionType
    )  # and taking an output out of several
    return not is_arithmetic_of_shapes and not _name(node).startswith(_ROUNDING)


def _kernel(node: Node) -> str | None:
    """XNNPACK's kernel for a delegated product of dynamically rounded rows and packed codes; None for another."""
    operands = [arg for arg in node.args if isinstance(arg, Node)]
    rows = [arg for arg in operands if _name(arg) == "dequantize_per_token"]
    weights = [arg for arg in operands if _name(arg) == "dequantize_per_channel"]
    if len(rows) != 1 or len(weights) != 1:
        return None
    low, high, dtype = weights[0].args[4:7]
    if dtype is not torch.int8:
        return None
    return {(-8, 7): "qd8-f32-qc4w", (-128, 127): "qd8-f32-qc8w"}.get((low, high))  # type: ignore[arg-type]
