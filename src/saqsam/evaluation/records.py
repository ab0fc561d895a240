"""Records of an unfinished evaluation on disk, one line of JSON per image, so that it can be resumed.

The folder is untrusted input. Lines are parsed strictly and checked against the schema of each task. Each line has a
digest of its content and of all lines before it, so that altered, missing and foreign lines are noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from saqsam.evaluation.record_schema import MapOf, Schema, check_schema, check_size
from saqsam.evaluation.task import Record
from saqsam.utils.errors import CheckpointError, shorten, shorten_message
from saqsam.utils.strict_json import parse_json_object

_HEADER = "evaluation"
_DIGEST_LENGTH = 64
_PREFIX, _MIDDLE, _SUFFIX = b'{"sha256":"', b'","record":', b"}"
_START = len(_PREFIX) + _DIGEST_LENGTH + len(_MIDDLE)


class RecordFolder:
    """Records of an unfinished evaluation; each process writes a file of its own and reads all.

    Args:
        folder: Folder of the records, created when the first one is written.
        header: Model, data and tasks, as plain values.
        count: Number of images to evaluate.
        schemas: Schema of the part of each task in a record, by its name, see `record_schema`.
        rank: Rank of this process.

    Raises:
        ValueError: The folder holds records of another evaluation. It is left as it is.
        CheckpointError: The folder holds damaged or altered records.
    """

    def __init__(
        self,
        folder: Path,
        header: Mapping[str, Any],
        *,
        count: int,
        schemas: Mapping[str, Schema],
        rank: int = 0,
    ) -> None:
        self.folder = folder
        self._header = json.loads(json.dumps(header))  # as it comes back from a file
        self._count, self._schemas = count, schemas
        self._path = folder / f"records-{rank}.jsonl"
        self._digest = ""
        self.records: dict[int, Record] = {}
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder of unfinished records, found a file")
        for path in sorted(folder.glob("records-*.jsonl")):
            self._read(path, is_own=path == self._path)

    def _read(self, path: Path, *, is_own: bool) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        *lines, rest = content.split(b"\n")
        if rest and is_own:  # the end of a line that was being written when the process was killed
            os.truncate(path, len(content) - len(rest))
        digest = ""
        for number, line in enumerate(lines, 1):
            try:
                parsed, digest = _parse_line(line, digest)
                if number == 1:
                    self._check_header(parsed)
                else:
                    self._add(parsed)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{path}, line {number}: {shorten_message(error)}; remove {self.folder} to start again"
                ) from error
        if is_own:
            self._digest = digest

    def _check_header(self, parsed: dict[str, Any]) -> None:
        kept = parsed.get(_HEADER)
        if not isinstance(kept, dict) or len(parsed) > 1:
            raise CheckpointError(f"expected the header of an evaluation, got {shorten(parsed)}")
        if kept != self._header:
            names = [name for name in {**kept, **self._header} if kept.get(name) != self._header.get(name)]
            raise ValueError(
                f"{self.folder} holds an unfinished evaluation that differs in {shorten_message(' and '.join(names))}; "
                "repeat that one, or remove the folder"
            )

    def _add(self, record: Record) -> None:
        """Check a record from a file, and keep it."""
        schema = {
            "index": int,
            "image_id": int,
            "file_name": str,
            "size": (int, int),
            "skipped": MapOf(int),
            "notes": MapOf(int),
            **self._schemas,
        }
        try:
            check_schema(record, schema, check_size(record.get("size")), "record")
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        index = record["index"]
        if not 0 <= index < self._count:
            raise CheckpointError(f"expected an index below {self._count}, got {index}")
        if index in self.records:
            raise CheckpointError(f"expected one record of image {index}, found another")
        self.records[index] = record

    def append(self, record: Record) -> None:
        """Write the record of an image."""
        self.folder.mkdir(parents=True, exist_ok=True)
        is_new = not self._path.is_file() or self._path.stat().st_size == 0
        content = b""
        if is_new:
            self._digest = ""
            content = self._line({_HEADER: self._header})
        content += self._line(record)
        with self._path.open("ab") as file:
            file.write(content)
        self.records[record["index"]] = record

    def remove(self) -> None:
        """Remove the records of this process, and the folder if nothing else is in it."""
        self._path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _line(self, content: Mapping[str, Any]) -> bytes:
        text = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
        self._digest = _next_digest(self._digest, text)
        return b"".join((_PREFIX, self._digest.encode(), _MIDDLE, text, _SUFFIX, b"\n"))


def _parse_line(line: bytes, digest: str) -> tuple[dict[str, Any], str]:
    """Return the content of a line and its digest, which follows from the digest of the line before."""
    text = line[_START : -len(_SUFFIX)]
    expected = _next_digest(digest, text)
    if line != b"".join((_PREFIX, expected.encode(), _MIDDLE, text, _SUFFIX)):
        raise CheckpointError("expected a record with its digest, found a damaged or altered line")
    return parse_json_object(text, "record"), expected


def _next_digest(digest: str, text: bytes) -> str:
    return hashlib.sha256(digest.encode() + text).hexdigest()
