"""Merge the files of a bulk run."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq

from saqsam.bulk.plan import finished_parts, part_path, read_plan
from saqsam.bulk.table import SCHEMA, Failure, Result, read_part
from saqsam.segmentation.formats.coco import coco_pieces
from saqsam.segmentation.objects import NO_CATEGORIES, SegmentedImage
from saqsam.utils.errors import shorten_names


class BulkFolder:
    """The finished parts of a run.

    Args:
        folder: Folder of the run.
        partial: Accept missing parts.

    Attributes:
        plan: Plan of the run.
        missing: Numbers of the parts that are not there.

    Raises:
        ValueError: The folder is not that of a run, or parts are missing.
    """

    def __init__(self, folder: Path, *, partial: bool = False) -> None:
        self.plan = read_plan(folder)
        done = finished_parts(folder)
        self.missing = sorted(set(range(self.plan.parts)) - done)
        if not done:
            raise ValueError(f"{folder}: expected the parts of a run, found none")
        if self.missing and not partial:
            names = shorten_names(part_path(folder, part).name for part in self.missing)
            raise ValueError(
                f"{folder}: {len(self.missing)} of {self.plan.parts} parts are missing ({names}); run the command that "
                "began it again, or pass --partial"
            )
        self._paths = [part_path(folder, part) for part in sorted(done) if part < self.plan.parts]

    def results(self, *, masks: bool = True) -> Iterator[Result]:
        """Yield the results of all parts, in order; without masks, images have no objects."""
        for path in self._paths:
            yield from read_part(path, masks=masks)

    def images(self, *, masks: bool = True) -> Iterator[SegmentedImage]:
        """Yield the images that did not fail, with the categories of the whole run."""
        numbers = self._category_numbers
        for result in self.results(masks=masks):
            if isinstance(result, Failure):
                continue
            if numbers is None:
                yield result
                continue
            own = {number: numbers[name] for number, name in result.categories.items()}
            objects = tuple(
                replace(one, category_id=own.get(one.category_id, one.category_id)) for one in result.objects
            )
            categories = {numbers[name]: name for name in result.categories.values()}
            yield replace(result, objects=objects, categories=categories)

    @functools.cached_property
    def _category_numbers(self) -> Mapping[str, int] | None:
        return _number_categories(self.results(masks=False))

    def write_parquet(self, file: BinaryIO) -> None:
        """Write all rows as one Parquet file, a group of rows at a time."""
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
            for path in self._paths:
                next(read_part(path, masks=False), None)  # checks the columns
                with pq.ParquetFile(path) as part:
                    for group in range(part.num_row_groups):
                        writer.write_table(part.read_row_group(group))

    def write_coco(self, file: BinaryIO, *, polygons: bool, tolerance: float) -> None:
        """Write a COCO annotation file, an image at a time."""
        pieces = coco_pieces(
            lambda: self.images(masks=False), self.images, polygons=polygons, tolerance=tolerance
        )
        for piece in pieces:
            file.write(piece.encode())

    def count(self) -> tuple[int, int]:
        """Return the number of images that did not fail, and of those that did."""
        failed = [isinstance(result, Failure) for result in self.results(masks=False)]
        return len(failed) - sum(failed), sum(failed)


def _number_categories(results: Iterable[Result]) -> Mapping[str, int] | None:
    """Return a number for each category if images use one number for different ones; else None."""
    names: dict[int, str] = {}
    seen: set[str] = set()
    is_unique = True
    for result in results:
        if isinstance(result, SegmentedImage):
            for number, name in result.categories.items():
                is_unique &= names.setdefault(number, name) == name
                seen.add(name)
    is_unique &= len(set(names.values())) == len(names)
    if is_unique:
        return None
    return {name: number for number, name in enumerate(sorted(seen), min(NO_CATEGORIES))}
