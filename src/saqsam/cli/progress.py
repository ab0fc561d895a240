"""Progress of a command on standard error and in its log of events, while a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.text import Text

from saqsam.cli import reporting
from saqsam.cli.forecast import Forecast
from saqsam.cli.listeners import BarListener, EventListener, LineListener
from saqsam.cli.phases import Phase, PhaseListener, Phases
from saqsam.cli.terminal import err, progress_bars


@contextmanager
def progress_phases(
    unit: str = "steps", *, has_gaps: bool = False, forecast: Forecast | None = None
) -> Iterator[Phases]:
    """Show the phases that the block reports: as bars, or as lines where standard error is no terminal.

    Args:
        unit: Unit of the steps, in the plural, of phases that `STAGE_UNITS` does not list.
        has_gaps: Whether the block also works before, between and after the phases.
        forecast: Estimate of the time left in all.

    Yields:
        A progress callback.
    """
    listeners: list[PhaseListener] = [EventListener()]
    with ExitStack() as stack:
        if reporting.current().shows_progress:
            if err.is_terminal:
                listeners.append(BarListener(stack.enter_context(progress_bars()), has_gaps=has_gaps))
            else:
                listeners.append(LineListener())
        phases = Phases(listeners, unit, forecast)
        yield phases
        phases.end()


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show a spinner while the block runs, for work of unknown length; in a log, a line before and after it."""
    listeners: list[PhaseListener] = [EventListener()]
    with ExitStack() as stack:
        if reporting.current().shows_progress:
            if err.is_terminal:
                stack.enter_context(err.status(Text(what)))
            else:
                listeners.append(LineListener())
        phases = Phases(listeners)
        phases.begin(Phase(what, ""))
        yield
        phases.end()
