"""Find the annotation file of a folder in COCO format, and the images of an annotation file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from saqsam.data.image_finder import MISSING_FILE, FoundImage, ImageFinder
from saqsam.utils.counts import skipped_phrase
from saqsam.utils.errors import shorten

USUAL_NAME = "annotations.json"
_ROBOFLOW, _LABEL_STUDIO, _CVAT = "_annotations.coco.json", "result.json", "instances_default.json"
_GENERAL_NAMES = frozenset({USUAL_NAME, _ROBOFLOW, _LABEL_STUDIO, _CVAT})
"""File names that do not identify the dataset."""

_LOOKED_FOR = 50
"""Number of image names by which a folder is chosen."""


@dataclass(frozen=True)
class CocoFolder:
    """An annotation file and the folder of its images.

    Attributes:
        annotations: The annotation file.
        images: Image folder; None if `find_images` has to search for it.
        name: Short name of the dataset.
        is_usual: Whether the file is in its usual place; otherwise a note states which one was read.
    """

    annotations: Path
    images: Path | None
    name: str
    is_usual: bool


def find_annotations(folder: Path) -> CocoFolder | None:
    """Return the annotation file in the usual place of a folder; None if there is none.

    Usual places are `annotations.json` in the folder, and `../annotations/instances_NAME.json` of an image folder NAME.
    """
    resolved = folder.resolve()
    if (folder / USUAL_NAME).is_file():
        return CocoFolder(folder / USUAL_NAME, None, resolved.name, is_usual=True)
    of_split = resolved.parent / "annotations" / f"instances_{resolved.name}.json"
    if of_split.is_file():
        return CocoFolder(of_split, folder, resolved.name, is_usual=True)
    return None


def find_export(folder: Path) -> CocoFolder | None:
    """Return the annotation file of a labeling tool in a folder; None if there is none.

    Known files are Roboflow's `_annotations.coco.json`, in the folder or a single subfolder, Label Studio's
    `result.json` with `images/`, and a single `annotations/instances_*.json`, as CVAT writes it.

    Raises:
        ValueError: The folder has several annotation files.
    """
    files = [folder / _ROBOFLOW] if (folder / _ROBOFLOW).is_file() else []
    if (folder / _LABEL_STUDIO).is_file() and (folder / "images").is_dir():
        files.append(folder / _LABEL_STUDIO)
    files += sorted(folder.glob("annotations/instances_*.json"))
    if not files:
        files = sorted(folder.glob(f"*/{_ROBOFLOW}"))
    if len(files) > 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in files)
        raise ValueError(f"{folder}: expected one annotation file, found {names}; give the file itself")
    return CocoFolder(files[0], None, name_of(files[0]), is_usual=False) if files else None


def name_of(annotations: Path) -> str:
    """Return a name for the dataset of an annotation file: the file's own or, if that is generic, its folder's."""
    if annotations.name not in _GENERAL_NAMES:
        return annotations.stem
    parent = annotations.resolve().parent
    return (parent.parent if parent.name == "annotations" else parent).name


def find_images(names: list[str], annotations: Path) -> ImageFinder:
    """Return a finder for the folder that holds the images of an annotation file.

    The search covers `images/` beside the file, the folder of the file, the folder above, its `images/`, and folders
    named like the file in the last two. The folder with most of the first images wins; on a tie, the first one.

    Raises:
        ValueError: None of the images is in any of these folders.
    """
    if not names:
        raise ValueError(f"{annotations}: expected images, the file lists none")
    own = annotations.resolve().parent
    split = annotations.stem.removeprefix("instances_")
    above = own.parent
    places = [own / "images", own, above, above / split, above / "images", above / "images" / split]
    finders = [ImageFinder(place) for place in places if place.is_dir()]
    for looked_for in (names[:_LOOKED_FOR], names):
        counts = [_count_found(finder, looked_for) for finder in finders]
        if max(counts):
            return finders[counts.index(max(counts))]
    problems = [Counter(map(str, map(finder.find, names))) for finder in finders]
    closest = min(problems, key=lambda reasons: reasons[MISSING_FILE])
    tried = ", ".join(map(str, places))
    raise ValueError(
        f"{annotations}: expected its images, such as [{shorten(names[0])}], in one of: {tried}; "
        f"found none of {len(names)}{skipped_phrase(closest)}"
    )


def _count_found(finder: ImageFinder, names: list[str]) -> int:
    return sum(isinstance(finder.find(name), FoundImage) for name in names)
