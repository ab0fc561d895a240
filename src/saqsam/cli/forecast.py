"""Estimate of the time that reconstruction takes, from measured steps and the relative costs of the units."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from saqsam.cli.durations import estimate_text
from saqsam.ptq.unit_costs import UnitCost


@dataclass(frozen=True)
class Estimate:
    """Estimated time left.

    Attributes:
        seconds: Seconds.
        units: Number of units that are not finished, at least two.
    """

    seconds: float
    units: int

    def text(self) -> str:
        """Return such as `about 3 min left for 9 units`."""
        return f"{estimate_text(self.seconds)} left for {self.units} units"


class Forecast:
    """Time left of a reconstruction.

    Steps and captures have a speed each: seconds per unit of cost, measured on this run so far. Units that an earlier
    run has finished are restored without a report, so they change neither.

    Args:
        units: Costs of all units in their order; the names of their phases start with their number.
    """

    def __init__(self, units: Sequence[UnitCost]) -> None:
        self._units = {unit.phase: unit for unit in units}
        self._order = list(self._units)
        self._started: float | None = None
        self._learned: dict[str, tuple[int, float]] = {}
        """Finished steps and their seconds, by phase."""
        self._captured: list[str] = []
        """Phases whose inputs have been captured."""

    def begin(self, phase: str) -> None:
        """Note the start of a phase."""
        if phase in self._units and self._started is None:
            self._started = time.monotonic()

    def update(self, phase: str, done: int, seconds_per_step: float | None) -> Estimate | None:
        """Return the time left after a step of a phase; None if it is no unit or the last one, or not yet known.

        Args:
            phase: Name of the phase.
            done: Number of its finished steps.
            seconds_per_step: Measured seconds of one of its steps, without the work before them; None if not yet known.
        """
        if phase not in self._units or self._started is None or seconds_per_step is None:
            return None
        self._learned[phase] = done, done * seconds_per_step
        if phase not in self._captured:
            self._captured.append(phase)
        learned = sum(seconds for _, seconds in self._learned.values())
        captured = max(0.0, time.monotonic() - self._started - learned)
        speed = learned / sum(count * self._units[name].step for name, (count, _) in self._learned.items())
        capture_speed = captured / sum(self._units[name].capture for name in self._captured)
        unit, later = (
            self._units[phase],
            [self._units[n] for n in self._order[self._order.index(phase) + 1 :]],
        )
        left = seconds_per_step * max(0, unit.steps - done)
        left += sum(speed * other.step * other.steps + capture_speed * other.capture for other in later)
        return Estimate(left, len(later) + 1) if later else None  # the time left of the phase says it all
