"""Inter-process locks that the operating system releases whenever a process ends, even if it is killed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class LockHeldError(ValueError):
    """Another process holds the lock.

    Attributes:
        pid: Its process id; None if it is unknown.
    """

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(f"{path} is locked by {'another process' if pid is None else f'process {pid}'}")
        self.pid = pid


if sys.platform == "win32":
    import msvcrt

    def try_lock(handle: int) -> bool:
        """Lock an open file for this process without waiting; return whether that succeeded."""
        # Windows locks bytes, and others could not read a locked one: lock one far behind the process id.
        os.lseek(handle, 1 << 20, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
        return True
else:
    import fcntl

    def try_lock(handle: int) -> bool:
        """Lock an open file or folder for this process without waiting; return whether that succeeded."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold a lock file, created with the folders above it, and remove it when the block ends.

    A lock file that a killed process left behind is taken over.

    Args:
        path: The lock file. Holds the id of the process that has locked it.

    Raises:
        LockHeldError: Another process holds it, or another part of this one.
        OSError: The file cannot be created.
    """
    handle = _open_locked(path)
    try:
        os.truncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        # Removed while locked, and only if it is still ours: another process may wait to create the next one.
        with suppress(OSError):
            if is_same_file(handle, path):
                path.unlink()
        os.close(handle)


def _open_locked(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the process before us has just removed the folder
            continue
        try:
            is_ours = True
            with suppress(OSError):  # a file system without locks: nothing to protect with
                is_ours = try_lock(handle)
            if not is_ours:
                raise LockHeldError(path, _read_pid(handle))
            if is_same_file(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the process before us removed the file after we had opened it


def is_same_file(handle: int, path: Path) -> bool:
    """Return whether an open file is still the one under a path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _read_pid(handle: int) -> int | None:
    text = os.read(handle, 20)
    return int(text) if text.isdigit() else None
