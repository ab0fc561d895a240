"""Exceptions for damaged files and failed processes, and short renderings of values for messages."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

MAX_VALUE_LENGTH = 60
MAX_NAME_LENGTH = 100
MAX_MESSAGE_LENGTH = 300


class CheckpointError(ValueError):
    """A file on disk is damaged, altered, or not what it claims to be.

    Raised while reading checkpoints, float models, exports, unfinished runs and evaluation records. The message is
    one line that names the file, what was expected and what was found.
    """


class PeerError(RuntimeError):
    """Another process of a run that `torchrun` shares among several has failed, so this one cannot go on."""


def shorten(value: object) -> str:
    """Return a representation of `value` of at most `MAX_VALUE_LENGTH` characters.

    Safe for values from untrusted files: nesting and length are cut before they are rendered.
    """
    text = _repr.repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[: MAX_VALUE_LENGTH - 3]}..."


def shorten_message(message: object) -> str:
    """Return a message, such as another library's, as one line of at most `MAX_MESSAGE_LENGTH` characters."""
    text = " ".join(str(message).split())
    return text if len(text) <= MAX_MESSAGE_LENGTH else f"{text[: MAX_MESSAGE_LENGTH - 3]}..."


def shorten_names(names: Iterable[str]) -> str:
    """Return the first three names in sorted order, each on one line of at most `MAX_NAME_LENGTH` characters."""
    ordered = sorted(names)
    escaped = [repr(name)[1:-1] for name in ordered[:3]]
    shown = [
        name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 3]}..." for name in escaped
    ]
    return ", ".join(shown) + (", ..." if len(ordered) > 3 else "")


_repr = reprlib.Repr()
_repr.maxlevel = 3
_repr.maxstring = _repr.maxother = _repr.maxlong = MAX_VALUE_LENGTH
