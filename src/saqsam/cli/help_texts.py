"""Help texts that several commands share; those on tasks and runtimes come from their registries."""

from __future__ import annotations

from collections.abc import Iterable

from saqsam.evaluation.registry import TASKS
from saqsam.runtimes.registry import RUNTIMES


def alternatives(names: Iterable[str]) -> str:
    """Return names as a list that ends in "or"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def described(summaries: Iterable[tuple[str, str]]) -> str:
    """Return names with their summaries in parentheses, separated by commas."""
    return ", ".join(f"{name} ({summary})" for name, summary in summaries)


def runtime_devices() -> str:
    """List the devices of each runtime that has a choice, for help texts."""
    return ", ".join(f"{alternatives(r.devices)} in {r.name}" for r in RUNTIMES.values() if r.devices)


def default_tasks() -> str:
    """List the tasks that run by default, and those that an option implies."""
    names = " and ".join(entry.name for entry in TASKS.values() if entry.is_default)
    implied = [f"{e.name} too with --{e.implied_by}" for e in TASKS.values() if e.implied_by is not None]
    return "; ".join([names, *implied])


_FLOAT_MODELS = "sam-mini, sam2-mini, a transformers folder, a Hub model ID, or an official checkpoint file"
FLOAT_MODEL_HELP = f"Float model: {_FLOAT_MODELS}."
TORCH_MODEL_HELP = f"Packed checkpoint, or a float model: {_FLOAT_MODELS}."
MODEL_HELP = f"Packed checkpoint, exported folder, or a float model: {_FLOAT_MODELS}."
DATA_HELP = (
    "scenes (generated images); a folder with images/ and annotations.json (COCO format), labelTxt/ (DOTA) or masks/ "
    "(pairs); an image folder of a COCO root, such as ROOT/val2017; an annotation file of COCO or LVIS; for task "
    "semantic also the root of ADE20K."
)
IGNORE_LABEL_HELP = "value of mask pixels that do not count; auto: 255 in masks of 0, 1 and 255."
