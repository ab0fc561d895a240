"""Images in tar archives, as webdataset and SA-1B lay them out."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from saqsam.data.images import IMAGE_SUFFIXES, read_image_bytes
from saqsam.segmentation.objects import NO_CATEGORIES
from saqsam.segmentation.prompt_files import parse_coco_box, parse_prompts
from saqsam.segmentation.prompts import Prompt
from saqsam.segmentation.sources import ImageSource, Pixels
from saqsam.segmentation.writer import check_names
from saqsam.utils.errors import shorten_message

IDS_PER_ARCHIVE = 10_000_000
"""Distance of the image ids of two archives, since only reading one tells how many images it holds."""

MAX_MEMBER = 2**28
"""Largest image in an archive, in bytes."""


class TarImages:
    """Images in tar archives; each archive is a part.

    Members with the same name up to the first dot belong together. `KEY.json` beside `KEY.jpg` holds its prompts: a
    list as in a prompt file, or an object whose `annotations` have a `bbox` [x, y, width, height], as in SA-1B.

    Args:
        paths: The archives, compressed or not.

    Raises:
        ValueError: Two archives have the same name.
    """

    names: Sequence[str] | None = None
    has_prompts = True

    def __init__(self, paths: Sequence[Path]) -> None:
        check_names([path.name for path in paths])
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def images(self, part: int) -> Iterator[ImageSource]:
        """Yield the images of an archive, as `Collection.images`; only those not yet used are in memory."""
        path = self._paths[part]
        number = 0
        for members in _grouped(path):
            prompts = _Prompts(members.pop(".json", None), path.name)
            for name, content in members.values():
                number += 1
                if number == IDS_PER_ARCHIVE:
                    raise ValueError(f"{path}: expected fewer than {IDS_PER_ARCHIVE:,} images in an archive")
                full = f"{path.name}/{name}"
                read = _reader(content, full, prompts)
                image_id = part * IDS_PER_ARCHIVE + number
                yield ImageSource(image_id, full, read, categories=prompts.categories)

    @property
    def digest(self) -> str:
        """Digest of the names and sizes of the archives, as `Collection.digest`."""
        files = "\0".join(f"{path.name} {path.stat().st_size}" for path in self._paths)
        return hashlib.sha256(files.encode()).hexdigest()[:12]


def _grouped(path: Path) -> Iterator[dict[str, tuple[str, bytes]]]:
    """Yield name and content of the images and JSON files of an archive by suffix, those of one key together."""
    key, members = "", dict[str, tuple[str, bytes]]()
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                suffix = f".{name.name.partition('.')[2]}".lower()
                if (
                    not member.isfile()
                    or name.name.startswith(".")
                    or suffix not in (*IMAGE_SUFFIXES, ".json")
                ):
                    continue
                own = str(name.parent / name.name.partition(".")[0])
                if own != key and members:
                    yield members
                    members = {}
                key = own
                content = archive.extractfile(member)
                assert content is not None  # of a regular file
                members[suffix] = (name.as_posix(), content.read(MAX_MEMBER + 1))
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged tar archive: {shorten_message(error)}") from error
    if members:
        yield members


class _Prompts:
    """Prompts of an image from its JSON file; an error in them is raised when they are used.

    Args:
        member: Name and content of the file, or None without one.
        archive: Name of the archive, for messages.
    """

    def __init__(self, member: tuple[str, bytes] | None, archive: str) -> None:
        self.categories = NO_CATEGORIES
        self._prompts: tuple[Prompt, ...] = ()
        self._error: ValueError | None = None
        try:
            if member is not None:
                self._parse(member[1], f"{archive}/{member[0]}")
        except ValueError as error:
            self._error = error

    def get(self) -> tuple[Prompt, ...]:
        if self._error is not None:
            raise self._error
        return self._prompts

    def _parse(self, content: bytes, where: str) -> None:
        try:
            parsed = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: expected JSON: {shorten_message(error)}") from error
        if isinstance(parsed, list):
            self._prompts, self.categories = parse_prompts(parsed, where)
            return
        annotations = parsed.get("annotations") if isinstance(parsed, dict) else None
        if not isinstance(annotations, list):
            raise ValueError(f"{where}: expected a list of prompts, or an object with annotations")
        boxes = [one.get("bbox") if isinstance(one, dict) else None for one in annotations]
        self._prompts = tuple(parse_coco_box(box, where) for box in boxes)


def _reader(content: bytes, name: str, prompts: _Prompts) -> Callable[[], Pixels]:
    def read() -> Pixels:
        if len(content) > MAX_MEMBER:
            raise ValueError(f"{name}: expected an image of at most {MAX_MEMBER:,} bytes")
        found = prompts.get()
        return (*read_image_bytes(content, name), found)

    return read
