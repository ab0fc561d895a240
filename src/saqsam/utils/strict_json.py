"""Strict parsing of JSON from untrusted files: bounded size and nesting, finite numbers, unique keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saqsam.utils.errors import CheckpointError, shorten, shorten_message

MAX_BYTES = 4 * 2**20
"""Largest JSON file that is read; configurations and manifests are thousands of times smaller."""
MAX_DEPTH = 32
MAX_INTEGER = 2**53
"""Integers beyond this are not exact in other JSON parsers, and no field needs them."""


def read_json_object(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Parse a JSON file whose outermost value is an object.

    Args:
        path: The file, in UTF-8; a byte-order mark is accepted.
        max_bytes: Larger files are refused before they are read.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file cannot be read, is too large, or breaks one of the rules of `parse_json_object`.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise CheckpointError(f"{path}: expected a JSON file, found something else")
        if size > max_bytes:
            raise CheckpointError(f"{path}: expected at most {max_bytes:,} bytes of JSON, got {size:,}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_json_object(content, str(path))


def parse_json_object(content: bytes | str, source: str) -> dict[str, Any]:
    """Parse a JSON object strictly.

    Args:
        content: JSON text.
        source: Name of the file in messages.

    Raises:
        CheckpointError: The text is not UTF-8 or not JSON, its outermost value is not an object, it nests deeper than
            `MAX_DEPTH`, repeats a key within an object, or holds a number that is not finite or beyond `MAX_INTEGER`.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        parsed = json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise CheckpointError(f"{source}: expected JSON nested at most {MAX_DEPTH} levels deep") from None
    except ValueError as error:  # bad UTF-8, bad JSON, a repeated key
        raise CheckpointError(f"{source}: expected JSON: {shorten_message(error)}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{source}: expected a JSON object, got {type(parsed).__name__}")
    _check_values(parsed, source)
    return parsed


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {shorten(repeated)} appears twice")
    return values


def _check_values(parsed: dict[str, Any], source: str) -> None:
    # Iterative, because a recursive check could overflow the stack, which the depth limit is meant to prevent.
    level: list[Any] = [parsed]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            values = container.values() if isinstance(container, dict) else container
            for value in values:
                if isinstance(value, dict | list):
                    below.append(value)
                elif isinstance(value, int | float) and not -MAX_INTEGER <= value <= MAX_INTEGER:
                    raise CheckpointError(
                        f"{source}: expected finite numbers below 2^53, got {shorten(value)}"
                    )
        if not below:
            return
        level = below
    raise CheckpointError(f"{source}: expected JSON nested at most {MAX_DEPTH} levels deep")
