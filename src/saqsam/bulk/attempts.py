"""Journal of the images in flight, which finds the image that crashes the process."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_CRASHES = 2
"""Crashes with no other image in flight after which an image is skipped."""

_BEGIN = "begin"


class Attempts:
    """Journal of one part: a line when an image is begun, and one when it is done.

    A killed process leaves the images that were in flight. Several may be, because images are read ahead, and the next
    attempt would find the same ones in flight again. After a crash, a part should therefore be processed one image at a
    time; an image that crashes the process alone is the cause. Exceptions, such as that of Ctrl-C, close the journal.

    Args:
        path: The journal. Only a killed process leaves it behind.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._handle: int | None = None
        crashes = _crashes(path)
        self.has_crashed = bool(crashes)
        """Whether an earlier attempt was killed."""
        self._alone = Counter(number for numbers in crashes if len(numbers) == 1 for number in numbers)

    def is_poison(self, image_id: int) -> bool:
        """Return whether an image has crashed the process `MOST_CRASHES` times with no other in flight."""
        return self._alone[image_id] >= MOST_CRASHES

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


def _crashes(path: Path) -> list[set[int]]:
    """Return the images that were in flight at the end of each attempt."""
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
