"""The `Budget` of a bit allocation, and how it is written: `4.2b`, `w3.5b,a4.3b`, `6MB`, `loss=0.01`."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from saqsam.quant.affine import MAX_BITS, MIN_BITS
from saqsam.utils.sizes import parse_size

_FIELDS = {"": "bits", "w": "weight_bits", "a": "activation_bits"}


@dataclass(frozen=True)
class Budget:
    """Limits of a bit allocation. At least one is set; all that are set hold.

    Attributes:
        bits: Most mean bits of the operands of all quantized multiply-accumulates.
        weight_bits: Most mean bits of all weights that are stored as codes.
        activation_bits: Most mean bits of activations, over all quantized multiply-accumulates.
        bytes: Most bytes of the checkpoint's `model.safetensors`.
        loss: Largest mean Jaccard distance, 1 - IoU, between the float model's masks and those of the quantized
            model. The Jaccard distance is a metric, so that the mean IoU with any annotation falls by no more.
    """

    bits: float | None = None
    weight_bits: float | None = None
    activation_bits: float | None = None
    bytes: int | None = None
    loss: float | None = None

    def __post_init__(self) -> None:
        for name in ("bits", "weight_bits", "activation_bits"):
            value = getattr(self, name)
            if value is not None and not MIN_BITS <= value <= MAX_BITS:
                raise ValueError(f"budget: mean bits must lie in {MIN_BITS} to {MAX_BITS}, got {value:g}")
        if self.bytes is not None and self.bytes < 1:
            raise ValueError(f"budget: a size must be at least one byte, got {self.bytes}")
        if self.loss is not None and not 0 < self.loss < 1:
            raise ValueError(f"budget: loss must lie between 0 and 1, got {self.loss:g}")
        if all(value is None for value in dataclasses.astuple(self)):
            raise ValueError("budget: expected at least one limit")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Return the budget of a text.

        Args:
            text: Limits separated by commas: `4.2b` (mean bits of the operands of multiply-accumulates), `w3.5b`
                (of weights), `a4.3b` (of activations), `6MB` or `6MiB` (size of the checkpoint's tensors on disk),
                `loss=0.01` (mean 1 - IoU with the float model's masks).

        Raises:
            ValueError: The text has another form, repeats a limit, or a limit lies outside its range.
        """
        limits: dict[str, float] = {}
        for part in text.split(","):
            name, value = _limit(part.strip())
            if name in limits:
                raise ValueError(f"budget: {text!r} limits {name.replace('_', ' ')} twice")
            limits[name] = value
        return cls(**limits)  # type: ignore[arg-type]


def _limit(text: str) -> tuple[str, float]:
    """Return the field and the value of one limit."""
    if match := re.fullmatch(r"loss=(\d*\.?\d+)", text, re.IGNORECASE):
        return "loss", float(match[1])
    if match := re.fullmatch(r"([wa]?)(\d+(?:\.\d+)?)b", text):
        return _FIELDS[match[1]], float(match[2])
    if re.fullmatch(r"\d+(?:\.\d+)?\s*[kmgt]i?b", text, re.IGNORECASE):
        return "bytes", parse_size(text)
    raise ValueError(
        f"budget must look like 4.2b (mean bits), w3.5b (of weights), a4.3b (of activations), 6MB or loss=0.01, got "
        f"{text!r}"
    )
