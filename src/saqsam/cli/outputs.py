"""Atomic outputs of commands: staged in `TARGET.unfinished` by one process, then moved to their name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from saqsam.cli.checks import check_new
from saqsam.utils.atomic_write import check_writable, write_atomic
from saqsam.utils.locks import LockHeldError, lock_file
from saqsam.utils.replace import replace_file, replace_folder, restore_folder

SUFFIX = ".unfinished"
_STAGED, _REPLACED = "staged", "replaced"
_LOCK = "lock"
_TEMPORARY = re.compile(rf"{_STAGED}|{_REPLACED}|{_LOCK}(-\d+)?|\..*\.partial|\.DS_Store|\._.*")
"""Files that are removed at the start of a run, macOS's own among them; only the lock stays."""
_STEPS = re.compile(r"arguments\.json|[\w-]+\.safetensors|records-\d+\.jsonl|\d+")
"""Files that an unfinished run may consist of: steps of a quantization, records of one model or several."""


class Output:
    """Output that this process alone may write.

    Attributes:
        target: File or folder to write.
        unfinished: Folder on the same file system for finished steps, removed when the command succeeds.
        staged: Path in that folder at which the output is made.

    Raises:
        ValueError: The target is the root of a file system.
    """

    def __init__(self, target: Path) -> None:
        if not target.name:
            raise ValueError(f"cannot write {target}: expected a file or a folder in it")
        self.target = target
        self.unfinished = target.with_name(f"{target.name}{SUFFIX}")
        self.staged = self.unfinished / _STAGED

    def write(self, content: bytes) -> None:
        """Write the file."""
        write_atomic(self.staged, content)
        replace_file(self.staged, self.target)

    def place(self, *, is_folder: bool) -> None:
        """Move the file or folder that was made at `staged` to its name."""
        if is_folder:
            self.place_folder()
        else:
            replace_file(self.staged, self.target)

    def place_folder(self) -> None:
        """Move the folder that was made at `staged` to its name."""
        replace_folder(self.staged, self.target, self.unfinished / _REPLACED)

    def has_steps(self) -> bool:
        """Return whether an unfinished run has left steps to resume from."""
        return self.unfinished.is_dir() and any(
            not _TEMPORARY.fullmatch(path.name) for path in self.unfinished.iterdir()
        )


@contextmanager
def claim_output(target: Path, *, overwrite: bool, rank: int = 0) -> Iterator[Output]:
    """Hold an output for this process while the block runs.

    Leftovers of a killed run are removed first; its finished steps stay. When the block ends, the unfinished folder is
    removed; if the block raises, it is kept where it holds finished steps, and the exception gets a note that says so.

    Args:
        target: The file or folder to write.
        overwrite: Whether it may exist.
        rank: Number of this process among those of torchrun; the others only keep records and write no output.

    Raises:
        ValueError: The target exists, cannot be written, or another process holds it.
    """
    check_writable(target)
    output = Output(target.resolve())  # what a symbolic link points to is replaced, not the link
    _check_unfinished(output.unfinished)
    lock = output.unfinished / (f"{_LOCK}-{rank}" if rank else _LOCK)
    missing = [folder for folder in output.target.parents if not folder.exists()]
    had_target = output.target.exists()
    try:
        with lock_file(lock):
            if rank:
                yield output
                return
            restore_folder(output.target, output.unfinished / _REPLACED)
            check_new(target, overwrite=overwrite)
            _remove_temporary(output.unfinished)
            try:
                yield output
            except BaseException as error:
                _remove_temporary(output.unfinished)
                # An error that names the folder, such as one of damaged steps, says itself what to do with it.
                if output.has_steps() and str(output.unfinished) not in str(error):
                    error.add_note(
                        f"finished steps are kept in {output.unfinished}; run the same command again to resume"
                    )
                raise
            shutil.rmtree(output.unfinished, ignore_errors=True)
    except LockHeldError as error:
        holder = "another process" if error.pid is None else f"process {error.pid}"
        raise ValueError(
            f"{target} is being written by {holder}; wait for it to end, or choose another name"
        ) from None
    except OSError as error:
        error.add_note(f"{target} {'is unchanged' if had_target else 'was not written'}")
        raise
    finally:
        for folder in (output.unfinished, *missing):
            with suppress(OSError):  # not empty, or not created
                folder.rmdir()


@contextmanager
def claim_optional(target: Path | None, *, overwrite: bool, rank: int = 0) -> Iterator[Output | None]:
    """Hold an optional output, as `claim_output` does; yield None if there is none."""
    if target is None:
        yield None
        return
    with claim_output(target, overwrite=overwrite, rank=rank) as output:
        yield output


def _check_unfinished(folder: Path) -> None:
    """Refuse a folder with foreign files, since it is removed when the command succeeds."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is in the way: expected the folder of an unfinished run, found a file")
    for path in folder.iterdir():
        if not (_TEMPORARY.fullmatch(path.name) or _STEPS.fullmatch(path.name)):
            raise ValueError(
                f"{folder} is in the way: {path.name} in it is not of an unfinished run; move the folder elsewhere"
            )


def _remove_temporary(folder: Path) -> None:
    """Remove what is neither a finished step nor a lock."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name) and not path.name.startswith(_LOCK):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
