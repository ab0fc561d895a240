"""Find the files of images that annotations name as another machine or tool saw them.

A `file_name` may be a path of the machine that wrote it, have backslashes, be a URL, or differ from the file in case,
Unicode normalization, percent-encoding or type. Every form that fits a single file is accepted. Only files below the
image folder are ever returned, whatever a name says.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from saqsam.data.images import IMAGE_SUFFIXES

MISSING_FILE = "missing image file"
SEVERAL_FILES = "image name that fits several files"
SHARED_FILE = "image name that fits the file of another image"

OTHER_PLACE = "image found by the end of its path"
OTHER_SPELLING = "image found in another spelling of its name"
OTHER_TYPE = "image found as a file of another type"

_OTHER_SUFFIXES = frozenset({".avif", ".gif", ".heic", ".jfif", ".jp2", ".jpe"})
"""Types of images that are not read, but that files may have been converted from."""

_DEEPEST = 32
"""Folders that a name may lead through; of longer paths the end counts."""


@dataclass(frozen=True)
class FoundImage:
    """An image file.

    Attributes:
        name: Path relative to the image folder, with forward slashes.
        note: How its name in the annotations differs; None where it does not.
    """

    name: str
    note: str | None = None


class ImageFinder:
    """Looks up names of images in a folder. Folders are listed once, when a name first leads there.

    Args:
        folder: The image folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listings: dict[str, _Listing] = {}

    def find(self, name: str) -> FoundImage | str:
        """Return the file of a name, or the reason why there is none.

        The whole path is tried before its shorter ends, and the exact spelling before others.
        """
        paths = _ends(name)
        if not paths:
            return MISSING_FILE
        for path in paths:
            if self._is_file(path):
                return FoundImage(path, None if path == posixpath.normpath(name) else OTHER_PLACE)
        for by_stem in (False, True):
            for path in paths:
                candidates = self._candidates(path, by_stem=by_stem)
                if len(candidates) == 1:
                    return FoundImage(candidates[0], OTHER_TYPE if by_stem else OTHER_SPELLING)
                if candidates:
                    return SEVERAL_FILES
        return MISSING_FILE

    def find_all(self, names: list[str]) -> list[FoundImage | str]:
        """Find many names. A name that leads only loosely to the file of another one is refused with the reason."""
        found = [self.find(name) for name in names]
        claims: defaultdict[str, set[str]] = defaultdict(set)
        for name, image in zip(names, found, strict=True):
            if isinstance(image, FoundImage):
                claims[image.name].add(name)
        return [
            SHARED_FILE
            if isinstance(image, FoundImage) and image.note is not None and len(claims[image.name]) > 1
            else image
            for image in found
        ]

    def _is_file(self, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        listing = self._list(parent)
        return listing is not None and name in listing.files

    def _candidates(self, path: str, *, by_stem: bool) -> list[str]:
        """Files that a path may stand for, where folders and the file may be spelled otherwise."""
        *folders, name = path.split("/")
        parents = [""]
        for folder in folders:
            parents = [
                posixpath.join(parent, child)
                for parent in parents
                for child in self._children(parent, _spelling(folder))
            ]
        found = []
        for parent in parents:
            listing = self._list(parent)
            if listing is not None:
                found += [posixpath.join(parent, child) for child in listing.find(name, by_stem=by_stem)]
        return found

    def _children(self, parent: str, spelling: str) -> list[str]:
        listing = self._list(parent)
        return [] if listing is None else listing.folders.get(spelling, [])

    def _list(self, relative: str) -> _Listing | None:
        """The listing of a folder below the image folder; None for a path that is not listed as a folder."""
        if relative not in self._listings:
            if relative:
                parent, _, name = relative.rpartition("/")
                above = self._list(parent)
                if above is None or name not in above.folders.get(_spelling(name), []):
                    return None
            self._listings[relative] = _Listing(self.folder / relative)
        return self._listings[relative]


class _Listing:
    """What a folder holds, by every key that names are compared by."""

    def __init__(self, folder: Path) -> None:
        self.files: set[str] = set()
        self.folders: defaultdict[str, list[str]] = defaultdict(list)
        if not folder.is_dir():
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    self.folders[_spelling(entry.name)].append(entry.name)
                elif entry.is_file():
                    self.files.add(entry.name)

    def find(self, name: str, *, by_stem: bool) -> list[str]:
        """Files of the same spelling, or images of the same stem."""
        return self._by_stem.get(_stem(name), []) if by_stem else self._by_spelling.get(_spelling(name), [])

    @cached_property
    def _by_spelling(self) -> dict[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(self.files):
            found[_spelling(name)].append(name)
        return found

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(self.files):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                found[_stem(name)].append(name)
        return found


def _ends(name: str) -> list[str]:
    """A name as a relative path with forward slashes, and all shorter ends of it, the longest first."""
    if "://" in name:
        try:
            name = unquote(urlsplit(name).path)
        except ValueError:  # a damaged host
            return []
    path = posixpath.normpath(name.replace("\\", "/"))
    parts = [part for part in path.split("/") if part not in ("", ".", "..")][-_DEEPEST:]
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    # Archives made on Windows unpack into files whose names hold the backslashes.
    return [name, *ends] if "\\" in name and "/" not in name else ends


def _spelling(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name)).strip().casefold()


def _stem(name: str) -> str:
    stem, suffix = posixpath.splitext(_spelling(name))
    return stem if suffix in IMAGE_SUFFIXES | _OTHER_SUFFIXES else _spelling(name)
