"""Terminal output of the commands: two consoles, results, messages and progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich import progress as rich_progress
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from saqsam.cli import reporting

# Without markup and emoji codes: paths and messages may hold [brackets] and :colons:.
out = Console(markup=False, emoji=False, highlight=False)
err = Console(markup=False, emoji=False, highlight=False, stderr=True)


def say(line: str) -> None:
    """Print one line of a result without wrapping, so that paths stay whole."""
    reporting.emit("result", note=line)
    out.print(Text(line), soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table of a result."""
    rows = zip(*(column.cells for column in table.columns), strict=True)
    headings = [str(column.header) for column in table.columns]
    reporting.emit("result", table=[headings, *([str(cell) for cell in row] for row in rows)])
    out.print(table)


def inform(line: str) -> None:
    """Print one line on how a command goes about its work, as part of its progress."""
    reporting.emit("info", note=line)
    if reporting.current().shows_progress:
        err.print(Text(line), soft_wrap=True)


def warn(message: str) -> None:
    """Print a warning in one line."""
    reporting.emit("warning", note=message)
    if reporting.current().shows_messages and reporting.current().is_first:
        print_message("note:", "yellow", message)


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


def print_message(label: str, style: str, message: str) -> None:
    """Print a message in one line on standard error, after a colored label."""
    err.print(Text.assemble((label, style), " ", " ".join(message.split())), soft_wrap=True)


@contextmanager
def starting() -> Iterator[None]:
    """Show a spinner while the library is imported, on a terminal alone."""
    is_shown = err.is_terminal and reporting.current().shows_progress
    with err.status(Text("starting")) if is_shown else nullcontext():
        yield


class Bars(rich_progress.Progress):
    """Progress bars on standard error."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            RunLeftColumn(),
            console=err,
            expand=True,
        )


class RunLeftColumn(rich_progress.ProgressColumn):
    """Time left in all, in the task field `run_left`."""

    def render(self, task: Task) -> Text:
        """Return the text of the field; empty for tasks without it."""
        return Text(task.fields.get("run_left", ""))


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Show progress bars while the block runs, on a terminal alone."""
    bars = Bars()
    if not err.is_terminal:
        yield bars
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
