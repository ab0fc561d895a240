"""The rows of a bulk run: one per mask, and one for an image without masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saqsam.data.rle import rle_from_text, rle_text
from saqsam.segmentation.objects import SegmentedImage, SegmentedObject
from saqsam.utils.atomic_write import atomic_file
from saqsam.utils.errors import CheckpointError, shorten_message

SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("image", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("category_id", pa.int64()),
        ("category", pa.string()),
        ("prompt", pa.string()),
        ("counts", pa.string()),
        ("bbox", pa.list_(pa.int32())),
        ("area", pa.int64()),
        ("score", pa.float64()),
        ("predicted_iou", pa.float64()),
        ("stability_score", pa.float64()),
        ("checkpoint", pa.dictionary(pa.int32(), pa.string())),
        ("error", pa.string()),
    ]
)
"""Columns. `counts` are COCO's compressed run lengths of an image of `height` x `width`, `bbox` is [x, y, width,
height], and `score` the confidence of a detector. An image without masks has one row, with null from `category_id` to
`stability_score`; `error` says why if it failed."""

_LIGHT_COLUMNS = ["image_id", "image", "height", "width", "category_id", "category", "error"]
"""Columns that suffice for images without their masks."""

ROWS_PER_GROUP = 4096


@dataclass(frozen=True)
class Failure:
    """An image that could not be segmented.

    Attributes:
        image_id: Its id.
        name: Its name.
        error: The reason.
    """

    image_id: int
    name: str
    error: str


Result = SegmentedImage | Failure


def write_part(path: Path, results: Iterable[Result], checkpoint: str) -> None:
    """Write the results of a part as a Parquet file, a group of rows at a time; it appears when it is complete.

    Equal results give equal bytes.

    Args:
        path: The file.
        results: The results, in order.
        checkpoint: Digits that identify the model, for the column `checkpoint`.
    """
    with atomic_file(path) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for result in results:
            rows += _rows(result, checkpoint)
            if len(rows) >= ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))


def _rows(result: Result, checkpoint: str) -> list[dict[str, Any]]:
    if isinstance(result, Failure):
        return [
            {
                "image_id": result.image_id,
                "image": result.name,
                "checkpoint": checkpoint,
                "error": result.error,
            }
        ]
    image = {
        "image_id": result.image_id,
        "image": result.name,
        "height": result.size[0],
        "width": result.size[1],
        "checkpoint": checkpoint,
    }
    return [{**image, **_fields(one, result)} for one in result.objects] or [image]


def _fields(one: SegmentedObject, image: SegmentedImage) -> dict[str, Any]:
    x0, y0, x1, y1 = map(int, one.box)
    return {
        "category_id": one.category_id,
        "category": image.categories.get(one.category_id),
        "prompt": one.prompt,
        "counts": rle_text(one.rle),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": one.area,
        "score": one.score,
        "predicted_iou": one.predicted_iou,
        "stability_score": one.stability_score,
    }


def read_part(path: Path, *, masks: bool = True) -> Iterator[Result]:
    """Yield the results of a part, a group of rows at a time in memory.

    Args:
        path: The file.
        masks: Whether to read the masks, or else images without objects.

    Raises:
        CheckpointError: The file is damaged or has other columns.
    """
    columns = list(SCHEMA.names) if masks else _LIGHT_COLUMNS
    with open_part(path) as file:
        rows = (row for batch in file.iter_batches(1024, columns=columns) for row in batch.to_pylist())
        yield from _results(rows, masks=masks)


@contextmanager
def open_part(path: Path) -> Iterator[pq.ParquetFile]:
    """Open the file of a part.

    Raises:
        CheckpointError: The file is damaged or has other columns.
    """
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise CheckpointError(f"{path}: expected the columns of saqsam segment, got others")
            yield file
    except pa.ArrowException as error:
        raise CheckpointError(f"{path}: damaged Parquet file: {shorten_message(error)}") from error


def _results(rows: Iterable[Mapping[str, Any]], *, masks: bool) -> Iterator[Result]:
    """Yield the result of each run of rows with the same image."""
    several: list[Mapping[str, Any]] = []
    for row in rows:
        if several and row["image_id"] != several[0]["image_id"]:
            yield _result(several, masks=masks)
            several = []
        several.append(row)
    if several:
        yield _result(several, masks=masks)


def _result(rows: Sequence[Mapping[str, Any]], *, masks: bool) -> Result:
    first = rows[0]
    if first["error"] is not None:
        return Failure(first["image_id"], first["image"], first["error"])
    size = (first["height"], first["width"])
    own = [row for row in rows if row["category_id"] is not None]
    categories = {row["category_id"]: row["category"] for row in own if row["category"] is not None}
    objects = tuple(
        SegmentedObject(
            rle_from_text(row["counts"], size),
            row["predicted_iou"],
            row["stability_score"],
            row["prompt"],
            row["category_id"],
            row["score"],
        )
        for row in own
        if masks
    )
    return SegmentedImage(first["image_id"], first["image"], size, objects, None, categories)
