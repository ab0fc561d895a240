"""Records on disk: one line of JSON an image, so that an evaluation that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saqsam.evaluate.task import Record

_HEADER = "evaluation"


class RecordFolder:
    """The unfinished records of an evaluation; each process writes a file of its own, and reads all.

    Args:
        folder: Made when the first record is written.
        header: What is evaluated on what, as plain values.
        rank: Number of this process.

    Raises:
        ValueError: The folder holds records of another evaluation, or lines that are none. It is left as it is.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], rank: int = 0) -> None:
        self.folder = folder
        self._header = json.loads(json.dumps(header))  # as it comes back from a file
        self._path = folder / f"records-{rank}.jsonl"
        self.records: dict[int, Record] = {}
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder of unfinished records, found a file")
        for path in sorted(folder.glob("records-*.jsonl")):
            self._read(path, is_own=path == self._path)

    def _read(self, path: Path, *, is_own: bool) -> None:
        lines = path.read_bytes().split(b"\n")
        if lines.pop() and is_own:  # a line that was cut short: written again
            path.write_bytes(b"".join(line + b"\n" for line in lines))
        if not lines:
            return
        try:
            header, *records = [json.loads(line) for line in lines]
            found = {record["index"]: record for record in records}
            kept = header[_HEADER]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not the records of an evaluation; remove {self.folder}") from error
        if kept != self._header:
            names = [name for name in {**kept, **self._header} if kept.get(name) != self._header.get(name)]
            raise ValueError(
                f"{self.folder} holds an unfinished evaluation of another {', '.join(names)}; go on with that one, or "
                f"remove the folder"
            )
        self.records |= found

    def append(self, record: Record) -> None:
        """Add an image."""
        self.folder.mkdir(parents=True, exist_ok=True)
        is_new = not self._path.is_file() or self._path.stat().st_size == 0
        with self._path.open("ab") as file:
            if is_new:
                file.write(_line({_HEADER: self._header}))
            file.write(_line(record))
        self.records[record["index"]] = record


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode() + b"\n"
