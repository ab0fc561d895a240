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

from saqsam.cli import reporting
from saqsam.cli.terminal import err, print_message, warn
from saqsam.utils.errors import PeerError

_P = ParamSpec("_P")

BUG = 1
"""Exit code of Python for an exception that nothing catches."""
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
    """Report unusable input, interruptions and warnings of a command in one line each, and in its log of events.

    Bugs keep their traceback.
    """

    @functools.wraps(command)
    def guard(*args: _P.args, **kwargs: _P.kwargs) -> None:
        with reporting.reporting(), warnings.catch_warnings(), _raise_on_sigterm():
            # Only what concerns the user of a command: warnings for programmers are of other categories.
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", category=UserWarning)
            warnings.showwarning = lambda message, *_, **__: warn(_shortened(str(message)))
            exit_code = BUG
            try:
                command(*args, **kwargs)
                exit_code = 0
            except KeyboardInterrupt as interrupt:
                exit_code = TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
                message = "; ".join(["interrupted", *_notes(interrupt)])
                reporting.emit("error", note=message)
                if reporting.current().shows_messages and reporting.current().is_first:
                    err.print(message, soft_wrap=True)
                raise typer.Exit(exit_code) from None
            except Exception as error:
                explained = _message(error)
                message = "; ".join([explained or repr(error), *_notes(error)])
                reporting.emit("error", note=_shortened(message))
                if explained is None:
                    raise
                exit_code = WRONG_USE
                if reporting.current().shows_error(error):
                    print_message("error:", "red", _shortened(message))
                raise typer.Exit(exit_code) from None
            finally:
                elapsed = round(reporting.current().elapsed(), 3)
                reporting.emit("end", exit_code=exit_code, elapsed_s=elapsed)

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
    if isinstance(error, ValueError | OSError | PeerError):
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


def _shortened(message: str) -> str:
    """Return a message in one line of at most `MAX_LINE` characters."""
    text = " ".join(message.split())
    # The library shortens what comes from files; this is for messages of other packages.
    return text if len(text) <= MAX_LINE else f"{text[: MAX_LINE - 3]}..."
