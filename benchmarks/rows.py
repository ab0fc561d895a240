"""Rows of a benchmark, one per evaluation, in an append-only CSV file."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

RESULTS = Path(__file__).resolve().parent / "results"
FLOAT = "float"
FILL_BOX = "fill-box"

KEY = (
    "model",
    "model_hash",
    "method",
    "bits",
    "settings",
    "steps",
    "calibration",
    "calibration_images",
    "seed",
    "data",
    "images_evaluated",
    "prompt",
)
"""Columns that identify a measurement: no two rows are equal in all of them."""


@dataclass(frozen=True)
class Row:
    """One evaluation. Columns that do not apply are empty, such as the calibration of a float model.

    Attributes:
        date: Time of the measurement, UTC.
        commit: Of the repository; ends in `-dirty` if the package's sources differed from it.
        saqsam: Version of the package.
        torch: Version of torch.
        transformers: Version of transformers.
        machine: What it ran on, with the number of threads.
        model: Name of the float model.
        model_hash: First 12 digits of the SHA-256 of its weights file.
        recipe: Name of the recipe, with its mean bits where it is mixed.
        method: Name of the method, `float`, or `fill-box` for the box itself as the mask.
        bits: Such as `w4a4`; `w32a32` for float.
        settings: Fields of the recipe that differ from the method's, `KEY=VALUE`, separated by spaces.
        steps: Learning steps over all units; empty for a method that learns nothing.
        calibration: Data set of the calibration.
        calibration_images: How many of its images.
        seed: Seed of the calibration sample.
        data: Data set of the evaluation.
        prompt: `box` or `point`.
        miou: Mean IoU over the instances, at the images' original resolution.
        instances: How many there were.
        images_evaluated: How many images were looked at, from the first on.
        segm_ap: COCO mask AP on a detector's boxes, where the data set comes with them.
        segm_ap50: The same at IoU 0.50.
        detections: Boxes of each image that got a mask for it, those of the best scores.
        checkpoint: First 12 digits of the content hash of the checkpoint that was evaluated.
        checkpoint_bytes: Size of its tensor file; for float, of the float model's weights as they are stored.
        float32_bytes: What the model's parameters take as float32.
        low_width_macs: Share of the multiply-accumulates whose operands both have the bits of the name.
        mac_shares: Share of the multiply-accumulates at each width.
        byte_shares: Share of the checkpoint's bytes by what they hold.
        seconds_quantize: Time from the float model to the packed one: on a CPU that of all cores, in rows before
            2026-11-29 by the clock on the wall.
        seconds_evaluate: Time of the evaluation, detections included.
    """

    date: str
    commit: str
    saqsam: str
    torch: str
    transformers: str
    machine: str
    model: str
    model_hash: str
    recipe: str
    method: str
    bits: str
    settings: str
    steps: int | None
    calibration: str
    calibration_images: int | None
    seed: int | None
    data: str
    prompt: str
    miou: float
    instances: int
    images_evaluated: int
    segm_ap: float | None
    segm_ap50: float | None
    detections: int | None
    checkpoint: str
    checkpoint_bytes: int | None
    float32_bytes: int | None
    low_width_macs: float | None
    mac_shares: str
    byte_shares: str
    seconds_quantize: float | None
    seconds_evaluate: float

    @property
    def key(self) -> tuple[Any, ...]:
        """Return the values of the `KEY` columns."""
        return tuple(getattr(self, name) for name in KEY)


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
_TYPES = get_type_hints(Row)


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file; none if there is no file.

    Raises:
        ValueError: Other columns, a value that does not fit its column, a last line cut short, or a row twice.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        raise ValueError(f"{path}: the last line is cut short; remove it")
    reader = csv.DictReader(io.StringIO(text), restkey="more", strict=True)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{path}: expected the columns {','.join(COLUMNS)}, got {reader.fieldnames}")
    rows: dict[tuple[Any, ...], Row] = {}
    for values in reader:
        row = _parse(values, f"{path}, line {reader.line_num}")
        if row.key in rows:
            raise ValueError(f"{path}, line {reader.line_num}: this was measured already: {row.key}")
        rows[row.key] = row
    return list(rows.values())


def current(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that the tables show.

    Of each model those of the weights that were measured last; of each data set, with each prompt, those of the
    largest number of images. The others are trials (`--limit`) and history.
    """
    newest: dict[str, Row] = {}
    most: dict[tuple[str, str], int] = {}
    for row in sorted(rows, key=lambda row: row.date):
        newest[row.model] = row
    kept = [row for row in rows if row.model_hash == newest[row.model].model_hash]
    for row in kept:
        most[row.data, row.prompt] = max(row.images_evaluated, most.get((row.data, row.prompt), 0))
    return [row for row in kept if row.images_evaluated == most[row.data, row.prompt]]


def float_scores(rows: Sequence[Row]) -> dict[str, float]:
    """Return the mean IoU of the float model with box prompts by dataset, for the weights that some rows are of."""
    weights = {row.model_hash for row in rows}
    return {
        row.data: row.miou
        for row in current([one for one in read_rows(RESULTS / "methods.csv") if one.model_hash in weights])
        if (row.method, row.prompt) == (FLOAT, "box")
    }


def append_row(path: Path, row: Row) -> None:
    """Append a row atomically, in one write, so that processes can append concurrently."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists() or path.stat().st_size == 0:
        writer.writerow(COLUMNS)
    writer.writerow(_format(getattr(row, name)) for name in COLUMNS)
    content = text.getvalue().encode()
    with path.open("ab", buffering=0) as file:
        written = file.write(content)
        os.fsync(file.fileno())
    if written != len(content):
        raise OSError(f"{path}: only {written} of {len(content)} bytes were written; remove its last line")


def _format(value: str | int | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _parse(values: dict[str, str], where: str) -> Row:
    parsed: dict[str, Any] = {}
    for name in COLUMNS:
        text, kind = values[name], _TYPES[name]
        if text is None or "more" in values:
            raise ValueError(f"{where}: expected {len(COLUMNS)} values")
        try:
            parsed[name] = _value(text, kind)
        except ValueError as error:
            raise ValueError(f"{where}: {name}: {error}") from error
    return Row(**parsed)


def _value(text: str, kind: Any) -> Any:
    if kind is str:
        return text
    if text == "" and kind in (int | None, float | None):
        return None
    return int(text) if kind in (int, int | None) else float(text)
