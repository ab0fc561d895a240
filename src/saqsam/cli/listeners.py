"""Listeners that show the phases of a command as plain lines, as events of a log, or as bars on a terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import TaskID
from rich.text import Text

from saqsam.cli import reporting
from saqsam.cli.durations import duration_text
from saqsam.cli.phases import Phase
from saqsam.cli.terminal import Bars, err

LINE_INTERVAL = 10.0
"""Least seconds between two lines of a phase."""
EVENT_INTERVAL = 1.0
"""Least seconds between two progress events of a phase."""


class LineListener:
    """Plain lines on standard error: at the start and the end of a phase, and at intervals in between."""

    def __init__(self) -> None:
        self._last = 0.0
        self._has_estimate = False

    def started(self, phase: Phase) -> None:
        """Print name and number of steps."""
        before = f", {phase.done} of them finished before" if phase.done else ""
        self._print(
            f"{phase.name} ..." if phase.total is None else f"{phase.name}: {phase.total_text()}{before}"
        )

    def advanced(self, phase: Phase) -> None:
        """Print steps, elapsed time and time left, after an interval or with the first estimate of the whole."""
        is_first_estimate = phase.run_left is not None and not self._has_estimate
        if phase.done == phase.total or (
            time.monotonic() - self._last < LINE_INTERVAL and not is_first_estimate
        ):
            return
        self._has_estimate |= is_first_estimate
        parts = [f"{phase.name}: {phase.done} of {phase.total_text()}", duration_text(phase.elapsed())]
        left = phase.left()
        if left is not None:
            parts.append(f"{duration_text(left)} left")
        if phase.note:
            parts.append(phase.note)
        if phase.run_left is not None:
            parts.append(f"{phase.run_left.text()} (estimated)")
        self._print(", ".join(parts))

    def ended(self, phase: Phase) -> None:
        """Print the time that it took."""
        ended_early = f"{phase.done} of " if phase.total and phase.done < phase.total else ""
        what = "done" if phase.total is None else f"{ended_early}{phase.total_text()}"
        self._print(f"{phase.name}: {what} in {duration_text(phase.elapsed())}")

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        err.print(Text(line), soft_wrap=True)
        err.file.flush()


class EventListener:
    """Events in the log of the command."""

    def __init__(self) -> None:
        self._last = 0.0

    def started(self, phase: Phase) -> None:
        """Log the start."""
        self._emit("phase_start", phase)

    def advanced(self, phase: Phase) -> None:
        """Log the progress, unless it was logged shortly before."""
        if time.monotonic() - self._last >= EVENT_INTERVAL:
            self._emit("progress", phase, left_s=_rounded(phase.left()), **_estimate(phase))

    def ended(self, phase: Phase) -> None:
        """Log the end."""
        self._emit("phase_end", phase)

    def _emit(self, event: str, phase: Phase, **more: Any) -> None:
        self._last = time.monotonic()
        fields = {"phase": phase.name, "done": phase.done, "total": phase.total, "unit": phase.unit}
        note = {"note": phase.note} if phase.note else {}
        reporting.emit(event, **fields, elapsed_s=_rounded(phase.elapsed()), **more, **note)


def _estimate(phase: Phase) -> dict[str, float]:
    return {} if phase.run_left is None else {"run_left_s": round(phase.run_left.seconds, 3)}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


class BarListener:
    """Progress bars on a terminal.

    Before the first phase and between two phases, a bar of unknown length shows that work goes on; it becomes the bar
    of the next phase.

    Args:
        bars: Bars to add to.
        has_gaps: Whether there is work before, between and after the phases.
    """

    def __init__(self, bars: Bars, *, has_gaps: bool) -> None:
        self._bars, self._has_gaps = bars, has_gaps
        self._waiting: list[TaskID] = []
        self._wait()

    def started(self, phase: Phase) -> None:
        """Show an empty bar."""
        self._task = self._waiting.pop() if self._waiting else self._bars.add_task(phase.name, total=None)
        self._bars.reset(self._task, description=phase.name, completed=phase.done, total=phase.total)

    def advanced(self, phase: Phase) -> None:
        """Move the bar."""
        description = f"{phase.name}, {phase.note}" if phase.note else phase.name
        run_left = "" if phase.run_left is None else f"({phase.run_left.text()})"
        self._bars.update(
            self._task, description=description, completed=phase.done, total=phase.total, run_left=run_left
        )

    def ended(self, phase: Phase) -> None:
        """Fill the bar, even if the phase ended early."""
        steps = max(1, phase.done)  # a bar of no step would pulse for ever
        self._bars.update(self._task, total=steps, completed=steps, run_left="")
        self._wait()

    def _wait(self) -> None:
        if self._has_gaps:
            self._waiting.append(self._bars.add_task("...", total=None))
