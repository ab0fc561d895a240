"""What a process had in hand when it died, so that an image that kills it every time is set aside."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_DEATHS = 3
"""Deaths with an image in hand after which the image is set aside."""

_BEGIN = "begin"


class Attempts:
    """Journal of one part: a line when an image is begun, and one when it is done.

    Only a killed process leaves images begun and not done: an exception, such as that of Ctrl-C, closes the journal.
    The images of a dead process are suspects. The one that kills is in hand at every death.

    Args:
        path: The journal. It is removed with the part's last image, and kept for the next attempt otherwise.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._deaths = Counter(number for numbers in _in_hand(path) for number in numbers)

    def is_deadly(self, image_id: int) -> bool:
        """Return whether processes died with an image in hand `MOST_DEATHS` times."""
        return self._deaths[image_id] >= MOST_DEATHS

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the journal while the block runs, as a new attempt."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._write(_BEGIN)
            yield
        finally:
            os.close(self._handle)
            self._handle = None
            self._path.unlink(missing_ok=True)

    def begin(self, image_id: int) -> None:
        """Record that work on an image begins."""
        self._write(f"+{image_id}")

    def end(self, image_id: int) -> None:
        """Record that an image is done."""
        self._write(f"-{image_id}")

    def _write(self, line: str) -> None:
        with self._lock:
            if self._handle is not None:
                os.write(self._handle, f"{line}\n".encode())


def _in_hand(path: Path) -> list[set[int]]:
    """Return the images that each attempt had in hand at its end."""
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    attempts: list[set[int]] = []
    for line in lines:
        if line == _BEGIN:
            attempts.append(set())
        elif attempts and line[1:].isdigit():
            numbers = attempts[-1]
            (numbers.add if line[0] == "+" else numbers.discard)(int(line[1:]))
    return attempts
