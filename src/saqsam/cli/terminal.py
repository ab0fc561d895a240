"""Terminal output of the commands: two consoles, result tables and progress bars."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich import progress as rich_progress
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from saqsam.utils.progress import Progress

# Without markup and emoji codes: paths and messages may hold [brackets] and :colons:.
out = Console(markup=False, emoji=False, highlight=False)
err = Console(markup=False, emoji=False, highlight=False, stderr=True)


def say(line: str) -> None:
    """Print one line of a result without wrapping, so that paths stay whole."""
    out.print(Text(line), soft_wrap=True)


def result_table(*columns: str, right: int = 0) -> Table:
    """Create a table that is narrow enough for 80 characters.

    Args:
        columns: Headings; not shown if all are empty.
        right: Number of right-aligned columns, counted from the last.
    """
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, show_header=any(columns)
    )
    for index, column in enumerate(columns):
        is_right = index >= len(columns) - right
        table.add_column(column, justify="right" if is_right else "left", overflow="fold", no_wrap=is_right)
    return table


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show a spinner while the block runs, for work of unknown length; in a log, print a line before and after it."""
    if err.is_terminal:
        with err.status(Text(what)):
            yield
        return
    phase = _Phase(what)
    yield
    phase.end()


@contextmanager
def starting() -> Iterator[None]:
    """Show a spinner while the library is imported, on a terminal alone."""
    with err.status(Text("starting")) if err.is_terminal else nullcontext():
        yield


class _Phase:
    """A phase of a command in a log: one line at its start, one at its end."""

    def __init__(self, name: str, count: str = "", start: float | None = None) -> None:
        self.name, self._count = name, count
        self._start = time.monotonic() if start is None else start
        self._has_ended = False
        _log(f"{name}: {count}" if count else f"{name} ...")

    def end(self) -> None:
        """Print the time it took, once."""
        if not self._has_ended:
            self._has_ended = True
            seconds = time.monotonic() - self._start
            _log(f"{self.name}: {f'{self._count} in' if self._count else 'done in'} {_seconds(seconds)}")


def _log(line: str) -> None:
    err.print(Text(line), soft_wrap=True)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


class Bars(rich_progress.Progress):
    """Progress bars on a terminal; in a log, a line at the start and the end of each phase."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=err,
            expand=True,
        )
        self._phases: dict[str, _Phase] = {}

    def begin_phase(self, name: str, total: int, unit: str, start: float | None = None) -> None:
        """Log the start of a phase, once; `start` is its time on the monotonic clock, by default now."""
        if not err.is_terminal and name not in self._phases:
            one_or_more = unit.removesuffix("s") if total == 1 else unit
            self._phases[name] = _Phase(name, f"{total} {one_or_more}", start)

    def end_phase(self, name: str) -> None:
        """Log the end of a phase that has started."""
        if name in self._phases:
            self._phases[name].end()

    def end_phases(self) -> None:
        """Log the end of all phases still open, such as work that an earlier run had finished."""
        for phase in self._phases.values():
            phase.end()


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Show progress on standard error while the block runs."""
    bars = Bars()
    if not err.is_terminal:
        yield bars
        bars.end_phases()
        return
    bars.start()
    try:
        yield bars
    finally:
        for task in bars.tasks:
            bars.update(task.id, visible=task.total is not None)
        if any(task.visible for task in bars.tasks):
            bars.stop()
        else:  # the last state of no bar would be an empty line
            bars.live.transient = True
            bars.live.stop()


def bar(bars: Bars, description: str, total: int, unit: str = "images") -> Progress:
    """Add a progress bar.

    Args:
        bars: Bars to add it to.
        description: Name of the phase.
        total: Number of steps, as far as it is known in advance.
        unit: Unit of the steps, in the plural.

    Returns:
        A progress callback for this one phase, whatever name it reports.
    """
    task = bars.add_task(description, total=None)
    bars.begin_phase(description, total, unit)

    def update(phase: str, done: int, total: int, note: str = "", /) -> None:
        bars.update(task, completed=done, total=total)
        if done == total:
            bars.end_phase(description)

    return update


STAGE_UNITS = {
    "choosing prompts": "images",
    "equalizing channels": "images",
    "calibrating": "images",
    "activation ranges": "tensors",
    "clipping attentions": "attentions",
    "packing weights": "layers",
}
"""Unit of the steps of a stage, where they are not learning steps."""


def stage_bars(bars: Bars) -> Progress:
    """Return a progress callback that shows a bar for each phase.

    Until the first phase reports, and after the end of each phase, a bar of unknown length shows that work goes on; it
    becomes the bar of the next phase, whose time counts from there.
    """
    known: dict[str, TaskID] = {}
    since = time.monotonic()  # a stage reports when its first step is done
    waiting = [bars.add_task("...", total=None)]

    def update(stage: str, done: int, total: int, note: str = "", /) -> None:
        nonlocal since
        if stage not in known:
            known[stage] = waiting.pop() if waiting else bars.add_task(stage)
            bars.begin_phase(stage, total, STAGE_UNITS.get(stage, "steps"), since)
        description = f"{stage}, {note}" if note else stage
        bars.update(known[stage], description=description, completed=done, total=total)
        if done == total:
            bars.end_phase(stage)
            since = time.monotonic()
            if not waiting:
                waiting.append(bars.add_task("...", total=None))

    return update
