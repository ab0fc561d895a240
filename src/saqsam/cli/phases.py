"""Phases of a command: their timing, and the progress callback that informs listeners of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from saqsam.cli.forecast import Estimate, Forecast

STAGE_UNITS = {
    "choosing prompts": "images",
    "balancing heads": "images",
    "equalizing channels": "images",
    "calibrating": "images",
    "activation ranges": "tensors",
    "clipping attentions": "attentions",
    "compensating": "layers",
    "embedding images": "images",
    "packing weights": "layers",
    "rounding weights": "layers",
    "measuring parts": "measurements",
    "measuring pairs": "pairs",
}
"""Unit of the steps of a stage of the quantization, where they are not learning steps."""


class Phase:
    """A part of a command whose progress is shown.

    Attributes:
        name: Display name.
        unit: Unit of its steps, in the plural.
        done: Number of finished steps.
        total: Total number of steps; None for work of unknown length.
        note: Remark about the last step.
        run_left: Estimated time left of this and the phases after it; None if there is no estimate.
    """

    def __init__(self, name: str, unit: str, done: int = 0, total: int | None = None) -> None:
        self.name, self.unit, self.done, self.total = name, unit, done, total
        self.note = ""
        self.run_left: Estimate | None = None
        self._start = time.monotonic()
        self._resumed = done  # finished by an earlier run
        self._first: tuple[int, float] | None = None

    def advance(self, done: int, total: int, note: str) -> None:
        """Record finished steps."""
        self.done, self.total, self.note = done, total, note
        if self._first is None and done > self._resumed:
            self._first = done, time.monotonic()

    def elapsed(self) -> float:
        """Return the seconds since the phase was announced."""
        return time.monotonic() - self._start

    def seconds_per_step(self) -> float | None:
        """Return the mean seconds of a step; None before the second report of finished steps.

        The steps of the first report are left out: their time includes the work that precedes all steps.
        """
        done, at = self._first or (self.done, self._start)
        return (time.monotonic() - at) / (self.done - done) if self.done > done else None

    def left(self) -> float | None:
        """Return the estimated seconds until the phase ends; None before the first finished step."""
        each = self.seconds_per_step()
        if each is None and self._first is not None:
            each = (self._first[1] - self._start) / (self._first[0] - self._resumed)
        return None if each is None or self.total is None else each * max(0, self.total - self.done)

    def total_text(self) -> str:
        """Return the total number of steps with its unit, such as `32 images`."""
        return f"{self.total} {self.unit.removesuffix('s') if self.total == 1 else self.unit}"


class PhaseListener(Protocol):
    """Interface of an object that shows the phases of a command."""

    def started(self, phase: Phase) -> None:
        """Show that a phase has started."""

    def advanced(self, phase: Phase) -> None:
        """Show that a step is done."""

    def ended(self, phase: Phase) -> None:
        """Show that a phase has ended."""


class Phases:
    """The phases of a command, one after the other: a progress callback that informs listeners.

    Args:
        listeners: Listeners.
        unit: Unit of the steps, in the plural, of phases that `STAGE_UNITS` does not list.
        forecast: Estimate of the time left in all, for commands that have one.
    """

    def __init__(
        self, listeners: Sequence[PhaseListener], unit: str = "steps", forecast: Forecast | None = None
    ) -> None:
        self._listeners, self._unit, self._forecast = listeners, unit, forecast
        self._open: Phase | None = None

    def __call__(self, name: str, done: int, total: int, note: str = "", /) -> None:
        """Take a report, see `saqsam.utils.progress.Progress`."""
        phase = self._open
        if phase is None or phase.name != name:
            self.begin(Phase(name, STAGE_UNITS.get(name, self._unit), done, total))
        else:
            phase.advance(done, total, note)
            if self._forecast is not None:
                phase.run_left = self._forecast.update(name, done, phase.seconds_per_step())
            for listener in self._listeners:
                listener.advanced(phase)
        if done >= total:
            self.end()

    def begin(self, phase: Phase) -> None:
        """Announce a phase; the one before it has ended."""
        self.end()
        self._open = phase
        if self._forecast is not None:
            self._forecast.begin(phase.name)
        for listener in self._listeners:
            listener.started(phase)

    def end(self) -> None:
        """End the phase that is still open, if any."""
        phase, self._open = self._open, None
        if phase is not None:
            for listener in self._listeners:
                listener.ended(phase)
