"""Checks of arguments that need no model: they run before the library is imported."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from saqsam.cli.help_texts import alternatives
from saqsam.cli.option_groups import TaskOptions, option_name
from saqsam.evaluation.registry import check_task_options
from saqsam.report.choices import FORMS


def check_tasks(names: Sequence[str] | None, options: TaskOptions) -> None:
    """Check names and options of tasks.

    Raises:
        ValueError: As for `check_task_options`.
    """
    check_task_options(names, options.values, label=option_name)


def check_new(path: Path | None, *, overwrite: bool) -> None:
    """Raise ValueError if an output exists and must not be replaced."""
    if path is not None and os.path.lexists(path) and not overwrite:
        raise ValueError(f"{path} exists; choose another name, or pass --overwrite")


def check_png(path: Path | None) -> None:
    """Raise ValueError if the name of a picture does not end in .png."""
    if path is not None and path.suffix.lower() != ".png":
        raise ValueError(f"--out: expected a name that ends in .png, got {path}")


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError if the value of an option is not one of its choices."""
    if value not in choices:
        raise ValueError(f"{option}: expected {alternatives(choices)}, got {value!r}")


def check_share(option: str, value: float) -> None:
    """Raise ValueError if the value of an option is not from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{option}: expected a number from 0 to 1, got {value:g}")


def check_checkpoint(folder: Path) -> None:
    """Raise ValueError if a folder does not exist."""
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {folder}")


def report_form(path: Path, form: str | None) -> str:
    """Return the form of a report: the one passed, or else that of its file's suffix.

    Raises:
        ValueError: There is no such form.
    """
    if form is not None:
        check_choice("--format", form, FORMS)
        return form
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMS:
        endings = alternatives(f".{name}" for name in FORMS)
        raise ValueError(f"--out: expected a name that ends in {endings}, got {path}; or give --format")
    return ending


def parse_numbers(text: str, count: int, option: str, form: str) -> list[float]:
    """Parse numbers that are separated by commas.

    Args:
        text: Text such as `10,20`.
        count: Expected count of numbers.
        option: Name of the option, for messages.
        form: Form of the text, for messages.

    Raises:
        ValueError: The text has another form.
    """
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise ValueError(f"{option} must look like {form}, got {text!r}")
    return values


def default_masks_path(image: Path) -> Path:
    """Return the default output of `segment`, `PHOTO.masks.png` beside `PHOTO.jpg`.

    Raises:
        ValueError: `image` is a folder, such as `.`, `..` or `/`, from whose name no other can be made.
    """
    if image.is_dir():
        raise ValueError(f"IMAGE: expected an image file, got the folder {image}")
    return image.with_name(f"{image.stem}.masks.png")
