"""Ignore the warnings of Pillow, in any number of threads."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator


class _SharedFilter:
    """Ignores the warnings of Pillow while at least one thread decodes.

    `warnings.catch_warnings` saves and restores a list of the whole process: overlapping uses by several threads would
    leave the wrong filters behind. Here the first thread to enter saves and the last one to leave restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._saved = contextlib.ExitStack()

    @contextlib.contextmanager
    def ignored(self) -> Iterator[None]:
        with self._lock:
            if self._users == 0:
                self._saved.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._saved.close()


_filter = _SharedFilter()
pillow_warnings_ignored = _filter.ignored
"""Context manager that ignores the warnings of Pillow in its block."""
