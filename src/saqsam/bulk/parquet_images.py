"""Images in Parquet files, as the Hugging Face `datasets` library stores them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from saqsam.data.images import read_image_bytes
from saqsam.segmentation.prompt_files import parse_coco_box
from saqsam.segmentation.prompts import Prompt
from saqsam.segmentation.sources import ImageSource, Pixels
from saqsam.utils.errors import shorten_message, shorten_names

ROWS_AT_ONCE = 16
"""Rows whose images are in memory at once, beside those that are being segmented."""

_IMAGE, _OBJECTS = "image", "objects"


class _Rows(NamedTuple):
    """Row groups of one file that make a part."""

    path: Path
    groups: tuple[int, ...]
    first_row: int
    """Position of their first row among the rows of all files."""


class ParquetImages:
    """Images in Parquet files.

    The column `image` holds the bytes of an image file, or a struct of `bytes` and `path`. If there is a column
    `objects` with lists `bbox` of [x, y, width, height], these boxes are prompts. Image ids count the rows of all files
    from 1. Parts end where row groups end.

    Args:
        paths: The files.
        images_per_file: Rows of a part at least, except the last of a file.

    Raises:
        ValueError: A file is damaged or has no column of images.
    """

    names: Sequence[str] | None = None
    has_prompts = True

    def __init__(self, paths: Sequence[Path], images_per_file: int) -> None:
        self._parts: list[_Rows] = []
        digest = hashlib.sha256()
        row = 0
        for path in paths:
            try:
                metadata = pq.read_metadata(path)
                schema = metadata.schema.to_arrow_schema()
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path}: expected a Parquet file: {shorten_message(error)}") from error
            if _IMAGE not in schema.names:
                raise ValueError(f"{path}: expected a column image, found {shorten_names(schema.names)}")
            digest.update(f"{path.name}\0{metadata.num_rows}\0{path.stat().st_size}\0".encode())
            groups: list[int] = []
            first, rows = row, 0
            for group in range(metadata.num_row_groups):
                groups.append(group)
                rows += metadata.row_group(group).num_rows
                if rows >= images_per_file or group == metadata.num_row_groups - 1:
                    self._parts.append(_Rows(path, tuple(groups), first))
                    first, rows, groups = first + rows, 0, []
            row = first
        digest.update(str(images_per_file).encode())
        self.digest = digest.hexdigest()[:12]

    def __len__(self) -> int:
        return len(self._parts)

    def images(self, part: int) -> Iterator[ImageSource]:
        """Yield the images of a part, as `Collection.images`."""
        path, groups, first = self._parts[part]
        number = first
        try:
            with pq.ParquetFile(path) as file:
                columns = [name for name in (_IMAGE, _OBJECTS) if name in file.schema_arrow.names]
                for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=list(groups), columns=columns):
                    for row in batch.to_pylist():
                        number += 1
                        yield _source(row, number, path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: damaged Parquet file: {shorten_message(error)}") from error


def _source(row: Mapping[str, Any], number: int, path: Path) -> ImageSource:
    image = row[_IMAGE]
    content, inner = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
    name = f"{path.name}/{inner or number}"
    return ImageSource(number, name, _reader(content, name, row.get(_OBJECTS)))


def _reader(content: Any, name: str, objects: Any) -> Callable[[], Pixels]:
    def read() -> Pixels:
        if not isinstance(content, bytes):
            raise ValueError(f"{name}: expected the bytes of an image file, got {type(content).__name__}")
        boxes = objects.get("bbox") if isinstance(objects, dict) else None
        prompts: tuple[Prompt, ...] = tuple(parse_coco_box(box, name) for box in boxes or ())
        return (*read_image_bytes(content, name), prompts)

    return read
