"""Measure the cost of quantization, phase by phase: whole runs from sam-mini to SAM-H, and steps of SAM-B.

    python benchmarks/ptq_cost.py --subjects sam-mini sam-mini-plus demo
    python benchmarks/ptq_cost.py --subjects sam-b-plus          # 21 minutes; an interrupted run resumes
    python benchmarks/ptq_cost.py --device cuda --subjects sam-b-plus sam-b

Rows in results/ptq_cost.csv that are there are not measured again on the same machine.

- `demo`, `sam-mini`, `sam-mini-plus`: `saq-sam-plus` at the effort `quick`, `saq-sam` and `saq-sam-plus` at `standard`,
  of the bundled model at w4a4, calibrated on 32 scenes.
- `sam-b-plus`, `sam-l-plus`, `sam-h-plus`: `saq-sam-plus` w4a4 at `standard`, of a model with random weights,
  calibrated on 32 scenes of 1024 px.
- `sam-h-mse`, `sam-h-export`: `mse` w4a8 `--deploy` of a SAM-H with random weights and one image, and its export to
  ONNX, by the command line.
- `sam-b`: seconds per step of each unit of a SAM-B with random weights and 16 prompts, for SAQ-SAM's stages and for
  plain blocks, and the published numbers of steps times these. On a GPU in both precisions.

Peak memory is that of a process of its own; on a GPU, that of its tensors.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

import saqsam
from memory import max_rss_gib, peak_gib
from options import add_out
from plain_rows import append_plain, read_plain
from plan import CACHE, sources_hash, stamp
from ptq import exit_code
from random_models import random_sam, random_sam_b
from rows import RESULTS
from saqsam.models.processing import build_processor
from saqsam.ptq.calibration_data import CALIBRATION_SCENES_SEED, calibration_scenes
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Precision
from saqsam.utils.atomic_write import atomic_folder, write_atomic

OUT = RESULTS / "ptq_cost.csv"
COLUMNS = (
    "date",
    "commit",
    "torch",
    "machine",
    "subject",
    "recipe",
    "what",
    "seconds",
    "steps",
    "peak_gib",
    "ratio",
)
PAPER_STEPS = {"stage": 2000, "block": 20_000}
STEPS = 3
IMAGES = 32

Rows = list[dict[str, object]]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Measure what quantization costs.")
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--device", default="cpu")
    add_out(parser, OUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    return exit_code(lambda: measure(options.subjects, options.device, options.out))


def measure(subjects: Sequence[str], device: str, out: Path) -> None:
    """Append the rows of subjects that are not yet measured on this machine, each measured in its own process."""
    conditions = stamp(device, COLUMNS)
    for subject in subjects:
        known = {(row["subject"], row["machine"]) for row in read_plain(out)}
        if (subject, conditions["machine"]) in known:
            print(f"{subject}: is in {out.name}")
        elif len(subjects) > 1:
            own = ["--subjects", subject, "--device", device, "--out", str(out)]
            subprocess.run([sys.executable, __file__, *own], check=True)
        else:
            rows = SUBJECTS[subject](device)
            append_plain(out, COLUMNS, [{**conditions, "subject": subject, **row} for row in rows])
            shutil.rmtree(run_folder(subject, device), ignore_errors=True)
            for row in rows:
                print(subject, row, flush=True)


def run_folder(name: str, device: str) -> Path:
    """Return the folder of what a run keeps, of the package and the scripts that make it as they are."""
    scripts = Path(__file__), Path(__file__).with_name("random_models.py")
    return CACHE / "ptq_cost" / f"{name}-{torch.device(device).type}-{sources_hash(*scripts)}"


class Phases:
    """Progress callback that records the seconds of each phase and of each of its steps.

    Args:
        file: File that keeps the seconds of finished phases, for a run that is interrupted and resumed.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.steps: dict[str, list[float]] = {}
        self._finished: dict[str, float] = {}
        if file is not None and file.is_file():
            self._finished = json.loads(file.read_text(encoding="utf-8"))

    def __call__(self, what: str, done: int, total: int, note: str = "", /) -> None:
        """Add the time since the last call to a phase."""
        now = time.perf_counter()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self._last
        if done:  # the first report announces the phase
            self.steps.setdefault(what, []).append(now - self._last)
        self._last = now
        if done == total:
            # The phases before reconstruction are run again when a run is resumed.
            longest = max(self.seconds[what], self._finished.get(what, 0.0))
            self._finished[what] = longest
            if self._file is not None:
                write_atomic(self._file, json.dumps(self._finished).encode())

    @property
    def finished(self) -> dict[str, float]:
        """Seconds of each phase, of the run that took longest for it."""
        return self._finished


def measure_mini(device: str, method: str, effort: str) -> Rows:
    """Measure the seconds of each phase of a method on the bundled model."""
    model, processor = saqsam.load("sam-mini", device=device)
    recipe = saqsam.recipe_for(method, "w4a4", effort)
    phases = Phases()
    saqsam.quantize(model, processor, recipe, calibration_scenes(IMAGES, seed=0), progress=phases)
    return _phase_rows(recipe, phases, device)


def measure_large(device: str, variant: str) -> Rows:
    """Measure a whole run of `saq-sam-plus` on a model with random weights; an interrupted run is resumed."""
    model = random_sam(variant).to(device)
    processor = build_processor(model.config)
    recipe = saqsam.recipe_for("saq-sam-plus", "w4a4", "standard")
    folder = run_folder(f"sam-{variant}-plus", device)
    folder.mkdir(parents=True, exist_ok=True)
    phases = Phases(folder / "phases.json")
    saqsam.quantize(
        model,
        processor,
        recipe,
        calibration_scenes(IMAGES, seed=0),
        resume_dir=folder / "steps",
        progress=phases,
    )
    return _phase_rows(recipe, phases, device)


def _phase_rows(recipe: Recipe, phases: Phases, device: str) -> Rows:
    total = sum(phases.finished.values())
    rows: Rows = [
        {
            "recipe": recipe.name,
            "what": what,
            "seconds": round(seconds, 2),
            "ratio": round(seconds / total, 4),
        }
        for what, seconds in phases.finished.items()
    ]
    whole = {"recipe": recipe.name, "what": "total", "seconds": round(total, 2), "ratio": 1.0}
    return [*rows, {**whole, "peak_gib": _peak_gib(device)}]


def _peak_gib(device: str) -> float:
    """Return the peak memory so far: of the process, or of the tensors on a GPU."""
    if torch.device(device).type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    return peak_gib()


def measure_command(device: str, command: str) -> Rows:
    """Measure `saqsam quantize` of a SAM-H, or `saqsam export` of its checkpoint, as a whole command."""
    folder = run_folder("sam-h", device)
    # A process that this one starts counts this one's memory as its own: large models are made elsewhere.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(make_inputs, folder, device, command).result()
    seconds, peak = run_measured(command_line(folder, device, command))
    return [
        {
            "recipe": "mse-w4a8-deploy",
            "what": command,
            "seconds": round(seconds, 1),
            "peak_gib": peak,
        }
    ]


def make_inputs(folder: Path, device: str, command: str) -> None:
    """Write what a command reads, unless it is there: a float SAM-H, and for an export its checkpoint."""
    if not (folder / "float").is_dir():
        with atomic_folder(folder / "float") as partial:
            random_sam("h").save_pretrained(partial)
    if command == "export" and not (folder / "mse").is_dir():
        subprocess.run(command_line(folder, device, "quantize"), check=True)


def command_line(folder: Path, device: str, command: str) -> list[str]:
    """Return the command line of `saqsam quantize` or `saqsam export`."""
    quantize = ["--method", "mse", "--bits", "w4a8", "--deploy", "--images", "1", "--device", device]
    arguments = {
        "quantize": [folder / "float", "--out", folder / "mse", *quantize],
        "export": [folder / "mse", "--out", folder / "onnx"],
    }[command]
    return [sys.executable, "-m", "saqsam", command, *map(str, arguments), "--overwrite"]


def run_measured(command: Sequence[str]) -> tuple[float, float]:
    """Run a command, and return its seconds and its peak memory in GiB, whatever other children have taken.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - start, max_rss_gib(usage)


def measure_steps(device: str) -> Rows:
    """Measure the seconds per step of each unit of a SAM-B with random weights."""
    model = random_sam_b().to(device)
    processor = build_processor(model.config)
    data = saqsam.open_dataset("scenes", limit=1, seed=CALIBRATION_SCENES_SEED)
    rows: Rows = []
    for unit, label, recipe in _learned_variants(device):
        phases = Phases()
        if torch.device(device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        saqsam.quantize(model, processor, recipe, data, progress=phases)
        projected = 0.0
        for what, steps in phases.steps.items():
            if "/" not in what:
                continue
            seconds = statistics.median(steps[1:])
            count = PAPER_STEPS[unit] * (5 if what.endswith("final attention") and unit == "stage" else 1)
            projected += seconds * count
            rows.append({"recipe": label, "what": what, "seconds": round(seconds, 3), "steps": count})
        total = {"recipe": label, "what": "projected total", "seconds": round(projected)}
        rows.append({**total, "peak_gib": _peak_gib(device)})
    return rows


def _learned_variants(device: str) -> Iterator[tuple[str, str, Recipe]]:
    """Return unit, label and recipe of each measurement of steps."""
    on_cpu = torch.device(device).type == "cpu"
    precisions: tuple[Precision, ...] = ("float32",) if on_cpu else ("float32", "bfloat16")
    for unit, method in (("stage", "saq-sam"), ("block", "brecq")):
        for precision in precisions:
            recipe = _few_steps(saqsam.recipe_for(method, "w4a4", "standard"), precision)
            yield unit, recipe.name if on_cpu else f"{recipe.name}, {precision}", recipe


def _few_steps(recipe: Recipe, precision: Precision) -> Recipe:
    assert recipe.reconstruction is not None
    learned = dataclasses.replace(
        recipe.reconstruction, steps=STEPS, final_steps=1, prompts=16, precision=precision
    )
    return dataclasses.replace(
        recipe, reconstruction=learned, calibration=dataclasses.replace(recipe.calibration, images=1)
    )


SUBJECTS: dict[str, Callable[[str], Rows]] = {
    "demo": partial(measure_mini, method="saq-sam-plus", effort="quick"),
    "sam-mini": partial(measure_mini, method="saq-sam", effort="standard"),
    "sam-mini-plus": partial(measure_mini, method="saq-sam-plus", effort="standard"),
    "sam-b-plus": partial(measure_large, variant="b"),
    "sam-l-plus": partial(measure_large, variant="l"),
    "sam-h-plus": partial(measure_large, variant="h"),
    "sam-h-mse": partial(measure_command, command="quantize"),
    "sam-h-export": partial(measure_command, command="export"),
    "sam-b": measure_steps,
}


if __name__ == "__main__":
    sys.exit(main())
