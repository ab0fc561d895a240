"""Replace a file or folder by a finished one in one step that survives a power failure."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # of renameat2 on Linux
_RENAME_SWAP = 2  # of renamex_np on macOS


def replace_file(staged: Path, target: Path) -> None:
    """Replace `target` by a file on the same file system that is already synced."""
    staged.replace(target)
    sync_folder(target.parent)


def replace_folder(staged: Path, target: Path, aside: Path) -> None:
    """Rename a folder to `target`; an existing folder of that name ends up at `staged` or `aside`.

    On Linux and macOS the two folders swap names in one step. Where the file system cannot do that, `target` is
    renamed to `aside` first; `restore_folder` undoes that if the process is killed in between.

    Args:
        staged: The new folder. Its files are synced by this function.
        target: The new name of the folder. Does not exist, or is a folder.
        aside: An unused path on the same file system.
    """
    sync_tree(staged)
    if not target.exists():
        staged.rename(target)
    elif not _swap(staged, target):
        target.rename(aside)
        try:
            staged.rename(target)
        except BaseException:
            aside.rename(target)
            raise
    sync_folder(target.parent)


def restore_folder(target: Path, aside: Path) -> None:
    """Rename a folder that an interrupted `replace_folder` set aside back to `target`, unless `target` exists."""
    if aside.is_dir() and not target.exists():
        aside.rename(target)
        sync_folder(target.parent)


def sync_file(handle: int) -> None:
    """Wait until the content of an open file is on disk."""
    os.fsync(handle)


def sync_tree(folder: Path) -> None:
    """Wait until all files of a folder and its subfolders are on disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            # Windows syncs only files that are open for writing.
            handle = os.open(Path(parent) / name, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(parent))


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, where the operating system can do that."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems cannot sync folders
    finally:
        os.close(handle)


def _swap(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; return whether the system could."""
    if sys.platform not in ("linux", "darwin"):
        return False
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one.absolute()), os.fsencode(other.absolute())
    try:
        if sys.platform == "darwin":
            return bool(library.renamex_np(first, second, _RENAME_SWAP) == 0)
        return bool(library.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE) == 0)
    except AttributeError:  # a C library without the function
        return False
