"""The images of a bulk run, cut into parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from saqsam.bulk.parquet_images import ParquetImages
from saqsam.bulk.tar_images import TarImages
from saqsam.data.coco_folders import find_annotations
from saqsam.data.images import has_images
from saqsam.data.paths import expand_home
from saqsam.segmentation.sources import ImageSource, find_files, find_sources
from saqsam.segmentation.writer import check_names

TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz")
PARQUET_SUFFIXES = (".parquet",)


class Collection(Protocol):
    """Images in parts.

    Attributes:
        names: Names of all images in order, or None where only reading the parts tells them.
        has_prompts: Whether prompts come with the images.
    """

    names: Sequence[str] | None
    has_prompts: bool

    def __len__(self) -> int:
        """Return the number of parts."""
        ...

    def images(self, part: int) -> Iterator[ImageSource]:
        """Yield the images of a part, whose ids are unique among all parts.

        Raises:
            ValueError: The file of the part is damaged.
        """
        ...

    @property
    def digest(self) -> str:
        """Digest, which changes with the images or the parts."""
        ...


class ListedImages:
    """Images that are listed one by one: slices of `images_per_file`.

    Raises:
        ValueError: Two images have the same name.
    """

    def __init__(self, sources: Sequence[ImageSource], images_per_file: int) -> None:
        check_names([source.name for source in sources])
        self._sources = sources
        self._size = images_per_file
        self.names: Sequence[str] | None = [source.name for source in sources]
        self.has_prompts = sources[0].has_prompts

    def __len__(self) -> int:
        return -(-len(self._sources) // self._size)

    def images(self, part: int) -> Iterator[ImageSource]:
        """Yield the images of a part, as `Collection.images`."""
        yield from self._sources[part * self._size : (part + 1) * self._size]

    @property
    def digest(self) -> str:
        """Digest, as `Collection.digest`."""
        digest = hashlib.sha256(str(self._size).encode())
        for source in self._sources:
            digest.update(f"\0{source.image_id}\0{source.name}".encode())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Inputs:
    """Names of images, archives and files on a command line; picklable, unlike a `Collection`.

    Attributes:
        names: As for `find_sources`, or archives (`.tar`, `.tar.gz`), Parquet files, patterns and folders of them.
        detections: COCO results file with prompts for the images of an annotation file, or None.
        images_per_file: Images per part. A tar archive is one part whatever its size.
    """

    names: tuple[str, ...]
    detections: Path | None = None
    images_per_file: int = 256

    def annotations_digest(self) -> str:
        """Return a digest of the files whose boxes are prompts: annotation files, and detections."""
        digest = hashlib.sha256()
        for name in self.names:
            path = expand_home(name)
            folder = find_annotations(path) if path.is_dir() else None
            file = path if folder is None else folder.annotations
            if file.suffix.lower() == ".json" and file.is_file():
                digest.update(file.read_bytes())
        if self.detections is not None:
            digest.update(self.detections.read_bytes())
        return digest.hexdigest()[:12]

    def open(self) -> Collection:
        """Find the images.

        Raises:
            ValueError: There is no such image or file, or the inputs are of several kinds.
        """
        archives = [_files_of_kind(name, TAR_SUFFIXES) for name in self.names]
        tables = [_files_of_kind(name, PARQUET_SUFFIXES) for name in self.names]
        kinds = [bool(tar) + 2 * bool(table) for tar, table in zip(archives, tables, strict=True)]
        if not any(kinds):
            return ListedImages(find_sources(self.names, self.detections), self.images_per_file)
        if len(set(kinds)) > 1:
            raise ValueError("images: expected tar archives, Parquet files or images, not several of these")
        if self.detections is not None:
            raise ValueError("detections: expected images from one annotation file of COCO or LVIS")
        if kinds[0] == 1:
            return TarImages([path for files in archives for path in files])
        return ParquetImages([path for files in tables for path in files], self.images_per_file)


def _files_of_kind(name: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files that a name stands for if all have one of the suffixes; nothing otherwise."""
    path = expand_home(name)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.lower().endswith(suffixes))
        return [] if files and has_images(path) else files
    if not name.lower().endswith(suffixes):
        return []
    return [file for _, file in find_files(name)]
