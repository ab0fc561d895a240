"""Paths as users write them, and the contents of folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from saqsam.utils.errors import shorten_message

_SHOWN = 8
"""Number of entries of a folder that a message names."""


def expand_home(path: str | Path) -> Path:
    """Return a path with a leading `~` or `~user` replaced by that home folder.

    Raises:
        ValueError: There is no such user.
    """
    plain = Path(path)
    if not str(plain).startswith("~"):
        return plain
    if not str(path).startswith("~"):
        return plain.absolute()  # `Path` drops the `./` of `./~`, which is not the home folder.
    try:
        return plain.expanduser()
    except RuntimeError as error:
        if plain.exists():
            return plain.absolute()
        raise ValueError(f"{path}: expected ~ to name a home folder, found no such user") from error


def is_hidden(path: Path) -> bool:
    """Return whether a file or folder is hidden or metadata of macOS: `.DS_Store`, `._a.png`, `__MACOSX`."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def unique_stems(files: Iterable[Path], kind: str) -> dict[str, Path]:
    """Map the name of each file without its suffix to the file, in the order of `files`.

    Args:
        files: Files of one folder.
        kind: Kind of the files, such as "image", for the message.

    Raises:
        ValueError: Two files differ only in their suffix.
    """
    named: dict[str, Path] = {}
    for path in files:
        other = named.setdefault(path.stem, path)
        if other is not path:
            raise ValueError(
                f"{path.parent}: expected one {kind} of a name, got {other.name} and {path.name}"
            )
    return named


def describe_folder(folder: Path) -> str:
    """Describe the contents of a folder for messages: subfolders, and number of files by suffix."""
    entries = sorted(entry for entry in folder.iterdir() if not is_hidden(entry))
    suffixes = Counter(entry.suffix.lower() or "no suffix" for entry in entries if entry.is_file())
    contents = [f"{entry.name}/" for entry in entries if entry.is_dir()]
    contents += [f"{count} x {suffix}" for suffix, count in suffixes.most_common()]
    shown = ", ".join(contents[:_SHOWN]) + (", ..." if len(contents) > _SHOWN else "")
    return shorten_message(shown) or "an empty folder"
