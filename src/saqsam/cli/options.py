"""Options that several commands take together, and what can be said of them before anything is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROMPTS = ("box", "point", "clicks")
FORMS = ("html", "md", "json")
TASKS = ("prompt", "instance", "oriented", "everything", "semantic")


@dataclass(frozen=True)
class EvaluationOptions:
    """What is evaluated, on what, as the command line has it.

    Attributes:
        data: As `--data`.
        tasks: As `--task`; None for what the other options imply.
        prompt: As `--prompt`.
        detections: As `--detections`.
        limit: As `--limit`.
        memory: As `--memory`.
        workers: As `--workers`.
        tile: As `--tile`.
        labels: As `--labels`.
        points_per_side: As `--points-per-side`, and so on; None for the official value.
        pred_iou: As `--pred-iou`.
        stability: As `--stability`.
        ignore_label: As `--ignore-label`.
    """

    data: str
    tasks: Sequence[str] | None
    prompt: str
    detections: Path | None
    limit: int | None
    memory: str
    workers: int
    tile: int = 1024
    labels: str | None = None
    points_per_side: int | None = None
    pred_iou: float | None = None
    stability: float | None = None
    ignore_label: str = "auto"


def check_tasks(tasks: Sequence[str] | None, prompt: str) -> None:
    """Raise ValueError for names of tasks or prompts that there are not."""
    if prompt not in PROMPTS:
        raise ValueError(f"--prompt: expected box, point or clicks, got {prompt!r}")
    for name in tasks or ():
        if name not in TASKS:
            raise ValueError(f"--task: expected one of {', '.join(TASKS)}, got {name!r}")


def check_new(path: Path | None, *, overwrite: bool) -> None:
    """Raise ValueError if an output exists and is not to be replaced."""
    if path is not None and os.path.lexists(path) and not overwrite:
        raise ValueError(f"{path} exists; choose another name, or pass --overwrite")


def check_png(path: Path | None) -> None:
    """Raise ValueError for the name of a picture that says it is something else."""
    if path is not None and path.suffix.lower() != ".png":
        raise ValueError(f"--out: expected a name that ends in .png, got {path}")


def default_masks_path(image: Path) -> Path:
    """Return the default output of `segment`, `PHOTO.masks.png` beside `PHOTO.jpg`.

    Raises:
        ValueError: `image` is a folder, such as `.`, `..` or `/`, from whose name no other can be made.
    """
    if image.is_dir():
        raise ValueError(f"IMAGE: expected an image file, got the folder {image}")
    return image.with_name(f"{image.stem}.masks.png")


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError for a value that there is not."""
    if value not in choices:
        raise ValueError(f"{option}: expected {', '.join(choices[:-1])} or {choices[-1]}, got {value!r}")


def check_form(path: Path, form: str | None) -> str:
    """The form of a report: `html`, `md` or `json`, as asked for or as its file is named."""
    if form is not None:
        check_choice("--format", form, FORMS)
        return form
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMS:
        raise ValueError(
            f"--out: expected a name that ends in .html, .md or .json, got {path}; or say --format"
        )
    return ending


def parse_numbers(text: str, count: int, option: str, form: str) -> list[float]:
    """So many numbers between commas; `form` says how they must look.

    Raises:
        ValueError: They do not.
    """
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise ValueError(f"{option} must look like {form}, got {text!r}")
    return values
