"""Find the files of images whose names in annotations come from another machine or tool.

A `file_name` may be a path of the machine that wrote it, have backslashes, be a URL, or differ from the file in case,
Unicode normalization, percent-encoding or type. Every form that fits a single file is accepted. Only files below the
image folder are returned, whatever the name.
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
"""Suffixes that are not read, but from which files may have been converted."""

_DEEPEST = 32
"""Maximum number of path components of a name; only the end of a longer path is used."""


@dataclass(frozen=True)
class FoundImage:
    """An image file.

    Attributes:
        name: Path relative to the image folder, with forward slashes.
        note: Difference to the name in the annotations; None if they are equal.
    """

    name: str
    note: str | None = None


class ImageFinder:
    """Looks up names of images in a folder. Each folder is listed once, on first use.

    Args:
        folder: The image folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listings: dict[str, _Listing] = {}

    def find(self, name: str) -> FoundImage | str:
        """Return the file with a name, or the reason why there is none.

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
        """Find many names. An inexact match with a file that another name claims too is refused with the reason."""
        matches = [self.find(name) for name in names]
        claims: defaultdict[str, set[str]] = defaultdict(set)
        for name, image in zip(names, matches, strict=True):
            if isinstance(image, FoundImage):
                claims[image.name].add(name)
        return [
            SHARED_FILE
            if isinstance(image, FoundImage) and image.note is not None and len(claims[image.name]) > 1
            else image
            for image in matches
        ]

    def _is_file(self, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        listing = self._list(parent)
        return listing is not None and name in listing.files

    def _candidates(self, path: str, *, by_stem: bool) -> list[str]:
        """Return the files that a path may stand for if folders and the file may have another spelling."""
        *folders, name = path.split("/")
        parents = [""]
        for folder in folders:
            parents = [
                posixpath.join(parent, child)
                for parent in parents
                for child in self._children(parent, _spelling(folder))
            ]
        files = []
        for parent in parents:
            listing = self._list(parent)
            if listing is not None:
                files += [posixpath.join(parent, child) for child in listing.find(name, by_stem=by_stem)]
        return files

    def _children(self, parent: str, spelling: str) -> list[str]:
        listing = self._list(parent)
        return [] if listing is None else listing.folders.get(spelling, [])

    def _list(self, relative: str) -> _Listing | None:
        """Return the listing of a folder below the image folder; None for a path that is not a folder."""
        if relative not in self._listings:
            if relative:
                parent, _, name = relative.rpartition("/")
                above = self._list(parent)
                if above is None or name not in above.folders.get(_spelling(name), []):
                    return None
            self._listings[relative] = _Listing(self.folder / relative)
        return self._listings[relative]


class _Listing:
    """Contents of a folder, indexed by the keys that names are compared by."""

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
        """Return the files with the same spelling, or the images with the same stem."""
        return self._by_stem.get(_stem(name), []) if by_stem else self._by_spelling.get(_spelling(name), [])

    @cached_property
    def _by_spelling(self) -> dict[str, list[str]]:
        names: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(self.files):
            names[_spelling(name)].append(name)
        return names

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        names: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(self.files):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                names[_stem(name)].append(name)
        return names


def _ends(name: str) -> list[str]:
    """Return a name as a relative path with forward slashes, and all its shorter ends, the longest first."""
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
