"""State of the running command's reports: whether it shows progress, and its log of events (`--log-json`)."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saqsam.utils.errors import PeerError

STANDARD_ERROR = "-"
"""Name for standard error in `--log-json`."""


class EventLog:
    """Log of events with one JSON object per line, each written at once.

    If it can no longer be written, as on a full disk, the command goes on without it.

    Args:
        target: File to append to, or `-` for standard error.
        complain: Function that shows a message about a log that has ended early.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, target: str, complain: Callable[[str], None]) -> None:
        self.is_standard_error = target == STANDARD_ERROR
        self._target, self._complain = target, complain
        # Unbuffered and in append mode: a line is in the file when `write` returns, and an old log is kept.
        self._file = None if self.is_standard_error else Path(target).open("ab", buffering=0)  # noqa: SIM115
        self._has_failed = False

    def write(self, event: str, fields: dict[str, Any]) -> None:
        """Append an event with the current time; fields are those of the documentation."""
        if self._has_failed:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": now, "event": event, **fields}, allow_nan=False) + "\n"
        try:
            self._append(line)
        except OSError as error:
            self._has_failed = True
            self._complain(f"--log-json {self._target}: {error.strerror}; the log ends here")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _append(self, line: str) -> None:
        if self._file is None:
            sys.stderr.write(line)
            sys.stderr.flush()
            return
        rest = line.encode()
        while rest:  # a full disk takes a part of a line before it raises
            rest = rest[self._file.write(rest) or 0 :]


def _launched_rank() -> int:
    """Return the rank that `torchrun` assigned, as `saqsam.utils.ranks.launched_rank` does, but without torch."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


@dataclass
class Reporting:
    """Settings of the running command's reports.

    Attributes:
        quiet: Whether progress is hidden.
        is_first: Whether this is not one of the further processes that torchrun starts, which show errors alone.
        errors_may_differ: Whether errors of the further processes may differ from those of the first, so that they are
            shown, too. Until a command opens its inputs, all processes check the same options.
        log: Log of events; None for none.
        started: Start of the command on the monotonic clock.
    """

    quiet: bool = False
    is_first: bool = field(default_factory=lambda: _launched_rank() == 0)
    errors_may_differ: bool = False
    log: EventLog | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def shows_messages(self) -> bool:
        """Whether messages are shown as text: not if standard error takes the log of events."""
        return self.log is None or not self.log.is_standard_error

    @property
    def shows_progress(self) -> bool:
        """Whether progress is shown as bars or lines."""
        return self.shows_messages and self.is_first and not self.quiet

    def shows_error(self, error: Exception) -> bool:
        """Return whether an error is shown as text by this process, rather than by the first one alone."""
        is_own = self.errors_may_differ and not isinstance(error, PeerError)
        return self.shows_messages and (self.is_first or is_own)

    def elapsed(self) -> float:
        """Return the seconds since the command started."""
        return time.monotonic() - self.started


_current = Reporting()


def current() -> Reporting:
    """Return the reporting of the running command; the default outside of commands."""
    return _current


def emit(event: str, **fields: Any) -> None:
    """Append an event to the log, if there is one."""
    if _current.log is not None:
        _current.log.write(event, fields)


@contextmanager
def reporting() -> Iterator[Reporting]:
    """Report with default settings, which the block may change, while the block runs; the log is closed at its end."""
    global _current
    before = _current
    _current = Reporting()
    try:
        yield _current
    finally:
        if _current.log is not None:
            _current.log.close()
        _current = before
