"""One-line messages and exit codes for errors, interruptions and warnings of commands."""

from __future__ import annotations

import errno
import functools
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

import typer
from rich.text import Text

from saqsam.cli.terminal import err

_P = ParamSpec("_P")

WRONG_USE = 2
"""Exit code for wrong use and unusable input, as typer exits for unknown options."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as in shells."""
TERMINATED = 143
"""Exit code after SIGTERM: 128 + SIGTERM."""
MAX_LINE = 2000
"""Longest error line, in characters; some lines name several paths."""


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
