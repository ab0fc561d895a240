"""Atomic writes: a file or folder appears under its name only when it is complete."""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saqsam.utils.locks import is_same_file, try_lock
from saqsam.utils.replace import replace_file, replace_folder, restore_folder, sync_file

_PARTIAL = ".partial"
_NEW, _OLD = "new", "old"
"""Subfolders of a `.partial` folder: the folder being written, and the one that it replaces."""


def check_writable(path: Path) -> None:
    """Raise ValueError if no file or folder can be created at `path`. Call it before long work begins.

    Missing parent folders count as writable where they could be created.
    """
    parent = path.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise ValueError(f"cannot write {path}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write {path}: no permission to write in {parent}")


def check_file_writable(path: Path) -> None:
    """Raise ValueError if `path` is a folder or a device, or if `check_writable` refuses it."""
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: expected a regular file, found a device or pipe")
    check_writable(path)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically and create missing parent folders; on any failure an existing file is unchanged."""
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file, open for writing, that replaces `path` when the block ends, or is removed if the block raises.

    Missing parent folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    handle, partial = _new_partial_file(path)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            sync_file(handle)
            if sys.platform != "win32":
                replace_file(partial, path)  # while the lock keeps `remove_stale` away
        if sys.platform == "win32":  # open files cannot be renamed there
            replace_file(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `folder` when the block ends, or is removed if the block raises.

    An existing folder of that name is removed only after the new one is in place.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder)
    handle, partial = _new_partial_folder(folder)
    try:
        new = partial / _NEW
        new.mkdir(mode=0o755)
        yield new
        replace_folder(new, folder, partial / _OLD)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def remove_stale(path: Path) -> None:
    """Remove partial files that killed processes left beside a file or folder, and undo unfinished replacements.

    Partial files that a running process still writes are locked by it and are kept.
    """
    if sys.platform == "win32":
        return  # folders cannot be locked there, so nothing tells whether they are in use
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}{re.escape(_PARTIAL)}")
    for partial in path.parent.iterdir():
        if pattern.fullmatch(partial.name):
            _remove_unless_locked(partial, path)


def _remove_unless_locked(partial: Path, path: Path) -> None:
    try:
        handle = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # finished in the meantime, or not ours
        return
    try:
        if try_lock(handle):
            restore_folder(path, partial / _OLD)
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink()
    except OSError:
        pass  # removed by another process, or a file system without locks
    finally:
        os.close(handle)


def _new_partial_file(path: Path) -> tuple[int, Path]:
    """Create a file beside `path`, locked so that `remove_stale` leaves it alone."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
        try:
            # Not mkstemp, whose files are for their owner alone whatever the umask.
            handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        except FileExistsError:
            continue
        if _lock_new(handle, partial):
            return handle, partial


def _new_partial_folder(path: Path) -> tuple[int | None, Path]:
    """Create a folder beside `path`, locked like a file except on Windows, where its handle is None."""
    while True:
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_PARTIAL, dir=path.parent))
        if sys.platform == "win32":
            return None, partial
        handle = os.open(partial, os.O_RDONLY)
        if _lock_new(handle, partial):
            return handle, partial


def _lock_new(handle: int, partial: Path) -> bool:
    """Lock a new file or folder; return whether it is still there, or else close it.

    Another process may have taken it for a leftover before it was locked.
    """
    with suppress(OSError):  # a file system without locks
        try_lock(handle)
    if is_same_file(handle, partial):
        return True
    os.close(handle)
    return False


def png_bytes(picture: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Encode a picture as PNG: HWC uint8 RGB, or HW uint8 or uint16 gray."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an HWC uint8 RGB picture atomically as PNG."""
    write_atomic(path, png_bytes(picture))
