"""Checks of arguments that need no model: they run before the library is imported."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from saqsam.cli.help_texts import alternatives
from saqsam.cli.option_groups import TaskOptions, option_name
from saqsam.cli.segment_options import ENGINES, RAY, BulkOptions, SegmentOutputs, SegmentPrompts
from saqsam.evaluation.registry import check_task_options
from saqsam.report.choices import FORMS
from saqsam.segmentation.formats.registry import MaskFormat, output_path
from saqsam.utils.extras import install_command


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
    """Return the format of a report: the one passed, or else that of its file's suffix.

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


def parse_point(text: str, option: str) -> tuple[float, float, int]:
    """Parse a foreground point `x,y` or a background point `x,y,0`; return x, y and label.

    Raises:
        ValueError: The text has another form.
    """
    count = 3 if text.count(",") == 2 else 2
    values = parse_numbers(text, count, option, "x,y or x,y,0")
    if count == 3 and values[2] not in (0, 1):
        raise ValueError(f"{option} must look like x,y or x,y,0, got {text!r}")
    return values[0], values[1], int(values[2]) if count == 3 else 1


def check_segment_output(
    inputs: Sequence[str], form: MaskFormat, out: Path | None, *, overwrite: bool
) -> None:
    """Check what `segment` writes as far as that needs no image.

    Raises:
        ValueError: The output is one of the images, or exists and must not be replaced.
    """
    files = [path for path in map(Path, inputs) if path.is_file()]
    target = output_path(form, out, files[0] if len(inputs) == len(files) == 1 else None)
    if target is not None and target.exists() and any(path.samefile(target) for path in files):
        raise ValueError(f"--out: {target} is the image to segment; choose another name")
    check_new(target, overwrite=overwrite)


def check_bulk(outputs: SegmentOutputs, bulk: BulkOptions, *, overwrite: bool) -> None:
    """Check the options of a bulk run as far as that needs no image.

    Raises:
        ValueError: There is no folder to write, options exclude each other, or packages are not installed.
    """
    if outputs.out_path is None:
        raise ValueError("--out: expected a folder for the Parquet files")
    engine = bulk.engine or ENGINES[0]
    check_choice("--engine", engine, ENGINES)
    if bulk.shard is not None and overwrite:
        raise ValueError(
            "--shard: expected no --overwrite, since it would remove what other processes have written"
        )
    if bulk.shard is not None and engine == RAY:
        raise ValueError("--shard: expected --engine local; Ray shares the images itself")
    if bulk.actors is not None and engine != RAY:
        raise ValueError("--actors needs --engine ray")
    extra = "ray" if engine == RAY else "bulk"
    for package in ("ray", "pyarrow") if engine == RAY else ("pyarrow",):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed: {install_command(extra)}")


def check_segment_prompts(prompts: SegmentPrompts, *, has_generator_options: bool) -> None:
    """Check the prompts of `segment` as far as that needs no image.

    Raises:
        ValueError: A prompt has the wrong form, or options exclude each other.
    """
    for text in prompts.box or ():
        parse_numbers(text, 4, "--box", "x0,y0,x1,y1")
    labels = [parse_point(text, "--point")[2] for text in prompts.point or ()]
    for text in prompts.points or ():
        own = [parse_point(point, "--points")[2] for point in text.split(";")]
        if not any(own):
            raise ValueError(f"--points needs a foreground point, got {text!r}")
        labels += own
    objects = bool(prompts.box or prompts.mask or any(labels))
    elsewhere = prompts.prompt_file is not None or prompts.detections is not None
    if prompts.everything and (objects or labels or elsewhere):
        raise ValueError("give --everything or prompts, not both")
    if labels and not objects:
        raise ValueError("--point x,y,0 is a background point; give a box, a mask or a foreground point too")
    if objects and elsewhere:
        raise ValueError("give prompts for every image, or --prompts or --detections, not both")
    if prompts.prompt_file is not None and prompts.detections is not None:
        raise ValueError("give --prompts or --detections, not both")
    if not prompts.everything and has_generator_options:
        raise ValueError("--points-per-side, --pred-iou and --stability need --everything")
