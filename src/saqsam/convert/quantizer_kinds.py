"""The kinds of activation quantizers: how each is set from calibration, created for loading, and learned.

To add one, write its module in `quant`, subclass `QuantizerKind`, and list it in `QUANTIZER_KINDS` under the name that
slots use; exporters refuse kinds that they do not know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from saqsam.convert.plan import Slot, SlotKind
from saqsam.quant.affine import AffineQuantizer, DynamicQuantizer
from saqsam.quant.learned import LearnedAffineQuantizer
from saqsam.quant.logarithmic import GranularityObserver, LogQuantizer
from saqsam.quant.range_observers import ChannelHistogramObserver, HistogramObserver
from saqsam.quant.ranges import activation_parameters
from saqsam.quant.tables import TableQuantizer, table_levels
from saqsam.recipes.recipe import Recipe

Observer = HistogramObserver | ChannelHistogramObserver | GranularityObserver
Quantizer = AffineQuantizer | DynamicQuantizer | LogQuantizer | TableQuantizer


class QuantizerKind(ABC):
    """One kind of activation quantizer.

    Attributes:
        quantizer: Class of its quantizers.
        needs_observer: Whether its parameters are set from calibration.
        learned: Class that learns its scale during reconstruction, constructed from a quantizer; None if nothing is
            learned.
    """

    quantizer: ClassVar[type[Any]]
    needs_observer: ClassVar[bool] = True
    learned: ClassVar[type[LearnedAffineQuantizer] | None] = None

    @abstractmethod
    def from_observer(self, observer: Observer | None, slot: Slot, recipe: Recipe) -> Quantizer:
        """Return the quantizer that the recipe's rule finds for the values of an observer.

        Args:
            observer: Observer of the slot; None if the kind needs none.
            slot: The slot.
            recipe: Recipe of the run.

        Raises:
            ValueError: The observer has seen nothing, or values that are not finite.
        """

    @abstractmethod
    def empty(self, slot: Slot) -> Quantizer:
        """Return a quantizer with parameters to be loaded."""


class AffineKind(QuantizerKind):
    """Uniform quantization with one scale and zero point."""

    quantizer = AffineQuantizer
    learned = LearnedAffineQuantizer

    def from_observer(self, observer: Observer | None, slot: Slot, recipe: Recipe) -> AffineQuantizer:
        """Set the range by the recipe's rule, from the histogram of all channels."""
        if isinstance(observer, ChannelHistogramObserver):
            observer = observer.pooled()
        assert isinstance(observer, HistogramObserver)
        scale, zero_point = activation_parameters(
            observer,
            slot.bits,
            symmetric=recipe.activation_spec.symmetric,
            method=recipe.activation_spec.range,
            percentile=recipe.calibration.percentile,
            power=recipe.calibration.power,
        )
        return AffineQuantizer(slot.bits, scale, zero_point)

    def empty(self, slot: Slot) -> AffineQuantizer:
        """Return a quantizer without a range."""
        return AffineQuantizer.empty(slot.bits)


class LogKind(QuantizerKind):
    """Logarithmic quantization of probabilities with adaptive granularity (PTQ4SAM, arXiv 2405.03144)."""

    quantizer = LogQuantizer

    def from_observer(self, observer: Observer | None, slot: Slot, recipe: Recipe) -> LogQuantizer:
        """Return the quantizer of the granularity with the least error of the attention's output."""
        assert isinstance(observer, GranularityObserver)
        return observer.quantizer()

    def empty(self, slot: Slot) -> LogQuantizer:
        """Return a quantizer without scale and granularity."""
        return LogQuantizer.empty(slot.bits)


class DynamicKind(QuantizerKind):
    """Uniform quantization whose range is found at run time, row by row."""

    quantizer = DynamicQuantizer
    needs_observer = False

    def from_observer(self, observer: Observer | None, slot: Slot, recipe: Recipe) -> DynamicQuantizer:
        """Return the quantizer, which has no parameters."""
        return self.empty(slot)

    def empty(self, slot: Slot) -> DynamicQuantizer:
        """Return the quantizer, which has no parameters."""
        assert slot.channel_axis is not None
        return DynamicQuantizer(slot.bits, slot.channel_axis)


class TableKind(QuantizerKind):
    """Quantization to the levels of a table, of the form that the recipe gives activations after a GELU."""

    quantizer = TableQuantizer

    def from_observer(self, observer: Observer | None, slot: Slot, recipe: Recipe) -> TableQuantizer:
        """Return the quantizer with the levels of least squared error."""
        assert isinstance(observer, HistogramObserver)
        assert recipe.gelu != "uniform"
        return TableQuantizer(slot.bits, table_levels(observer, slot.bits, recipe.gelu))

    def empty(self, slot: Slot) -> TableQuantizer:
        """Return a quantizer without levels."""
        return TableQuantizer.empty(slot.bits)


QUANTIZER_KINDS: dict[SlotKind, QuantizerKind] = {
    "affine": AffineKind(),
    "log": LogKind(),
    "dynamic": DynamicKind(),
    "table": TableKind(),
}


def learned_form(quantizer: Any) -> LearnedAffineQuantizer | None:
    """Return the module that learns the scale of a quantizer, or None if its kind learns nothing."""
    for kind in QUANTIZER_KINDS.values():
        if kind.learned is not None and isinstance(quantizer, kind.quantizer):
            return kind.learned(quantizer)
    return None
