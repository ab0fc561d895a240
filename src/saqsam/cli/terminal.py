"""Terminal output of the commands: two consoles, progress bars, and one-line error messages."""

from __future__ import annotations

import errno
import functools
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import ParamSpec

import typer
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

_P = ParamSpec("_P")

WRONG_USE = 2
"""Exit code for wrong use and unusable input, as typer exits for unknown options."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as in shells."""
TERMINATED = 143
"""Exit code after SIGTERM: 128 + SIGTERM."""
MAX_LINE = 2000
"""Longest error line, in characters; some lines name several paths."""

# Without markup and emoji codes: paths and messages may hold [brackets] and :colons:.
out = Console(markup=False, emoji=False, highlight=False)
err = Console(markup=False, emoji=False, highlight=False, stderr=True)


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread so that a command cleans up as after Ctrl-C."""


def guarded(command: Callable[_P, None]) -> Callable[_P, None]:
    """Report unusable input, interruptions and warnings of a command in one line each.

    Bugs keep their traceback.
    """

    @functools.wraps(command)
    def guard(*args: _P.args, **kwargs: _P.kwargs) -> None:
        with warnings.catch_warnings(), _raise_on_sigterm():
            # Only what concerns the user of a command: warnings for programmers are of other categories.
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", category=UserWarning)
            warnings.showwarning = lambda message, *_, **__: _print_line("note:", "yellow", str(message))
            try:
                command(*args, **kwargs)
            except KeyboardInterrupt as interrupt:
                err.print("; ".join(["interrupted", *_notes(interrupt)]), soft_wrap=True)
                raise typer.Exit(TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED) from None
            except Exception as error:
                message = _message(error)
                if message is None:
                    raise
                _print_line("error:", "red", "; ".join([message, *_notes(error)]))
                raise typer.Exit(WRONG_USE) from None

    return guard


@contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, before)  # a second one does not wait for the cleanup
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _message(error: Exception) -> str | None:
    """Return the message of an exception that input or the machine explains; None for a bug."""
    if isinstance(error, OSError) and error.strerror is not None:
        # File and reason, without the number.
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | OSError):
        return str(error)
    if isinstance(error, RecursionError):
        return "the input is nested too deeply"
    if _is_out_of_memory(error):
        return f"not enough memory: {error}"
    # safetensors and runtimes raise exceptions of their own for a full disk.
    return str(error) if os.strerror(errno.ENOSPC) in str(error) else None


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    # torch is not imported for this; its allocator on the CPU has no exception class.
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _print_line(label: str, style: str, message: str) -> None:
    text = " ".join(message.split())
    # The library shortens what comes from files; this is for messages of other packages.
    shown = text if len(text) <= MAX_LINE else f"{text[: MAX_LINE - 3]}..."
    err.print(Text.assemble((label, style), " ", shown), soft_wrap=True)


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
        """Log the start of a phase, now or when the monotonic clock said `start`, unless that was done."""
        if not err.is_terminal and name not in self._phases:
            one_or_more = unit.removesuffix("s") if total == 1 else unit
            self._phases[name] = _Phase(name, f"{total} {one_or_more}", start)

    def end_phase(self, name: str) -> None:
        """Log the end of a phase that has started."""
        if name in self._phases:
            self._phases[name].end()

    def end_phases(self) -> None:
        """Log the end of what is still going on, such as work that an earlier run had finished."""
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
        A progress callback for one phase, whatever the phase is called.
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
    "scaling inputs": "images",
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
