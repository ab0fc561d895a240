"""The log of a quantization: what was clipped, how learning went, and which calibration data was used.

Reading a log back from JSON is strict: it may come from a folder that somebody else has written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saqsam.utils.plain_fields import PlainFields, is_count, is_fraction, is_list, is_number, is_text


@dataclass(frozen=True)
class Clip:
    """The range chosen for one tensor.

    Attributes:
        slot: Name of the slot within the attention.
        quantile: Quantile p of the range [q(1 - p), q(p)], or None where the calibrated range was kept.
        low: Lower end of the range.
        high: Upper end of the range.
    """

    slot: str
    quantile: float | None
    low: float
    high: float


@dataclass(frozen=True)
class AttentionClipping:
    """The ranges chosen for one attention of the decoder.

    Attributes:
        name: Module name of the attention.
        clips: The static ranges, four at most, in the order of the search.
        before: Focus deviation with the calibrated ranges.
        after: Focus deviation with the chosen ranges.
    """

    name: str
    clips: tuple[Clip, ...]
    before: float
    after: float


@dataclass
class UnitLog:
    """The loss curve of one unit, and the outcome of its rounding.

    Attributes:
        unit: Name of the unit.
        steps: Steps at which the loss was logged.
        losses: Mean reconstruction loss of the steps since the previous entry.
        moved: Fraction of the weights whose learned rounding differs from round-to-nearest.
    """

    unit: str
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    moved: float = 0.0


@dataclass
class QuantizationLog:
    """The log of `saqsam.quantize`.

    Attributes:
        signs: Number of query and key channels that changed sign, by attention (bimodal integration).
        clipping: Ranges chosen for each attention of the decoder (perceptual-consistency clipping).
        units: Loss curve of each unit (reconstruction).
        skipped: Number of skipped calibration images and objects, by reason.
        notes: Number of accepted peculiarities of the calibration data, by description.
        images: Number of calibration images.
        prompts: Number of box prompts on them.
    """

    signs: dict[str, int] = field(default_factory=dict)
    clipping: list[AttentionClipping] = field(default_factory=list)
    units: list[UnitLog] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    images: int = 0
    prompts: int = 0


def read_unit_log(values: Mapping[str, Any]) -> UnitLog:
    """Read the log of a unit from plain JSON values.

    Raises:
        ValueError: The values are not those of a `UnitLog`.
    """
    fields = PlainFields(values, UnitLog)
    log = UnitLog(
        fields.get("unit", is_text),
        fields.get("steps", lambda value: is_list(value, is_count)),
        fields.get("losses", lambda value: is_list(value, is_number)),
        fields.get("moved", is_fraction),
    )
    if len(log.steps) != len(log.losses):
        raise ValueError(f"expected a loss for each of {len(log.steps)} steps, got {len(log.losses)}")
    return log


def read_clipping(values: Any) -> AttentionClipping:
    """Read the clipping of an attention from plain JSON values.

    Raises:
        ValueError: The values are not those of an `AttentionClipping`.
    """
    fields = PlainFields(values, AttentionClipping)
    clips = fields.get("clips", lambda value: isinstance(value, list))
    return AttentionClipping(
        fields.get("name", is_text),
        tuple(_read_clip(clip) for clip in clips),
        fields.get("before", is_number),
        fields.get("after", is_number),
    )


def _read_clip(values: Any) -> Clip:
    fields = PlainFields(values, Clip)
    return Clip(
        fields.get("slot", is_text),
        fields.get("quantile", lambda value: value is None or is_fraction(value)),
        fields.get("low", is_number),
        fields.get("high", is_number),
    )
