"""The log of a bit allocation, as plain data that a checkpoint's `quantization.json` keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from saqsam.models.parts import PAPER_PARTS
from saqsam.utils.errors import shorten


@dataclass(frozen=True)
class FrontierPoint:
    """The best allocation at one amount of mean bits.

    Attributes:
        mean_bits: Mean bits of the operands of quantized multiply-accumulates.
        bytes: Size of `model.safetensors`.
        loss: Predicted mean 1 - IoU with the float model's masks, without learning.
    """

    mean_bits: float
    bytes: int
    loss: float


@dataclass(frozen=True)
class OperandError:
    """The error of one operand rounded alone.

    Attributes:
        part: Name of the part.
        kind: `weights` or `activations`.
        bits: Bits.
        loss: Mean 1 - IoU with the float model's masks.
    """

    part: str
    kind: str
    bits: int
    loss: float


@dataclass(frozen=True)
class AllocationLog:
    """What a bit allocation measured and reached. Losses are means of 1 - IoU with the float model's masks.

    Attributes:
        mean_bits: Mean bits of the operands of quantized multiply-accumulates.
        mean_weight_bits: Mean bits of the weights that are stored as codes.
        mean_activation_bits: Mean bits of activations over quantized multiply-accumulates.
        bytes: Size of `model.safetensors`.
        predicted_loss: Predicted loss without learning.
        measured_loss: The same, measured on the images of the allocation.
        images: Number of images that losses were measured on.
        frontier: The best allocations, from few bits to many.
        errors: Measured loss of each operand alone.
    """

    mean_bits: float
    mean_weight_bits: float
    mean_activation_bits: float
    bytes: int
    predicted_loss: float
    measured_loss: float
    images: int
    frontier: tuple[FrontierPoint, ...]
    errors: tuple[OperandError, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def read_allocation(values: Any) -> AllocationLog:
    """Read the log of an allocation from plain JSON values, which may come from a folder that somebody else wrote.

    Raises:
        ValueError: The values are not those of an `AllocationLog`.
    """
    known = dict(_fields(values, AllocationLog))
    for name, entry in (("frontier", FrontierPoint), ("errors", OperandError)):
        if not isinstance(known[name], list | tuple):
            raise ValueError(f"AllocationLog: {name} cannot be {shorten(known[name])}")
        known[name] = tuple(entry(**_fields(one, entry)) for one in known[name])
    return AllocationLog(**known)


def _fields(values: Any, of: type[Any]) -> Mapping[str, Any]:
    """Return the fields of a dataclass from untrusted values; numbers are finite and at least 0."""
    names = {field.name for field in fields(of)}
    if not isinstance(values, Mapping) or values.keys() != names:
        raise ValueError(f"{of.__name__}: expected {', '.join(sorted(names))}, got {shorten(values)}")
    for name, value in values.items():
        if name in ("frontier", "errors"):
            continue
        if name == "part":
            is_valid = value in PAPER_PARTS
        elif name == "kind":
            is_valid = value in ("weights", "activations")
        else:
            is_valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15
        if not is_valid:
            raise ValueError(f"{of.__name__}: {name} cannot be {shorten(value)}")
    return values
