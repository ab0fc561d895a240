"""The log of a bit allocation, as plain data that a checkpoint's `quantization.json` keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from saqsam.models.parts import PAPER_PARTS
from saqsam.utils.plain_fields import PlainFields, is_count, is_fraction, is_number


@dataclass(frozen=True)
class FrontierPoint:
    """The best allocation at one amount of mean bits.

    Attributes:
        mean_bits: Mean bits of the operands of quantized multiply-accumulates.
        bytes: Size of `model.safetensors`.
        loss: Predicted mean 1 - IoU with the float model's masks, before compensation and learning.
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
    """Measurements and result of a bit allocation. Losses are means of 1 - IoU with the float model's masks.

    Attributes:
        mean_bits: Mean bits of the operands of quantized multiply-accumulates.
        mean_weight_bits: Mean bits of the weights that are stored as codes.
        mean_activation_bits: Mean bits of activations over quantized multiply-accumulates.
        bytes: Size of `model.safetensors`.
        predicted_loss: Predicted loss before compensation and learning.
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
    known = PlainFields(values, AllocationLog)
    frontier, errors = (
        known.get(name, lambda entries: isinstance(entries, list)) for name in ("frontier", "errors")
    )
    numbers = {
        field.name: known.get(field.name, _is_amount)
        for field in fields(AllocationLog)
        if field.name not in ("frontier", "errors")
    }
    return AllocationLog(
        **numbers, frontier=tuple(map(_read_point, frontier)), errors=tuple(map(_read_error, errors))
    )


def _read_point(values: Any) -> FrontierPoint:
    known = PlainFields(values, FrontierPoint)
    return FrontierPoint(*(known.get(name, _is_amount) for name in ("mean_bits", "bytes", "loss")))


def _read_error(values: Any) -> OperandError:
    known = PlainFields(values, OperandError)
    return OperandError(
        known.get("part", lambda part: part in PAPER_PARTS),
        known.get("kind", lambda kind: kind in ("weights", "activations")),
        known.get("bits", is_count),
        known.get("loss", is_fraction),
    )


def _is_amount(value: Any) -> bool:
    return is_number(value) and value >= 0
