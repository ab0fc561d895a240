"""What the commands share on a terminal: two consoles, progress bars, one line for wrong use."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.table import Table
from rich.text import Text

_P = ParamSpec("_P")

WRONG_USE = 2
"""Exit code for wrong use and unusable input, the same that typer has for unknown options."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""

# Without markup and emoji codes: paths and messages may hold [brackets] and :colons:.
out = Console(markup=False, emoji=False, highlight=False)
err = Console(markup=False, emoji=False, highlight=False, stderr=True)


def guarded(command: Callable[_P, None]) -> Callable[_P, None]:
    """Make a command say in one line what was wrong with its input, and what the library warns of."""

    @functools.wraps(command)
    def guard(*args: _P.args, **kwargs: _P.kwargs) -> None:
        with warnings.catch_warnings():
            # Only what concerns the user of a command: warnings for programmers are of other categories.
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", category=UserWarning)
            warnings.showwarning = lambda message, *_, **__: _print_line("note:", "yellow", str(message))
            try:
                command(*args, **kwargs)
            except (ValueError, OSError) as error:
                _print_line("error:", "red", _message(error))
                raise typer.Exit(WRONG_USE) from None
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                _print_line("error:", "red", f"not enough memory: {error}")
                raise typer.Exit(WRONG_USE) from None
            except KeyboardInterrupt:
                err.print("interrupted")
                raise typer.Exit(INTERRUPTED) from None

    return guard


def _is_out_of_memory(error: Exception) -> bool:
    import torch  # not for help: a command that failed here has imported it

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error)  # torch's allocator on the CPU has no class for it


def _message(error: ValueError | OSError) -> str:
    """What an exception says; of the operating system's, file and reason without the number."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _print_line(label: str, style: str, message: str) -> None:
    err.print(Text.assemble((label, style), " ", " ".join(message.split())), soft_wrap=True)


def say(line: str) -> None:
    """Print one line of a result, however long: paths stay whole."""
    out.print(Text(line), soft_wrap=True)


def result_table(*columns: str, right: int = 0) -> Table:
    """A table narrow enough for 80 characters.

    Args:
        columns: Headings; a table whose headings are all empty shows none.
        right: How many columns, counted from the last, are aligned to the right.
    """
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, show_header=any(columns)
    )
    for index, column in enumerate(columns):
        is_right = index >= len(columns) - right
        table.add_column(column, justify="right" if is_right else "left", overflow="fold", no_wrap=is_right)
    return table


def busy(what: str) -> Status:
    """A context with a spinner, for work of unknown length."""
    return err.status(Text(what))


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars on standard error while the block runs; elsewhere than on a terminal, their last state."""
    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=err, expand=True)
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


def bar(bars: Progress, description: str) -> Callable[[int, int], None]:
    """A new bar, as a function of steps done and steps in all."""
    task = bars.add_task(description, total=None)
    return lambda done, total: bars.update(task, completed=done, total=total)


def stage_bars(bars: Progress) -> Callable[[str, int, int, str], None]:
    """A bar for each stage, as a function of stage, steps done, steps in all, and a note such as its loss.

    Until the first stage reports, and from the end of each on, a bar of unknown length shows that work goes on;
    it becomes that of the next stage, whose time counts from there.
    """
    known: dict[str, TaskID] = {}
    waiting = [bars.add_task("...", total=None)]

    def update(stage: str, done: int, total: int, note: str) -> None:
        if stage not in known:
            known[stage] = waiting.pop() if waiting else bars.add_task(stage)
        description = f"{stage}, {note}" if note else stage
        bars.update(known[stage], description=description, completed=done, total=total)
        if done == total and not waiting:
            waiting.append(bars.add_task("...", total=None))

    return update
