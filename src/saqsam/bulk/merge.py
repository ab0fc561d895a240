"""Merge the files of a bulk run."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq

from saqsam.bulk.plan import finished_parts, part_path, read_plan
from saqsam.bulk.table import SCHEMA, Failure, Result, open_part, read_part
from saqsam.segmentation.formats.coco import coco_pieces
from saqsam.segmentation.objects import OBJECT, SegmentedImage
from saqsam.utils.errors import shorten_names


@dataclass(frozen=True)
class Survey:
    """Counts and categories of a run.

    Attributes:
        images: Images that did not fail.
        failures: Images that failed.
        category_numbers: A number for each category by name, where images use one number for different ones; else None.
    """

    images: int
    failures: int
    category_numbers: Mapping[str, int] | None


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
        numbers = self.survey.category_numbers
        for result in self.results(masks=masks):
            if isinstance(result, SegmentedImage):
                yield result if numbers is None else _renumbered(result, numbers)

    @functools.cached_property
    def survey(self) -> Survey:
        """Counts and categories of all parts."""
        return _survey(self.results(masks=False))

    def write_parquet(self, file: BinaryIO) -> None:
        """Write all rows as one Parquet file, a group of rows at a time."""
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
            for path in self._paths:
                with open_part(path) as part:
                    for group in range(part.num_row_groups):
                        writer.write_table(part.read_row_group(group))

    def write_coco(self, file: BinaryIO, *, polygons: bool, tolerance: float) -> None:
        """Write a COCO annotation file, an image at a time."""
        pieces = coco_pieces(
            lambda: self.images(masks=False), self.images, polygons=polygons, tolerance=tolerance
        )
        for piece in pieces:
            file.write(piece.encode())


def _survey(results: Iterable[Result]) -> Survey:
    names: dict[int, str] = {}
    seen: set[str] = set()
    images, failures, is_unique = 0, 0, True
    for result in results:
        if isinstance(result, Failure):
            failures += 1
            continue
        images += 1
        for number, name in result.categories.items():
            is_unique &= names.setdefault(number, name) == name
            seen.add(name)
    is_unique &= len(set(names.values())) == len(names)
    numbers = None if is_unique else {name: number for number, name in enumerate(sorted(seen), OBJECT)}
    return Survey(images, failures, numbers)


def _renumbered(image: SegmentedImage, numbers: Mapping[str, int]) -> SegmentedImage:
    """Return an image with other numbers for its categories, by name."""
    own = {number: numbers[name] for number, name in image.categories.items()}
    objects = tuple(
        replace(one, category_id=own.get(one.category_id, one.category_id)) for one in image.objects
    )
    return replace(
        image, objects=objects, categories={numbers[name]: name for name in image.categories.values()}
    )
