"""Every task for float and quantized models: rows in results/tasks.csv, one row per metric; an interrupted run resumes.

    python benchmarks/tasks.py                               # all models on all cases
    python benchmarks/tasks.py --methods mse --bits w4a4     # fewer

Checkpoints are made as `ptq.py` makes them, on 32 images of `coco_train`, and each is evaluated as reloaded from disk.
What takes long is measured on the first images of a data set; how many stands in the row.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import saqsam
from options import add_cache, add_data_root, add_machine, add_model, add_out, plan_options
from plain_rows import append_plain, read_plain
from plan import Plan, make_plan
from ptq import bar, exit_code, make_subject
from rows import FLOAT, RESULTS
from saqsam.cli.terminal import progress_bars
from saqsam.data.detections import load_detections
from saqsam.data.open import SCENES
from saqsam.data.simulated_detections import SimulatedDetections
from saqsam.data.simulated_labels import SimulatedLabels
from saqsam.data.types import Dataset
from saqsam.evaluation import EverythingTask, InstanceTask, OrientedTask, PromptTask, SemanticTask, Task
from saqsam.inference.mask_generator import GeneratorOptions
from saqsam.recipes.methods import METHODS as QUANTIZERS

OUT = RESULTS / "tasks.csv"
COLUMNS = (
    *("date", "commit", "torch", "machine", "model", "model_hash", "method", "bits", "checkpoint"),
    *("case", "task", "options", "data", "images", "metric", "value"),
)
METHODS = (FLOAT, "mse", "saq-sam", "saq-sam-plus")
BITS = ("w6a6", "w4a4")
TOTAL_STEPS = 2400
MOST_DETECTIONS = 20
GRID = 16
"""Points along each side for automatic masks: a quarter of the points of the official default."""


@dataclass(frozen=True)
class Case:
    """A task on data.

    Attributes:
        name: Of the rows.
        make: The task, from the data set and the folder that it lies in.
        data: Names of data sets and how many images of each; None for all.
    """

    name: str
    make: Callable[[Dataset, Path], Task]
    data: dict[str, int | None]


def _detector(dataset: Dataset, folder: Path) -> Task:
    return InstanceTask(load_detections(folder / "detections_picodet.json", dataset).best(MOST_DETECTIONS))


def _generator() -> GeneratorOptions:
    # sam-mini rates its masks lower than the models that the official thresholds fit.
    return GeneratorOptions(points_per_side=GRID, pred_iou_thresh=0.2, stability_score_thresh=0.3)


CASES = (
    Case(
        "box",
        lambda *_: PromptTask("box"),
        {SCENES: 50, "coco_val": None, "nuclei_val": 30, "aerial_val": None},
    ),
    Case(
        "point",
        lambda *_: PromptTask("point"),
        {SCENES: 50, "coco_val": 75, "nuclei_val": 15, "aerial_val": 75},
    ),
    Case(
        "clicks",
        lambda *_: PromptTask("clicks"),
        {SCENES: 20, "coco_val": 30, "nuclei_val": 8, "aerial_val": 40},
    ),
    Case("instance", _detector, {"coco_val": None}),
    Case("oriented", lambda *_: OrientedTask(SimulatedDetections()), {"aerial_val": None}),
    Case(
        "everything", lambda *_: EverythingTask(_generator()), {SCENES: 10, "coco_val": 20, "nuclei_val": 8}
    ),
    Case("semantic", lambda *_: SemanticTask(SimulatedLabels(), _generator()), {SCENES: 10, "coco_val": 20}),
)


def run(plan: Plan, cases: Sequence[Case], root: Path, out: Path) -> None:
    """Measure what is missing."""
    measured = [row for row in read_plain(out) if row["model_hash"] == plan.model.hash]
    known = {(row["method"], row["bits"], row["case"], row["data"], row["images"]) for row in measured}
    with progress_bars() as bars:
        for method, bits in plan.variants():
            missing = [
                (case, name, limit)
                for case in cases
                for name, limit in case.data.items()
                if (method, bits, case.name, name, str(_count(root, name, limit))) not in known
            ]
            if not missing:
                continue
            subject = make_subject(plan, method, bits, bars)
            assert subject.model is not None
            for case, name, limit in missing:
                dataset = _open(root, name, limit)
                task = case.make(dataset, root / name)
                start = time.perf_counter()
                with bar(bars, f"{method} {bits} {case.name} {name}") as step:
                    result = saqsam.evaluate(*subject.model, dataset, tasks=[task], progress=step)
                stamp = {
                    "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    **{column: plan.circumstances[column] for column in ("commit", "torch", "machine")},
                    **{"model": plan.model.name, "model_hash": plan.model.hash},
                    **{"method": method, "bits": bits, "checkpoint": subject.columns["checkpoint"]},
                    **{"case": case.name, "task": task.name, "data": name, "images": len(dataset)},
                    "options": json.dumps(task.options(), sort_keys=True),
                }
                metrics = result.metrics[task.name].items()
                append_plain(
                    out,
                    COLUMNS,
                    [
                        {
                            **stamp,
                            "metric": metric,
                            "value": value if isinstance(value, int) else f"{value:.6f}",
                        }
                        for metric, value in metrics
                        if value is not None
                    ],
                )
                seconds = time.perf_counter() - start
                bars.console.print(
                    f"{method} {bits} {case.name} on {name}: {len(dataset)} images, {seconds:.0f} s"
                )


def _open(root: Path, name: str, limit: int | None) -> Dataset:
    return saqsam.open_dataset(SCENES if name == SCENES else root / name, limit=limit)


def _count(root: Path, name: str, limit: int | None) -> int:
    return len(_open(root, name, None)) if limit is None else limit


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description="Measure every task.", allow_abbrev=False)
    parser.add_argument(
        "--cases", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument(
        "--methods", nargs="+", choices=[FLOAT, *QUANTIZERS], default=list(METHODS), metavar="METHOD"
    )
    parser.add_argument("--bits", nargs="+", default=list(BITS), metavar="wXaY")
    add_model(parser)
    add_data_root(parser)
    add_machine(parser)
    add_out(parser, OUT)
    add_cache(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    of_plan = plan_options(options, data=[SCENES], total_steps=TOTAL_STEPS)
    cases = [case for case in CASES if case.name in options.cases]
    return exit_code(lambda: run(make_plan(of_plan), cases, options.data_root, options.out))


if __name__ == "__main__":
    sys.exit(main())
