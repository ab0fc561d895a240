"""Implementation of `saqsam compare`, with the tables it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saqsam.cli import reporting
from saqsam.cli.inputs import json_bytes, open_labeled, open_model
from saqsam.cli.options import EvaluationOptions
from saqsam.cli.outputs import claim_optional
from saqsam.cli.progress import busy, progress_phases
from saqsam.cli.result_tables import metric_text, print_skipped, scored_on
from saqsam.cli.terminal import print_table, result_table, say
from saqsam.data.types import Dataset
from saqsam.evaluation.compare import Comparison, Interval, TaskDifference, compare
from saqsam.evaluation.prompt_batches import prompts_within
from saqsam.evaluation.registry import create_tasks
from saqsam.evaluation.subject import Subject
from saqsam.evaluation.task import Task
from saqsam.runtimes import RUNTIMES, TORCH, TORCH_INTEGER
from saqsam.utils.atomic_write import check_file_writable, png_bytes
from saqsam.utils.progress import renamed
from saqsam.utils.ranks import launched_rank, process_group, rank
from saqsam.utils.sizes import parse_size
from saqsam.viz.side_by_side import draw_side_by_side

WORST = 5
"""Number of images to list."""
DRAWN = 3
"""Number of images to draw."""
AT = "@"


@dataclass(frozen=True)
class Named:
    """A model of the comparison.

    Attributes:
        letter: Its name in tables: A, B, ...
        model: Its name on the command line.
        recipe: Name of its recipe, or `float`.
    """

    letter: str
    model: str
    recipe: str


def compare_models(
    models: Sequence[str],
    options: EvaluationOptions,
    task_options: Mapping[str, Any],
    *,
    json_file: Path | None,
    picture: Path | None,
    device: str,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Score models on the same images, and compare each with the first."""
    reporting.current().errors_may_differ = True
    for path in (json_file, picture):
        if path is not None:
            check_file_writable(path)
    memory = parse_size(options.memory)
    own = launched_rank()
    with (
        claim_optional(json_file, overwrite=overwrite, rank=own) as results,
        claim_optional(picture, overwrite=overwrite, rank=own) as drawing,
    ):
        dataset = open_labeled(options.data, "--data", options.limit, options.ignore_label)
        tasks = create_tasks(dataset, options.task, keep_masks=True, **task_options)
        if picture is not None and not tasks[0].has_comparable_masks:
            raise ValueError(f"--out: nothing tells which masks of task {tasks[0].name} belong together")
        named, subjects = [], []
        for number, text in enumerate(models):
            model, runtime = split_runtime(text)
            sam, processor, recipe = open_model(model, device, runtime, threads, options.image_size)
            named.append(Named(_letter(number), text, recipe))
            subjects.append(Subject(sam, processor, prompts_within(memory, processor)))
        with process_group(), progress_phases("images") as progress:
            is_first = rank() == 0
            comparison = compare(
                subjects,
                dataset,
                tasks,
                limit=options.limit,
                resume_dir=None if results is None else results.unfinished,
                workers=options.workers,
                progress=renamed(progress, f"comparing on {dataset.name}") if is_first else None,
            )
        if not is_first:
            return
        # Drawn before anything is written: the two files appear one right after the other.
        drawn = None if drawing is None else _draw(comparison, named, tasks[0], dataset)
        if results is not None:
            results.write(json_bytes(comparison_dict(comparison, named)))
        if drawing is not None and drawn is not None:
            drawing.write(drawn)
    print_comparison(comparison, tasks, named, dataset)
    for path, what in ((json_file, "written"), (picture, "picture")):
        if path is not None:
            say(f"{what}: {path}")


def split_runtime(text: str) -> tuple[str, str | None]:
    """Split `MODEL@RUNTIME`; any other text is a model that runs in its default runtime."""
    model, at, runtime = text.rpartition(AT)
    return (model, runtime) if at and runtime in (*RUNTIMES, TORCH, TORCH_INTEGER) else (text, None)


def comparison_dict(comparison: Comparison, named: Sequence[Named]) -> dict[str, Any]:
    """Return metrics of each model and their differences to the first as plain values, without masks."""
    first = comparison.evaluations[0]
    return {
        "data": {"name": first.dataset, "images": first.images},
        "models": [
            {"letter": model.letter, "model": model.model, "recipe": model.recipe, "metrics": result.metrics}
            for model, result in zip(named, comparison.evaluations, strict=True)
        ],
        "options": first.options,
        "skipped": first.skipped,
        "notes": first.notes,
        "differences": [
            {"first": named[0].letter, "other": model.letter, "tasks": [d.to_dict() for d in differences]}
            for model, differences in zip(named[1:], comparison.differences, strict=True)
        ],
    }


def print_comparison(
    comparison: Comparison, tasks: Sequence[Task], named: Sequence[Named], dataset: Dataset
) -> None:
    """Print metrics of all models, their differences to the first, and the images on which the others lost most."""
    first = comparison.evaluations[0]
    for model in named:
        say(f"{model.letter}  {model.model} ({model.recipe})")
    say(f"on {scored_on(first, dataset)}")
    for number, task in enumerate(tasks):
        table = result_table(task.name, *(model.letter for model in named), right=len(named))
        for name in first.metrics[task.name]:
            values = (result.metrics[task.name][name] for result in comparison.evaluations)
            table.add_row(task.metric_labels.get(name, name), *(metric_text(value) for value in values))
        print_table(table)
        differences = [of_model[number] for of_model in comparison.differences]
        _print_differences(differences, named)
        for model, difference in zip(named[1:], differences, strict=True):
            _print_worst(difference, named[0], model)
    print_skipped(first.skipped, first.notes)


def _print_differences(differences: Sequence[TaskDifference], named: Sequence[Named]) -> None:
    letter = named[0].letter
    table = result_table(
        f"against {letter}", "change", "95 % interval", f"IoU with {letter}", ">= 0.9", right=4
    )
    for model, difference in zip(named[1:], differences, strict=True):
        agreement = difference.agreement
        table.add_row(
            model.letter,
            *interval_text(difference.difference),
            "-" if agreement is None else f"{agreement.iou:.4f}",
            "-" if agreement is None else f"{100 * agreement.share_above_90:.1f} %",
        )
    print_table(table)
    one = differences[0]
    if one.difference is not None:
        say(
            f"change: mean {one.compared}, {one.objects} objects in {len(one.images)} images; intervals over draws of "
            "images"
        )


def interval_text(interval: Interval | None) -> tuple[str, str]:
    """Return a change and its interval as tables show them."""
    if interval is None:
        return "-", "-"
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+z.4f}", "-"
    return f"{interval.mean:+z.4f}", f"{interval.low:+z.4f} to {interval.high:+z.4f}"


def _print_worst(difference: TaskDifference, first: Named, other: Named) -> None:
    losses = [image for image in difference.images[:WORST] if image.difference < 0]
    if not losses:
        return
    headings = ("objects", first.letter, other.letter, "change")
    table = result_table(f"{other.letter} lost most on", *headings, right=4)
    for image in losses:
        means = f"{image.first:.4f}", f"{image.other:.4f}"
        table.add_row(image.file_name, str(image.objects), *means, f"{image.difference:+z.4f}")
    print_table(table)


def _draw(comparison: Comparison, named: Sequence[Named], task: Task, dataset: Dataset) -> bytes:
    """Draw the images on which the second model lost most in the first task, as PNG."""
    difference = comparison.differences[0][0]
    if not difference.images or difference.agreement is None:
        raise ValueError(f"--out: task {task.name} has no masks to draw")
    chosen = {image.index: image.file_name for image in difference.images[:DRAWN]}
    names = (named[0].letter, named[1].letter)
    with busy("drawing"):
        first, other, *_ = comparison.evaluations
        return png_bytes(draw_side_by_side(dataset, task, difference, first, other, chosen, names=names))


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"M{number + 1}"
