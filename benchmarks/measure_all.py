"""Measure all accuracy tables of `sam-mini`: one command, for instance after its weights have changed.

    python benchmarks/measure_all.py --jobs 2
    python benchmarks/measure_all.py --steps methods tasks

Each step is a script of this folder that skips what its CSV file already has for these weights, so an interrupted run
resumes. Latency, cost and memory depend on the machine and not on the weights; they are not measured again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from options import add_data_root, add_jobs
from outlier_twin import cached_twin

HERE = Path(__file__).resolve().parent
GROUPS = ("ablation", "steps", "shift", "precision", "substitutions", "outliers")
STEPS = (
    *("methods", "points", "budget", "tasks", "image_size", "deployed", *GROUPS),
    *("ranges", "outlier_errors", "bootstrap", "figures", "tables"),
)
"""Steps in the order in which they run: those that most pages depend on come first."""


def commands(step: str, jobs: int, root: Path) -> list[list[str]]:
    """Return the scripts of a step with their arguments."""
    at_a_time = ["--jobs", str(jobs)]
    if step == "methods" or step in GROUPS:
        return [["methods.py", "--groups", step, *at_a_time]]
    if step == "points":
        data = ["scenes", "coco_val", "nuclei_val", "aerial_val"]
        return [["ptq.py", "--methods", "float", "--prompt", "point", "--data", *data]]
    if step == "ranges":
        return [["ranges.py"], ["ranges.py", "--model", str(cached_twin(root))]]
    more = {
        "budget": ["bit_budget.py", *at_a_time],
        "image_size": ["image_size.py", "--only", "accuracy", "--limit", "50"],
        "deployed": ["deployed.py", "--bits", "w8a8", "w4a8", "--data-root", str(root)],
    }
    return [more.get(step, [f"{step}.py"])]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Measure all accuracy tables of sam-mini; resumes.")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP")
    add_jobs(parser)
    add_data_root(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code of the first step that fails."""
    options = parser().parse_args(arguments)
    if not options.data_root.is_dir():
        parser().error(f"--data-root: there is no folder {options.data_root}")
    environment = {**os.environ, "SAQSAM_DATA": str(options.data_root.resolve())}
    for step in (name for name in STEPS if name in options.steps):
        start = time.monotonic()
        for script, *rest in commands(step, options.jobs, options.data_root):
            print(f"== {step}: {' '.join([script, *rest])}", flush=True)
            code = subprocess.run(
                [sys.executable, str(HERE / script), *rest], env=environment, check=False
            ).returncode
            if code:
                return code
        print(f"== {step}: {(time.monotonic() - start) / 60:.0f} min", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
