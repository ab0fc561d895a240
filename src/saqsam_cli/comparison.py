"""What `compare` does, and the tables it prints."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saqsam.data.datasets import Dataset
from saqsam.evaluate import EverythingTask, Task
from saqsam.evaluate.compare import Comparison, Interval, TaskDifference, compare
from saqsam.evaluate.memory import prompts_within
from saqsam.evaluate.ranks import process_group, rank
from saqsam.evaluate.run import Subject
from saqsam.output import check_file_writable, write_png
from saqsam.runtimes import RUNTIMES, TORCH_INTEGER
from saqsam.side_by_side import draw_side_by_side
from saqsam.store import parse_size
from saqsam_cli.evaluation import make_tasks
from saqsam_cli.opening import open_labelled, open_model, write_json
from saqsam_cli.options import EvaluationOptions
from saqsam_cli.tables import METRIC_NAMES, figure, print_left_out
from saqsam_cli.terminal import bar, busy, out, progress_bars, result_table, say

WORST = 5
"""Images that are listed."""
DRAWN = 3
"""Images that are drawn of each model."""
AT = "@"


@dataclass(frozen=True)
class Named:
    """A model of the comparison.

    Attributes:
        letter: What tables call it: A, B, ...
        model: As the command line has it.
        recipe: The name of its recipe, or `float`.
    """

    letter: str
    model: str
    recipe: str


def compare_models(
    models: Sequence[str],
    options: EvaluationOptions,
    *,
    json_file: Path | None,
    picture: Path | None,
    device: str,
    threads: int | None,
) -> None:
    """Score models on the same images, and say how they differ from the first."""
    for path in (json_file, picture):
        if path is not None:
            check_file_writable(path)
    memory = parse_size(options.memory)
    dataset = open_labelled(options.data, "--data", options.limit)
    tasks = make_tasks(options, dataset, keep_masks=True)
    if picture is not None and isinstance(tasks[0], EverythingTask):
        raise ValueError(
            "--out: of masks of everything nothing says which belong together, so none are drawn"
        )
    named, subjects = [], []
    for number, text in enumerate(models):
        model, runtime = split_runtime(text)
        sam, processor, recipe = open_model(model, device, runtime, threads)
        named.append(Named(_letter(number), text, recipe))
        subjects.append(Subject(sam, processor, prompts_within(memory, processor)))
    unfinished = None if json_file is None else json_file.with_name(f"{json_file.name}.unfinished")
    with process_group(), progress_bars() as bars:
        is_first = rank() == 0
        found = compare(
            subjects,
            dataset,
            tasks,
            limit=options.limit,
            unfinished=unfinished,
            workers=options.workers,
            progress=bar(bars, f"comparing on {dataset.name}") if is_first else None,
        )
    if not is_first:
        return
    print_comparison(found, named)
    if json_file is not None and unfinished is not None:
        write_json(json_file, comparison_dict(found, named))
        shutil.rmtree(unfinished, ignore_errors=True)
    if picture is not None:
        _draw(found, named, tasks[0], dataset, picture)


def split_runtime(text: str) -> tuple[str, str | None]:
    """`MODEL@RUNTIME` as both; anything else is a model whose runtime follows from what it is."""
    model, at, runtime = text.rpartition(AT)
    return (model, runtime) if at and runtime in (*RUNTIMES, "torch", TORCH_INTEGER) else (text, None)


def comparison_dict(found: Comparison, named: Sequence[Named]) -> dict[str, Any]:
    """All figures as plain values: those of each model, and of each against the first; no masks."""
    first = found.evaluations[0]
    return {
        "data": {"name": first.dataset, "images": first.images},
        "models": [
            {"letter": model.letter, "model": model.model, "recipe": model.recipe, "metrics": result.metrics}
            for model, result in zip(named, found.evaluations, strict=True)
        ],
        "options": first.options,
        "skipped": first.skipped,
        "notes": first.notes,
        "differences": [
            {"first": named[0].letter, "other": model.letter, "tasks": [d.to_dict() for d in differences]}
            for model, differences in zip(named[1:], found.differences, strict=True)
        ],
    }


def print_comparison(found: Comparison, named: Sequence[Named]) -> None:
    """Figures of all models, their differences to the first, and where the others lost most."""
    first = found.evaluations[0]
    for model in named:
        say(f"{model.letter}  {model.model} ({model.recipe})")
    say(f"on {first.dataset}, {first.images} images")
    for number, (task, metrics) in enumerate(first.metrics.items()):
        table = result_table(task, *(model.letter for model in named), right=len(named))
        for name in metrics:
            values = (result.metrics[task][name] for result in found.evaluations)
            table.add_row(METRIC_NAMES.get(name, name), *(figure(value) for value in values))
        out.print(table)
        differences = [of_model[number] for of_model in found.differences]
        _print_differences(differences, named)
        for model, difference in zip(named[1:], differences, strict=True):
            _print_worst(difference, named[0], model)
    print_left_out(first.skipped, first.notes)


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
    out.print(table)
    one = differences[0]
    if one.difference is not None:
        say(
            f"change: mean {one.compared}, {one.objects} objects in {len(one.images)} images; intervals over draws of "
            "images"
        )


def interval_text(interval: Interval | None) -> tuple[str, str]:
    """A change and its interval as tables show them."""
    if interval is None:
        return "-", "-"
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+.4f}", "-"
    return f"{interval.mean:+.4f}", f"{interval.low:+.4f} to {interval.high:+.4f}"


def _print_worst(difference: TaskDifference, first: Named, other: Named) -> None:
    losses = [image for image in difference.images[:WORST] if image.difference < 0]
    if not losses:
        return
    headings = ("objects", first.letter, other.letter, "change")
    table = result_table(f"{other.letter} lost most on", *headings, right=4)
    for image in losses:
        means = f"{image.first:.4f}", f"{image.other:.4f}"
        table.add_row(image.file_name, str(image.objects), *means, f"{image.difference:+.4f}")
    out.print(table)


def _draw(found: Comparison, named: Sequence[Named], task: Task, dataset: Dataset, path: Path) -> None:
    """The images that the second model lost most on, in the first task."""
    difference = found.differences[0][0]
    if not difference.images or difference.agreement is None:
        raise ValueError(f"--out: task {task.name} has no masks to draw")
    chosen = {image.index: image.file_name for image in difference.images[:DRAWN]}
    names = (named[0].letter, named[1].letter)
    with busy("drawing"):
        first, other, *_ = found.evaluations
        write_png(path, draw_side_by_side(dataset, task, difference, first, other, chosen, names=names))
    say(f"picture: {path}")


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"M{number + 1}"
