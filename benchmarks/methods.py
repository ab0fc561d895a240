"""Compare the methods and ablate SAQ-SAM: rows in results/GROUP.csv; an interrupted run resumes.

    python benchmarks/methods.py                      # all groups, in the order of GROUPS
    python benchmarks/methods.py --groups ablation

    python benchmarks/methods.py --jobs 2             # experiments side by side, one thread each

All methods that learn get the same number of optimizer steps in all, whatever their units; `saq-sam-plus` takes the
fewer of its default. Calibrated on 32 images of `coco_train` with box prompts, evaluated with box prompts and, on
`coco_val`, with the boxes of a detector. Each row is made by `ptq.py`, from a checkpoint reloaded from disk. All groups
except `methods` hold variants of its rows; `substitutions` also holds the unchanged methods, so that its differences
are of one machine. `outliers` is of `sam-mini-outliers`, which `outlier_twin.py` makes on demand; `sam2` is of
`sam2-mini`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ptq
from deploy_fields import SUBSTITUTIONS
from options import add_jobs, parse_arguments
from outlier_twin import cached_twin
from rows import FILL_BOX, FLOAT, RESULTS

DATA = ("coco_val", "nuclei_val", "aerial_val")
FEW_DATA = DATA[:2]
"""For runs that compare many settings."""
MAIN = ("saq-sam-plus", "saq-sam", "saq-sam-s", "ptq4sam", "ptq4sam-s", "qdrop", "mse")
"""Methods that are measured at every width."""
METHODS = (*MAIN, "brecq", "percentile", "min-max")
"""All methods but `RIVALS`. The last three are far behind and measured at 4 bits with one seed, and on `sam2-mini`."""
RIVALS = ("car-sam", "ahcptq", "erq", "gptq", "adalog", "repq-vit", "car-sam-s", "ahcptq-s")
"""Recent methods that are measured at 4 bits, with one seed."""
BITS = ("w4a4", "w6a6", "w8a8", "w4a8")
SEEDS = {"w4a4": (0, 1, 2), "w6a6": (0, 1, 2)}
TOTAL_STEPS = 2400
PLUS_STEPS = 400
"""Steps of `saq-sam-plus` at the effort `standard`."""
CURVE = (150, 1000, 400)

OUTLIER_METHODS = ("mse", "ptq4sam-s", "saq-sam-s", "saq-sam", "saq-sam-plus")
TWIN_GROUP = "outliers"
SAM2_GROUP = "sam2"
SAM2_MODEL = "sam2-mini"

ROW_SCALED = ("equalized=true", "probabilities.scale=row")
# Each line adds to or changes the parts of SAQ-SAM, or what goes beyond it: method and settings.
ABLATION: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("mse", ("clipping=default",)),
    ("ptq4sam-s", ("bimodal=false",)),
    ("ptq4sam-s", ("dynamic_queries=true",)),
    ("ptq4sam-s", ROW_SCALED),
    ("ptq4sam-s", (*ROW_SCALED, "overrides.encoder.activations=8")),
    ("ptq4sam-s", (*ROW_SCALED, "overrides.decoder.activations=8")),
    ("ptq4sam-s", (*ROW_SCALED, "overrides.decoder.image_to_token.activations=8")),
    ("saq-sam-s", ("clipping.measure=output",)),
    ("saq-sam", ("clipping=none",)),
    ("saq-sam", ("reconstruction.unit=block",)),
    ("saq-sam", ("reconstruction.loss=output",)),
    ("saq-sam", ("reconstruction.target=quantized",)),
    ("saq-sam", ("reconstruction.loss=mask",)),
    ("saq-sam-plus", ("dynamic_queries=false",)),
    ("saq-sam-plus", ("separate_positions=false",)),
    ("saq-sam-plus", ("input_scales=false",)),
    ("saq-sam-plus", ("clipping=none",)),
    ("saq-sam-plus", ("clipping.measure=focus",)),
    ("saq-sam-plus", ("reconstruction.affine=false",)),
    ("saq-sam-plus", ("compensation=none",)),
    ("saq-sam-plus", ("compensation.layers=decoder",)),
    ("saq-sam-plus", ("compensation.rounding=false",)),
    ("saq-sam-plus", ("compensation.inputs=false",)),
    ("saq-sam-plus", ("compensation.queries=true",)),
    ("saq-sam-plus", ("reconstruction=none",)),
    ("saq-sam-plus", ("reconstruction.decoder_steps=1.0",)),
)


@dataclass(frozen=True)
class Experiment:
    """One checkpoint and the data it is evaluated on."""

    method: str
    bits: str
    seed: int = 0
    calibration: str = "coco_train"
    settings: tuple[str, ...] = ()
    data: tuple[str, ...] = DATA
    total_steps: int | None = None
    detections: bool = True

    def arguments(self) -> list[str]:
        """Return the command-line arguments of `ptq.py`."""
        arguments = [
            "--methods",
            self.method,
            "--bits",
            self.bits,
            "--seed",
            str(self.seed),
            "--data",
            *self.data,
        ]
        steps = self.total_steps or (PLUS_STEPS if self.method == "saq-sam-plus" else TOTAL_STEPS)
        arguments += ["--calibration", self.calibration, "--total-steps", str(steps)]
        if not self.detections:
            arguments += ["--detections", "0"]
        for setting in self.settings:
            arguments += ["--set", setting]
        return arguments


def methods() -> Iterator[Experiment]:
    """Return the runs of every method: the first seed at every width, then two more where methods differ.

    The boxes of the detector, two thirds of the prompts of `coco_val`, are scored where methods differ, with one seed.
    """
    for method in METHODS:
        yield Experiment(method, "w4a4", data=("scenes", *DATA), detections=method in MAIN)
    for method in RIVALS:
        yield Experiment(method, "w4a4", detections=False)
    for bits in BITS[1:]:
        for method in MAIN:
            yield Experiment(method, bits, detections=bits in SEEDS)
    for bits, seeds in SEEDS.items():
        for seed in seeds[1:]:
            for method in MAIN:
                yield Experiment(method, bits, seed, detections=False)


def ablation() -> Iterator[Experiment]:
    """Return the ablation of SAQ-SAM at the hardest bits."""
    for method, settings in ABLATION:
        yield Experiment(method, "w4a4", settings=settings, data=FEW_DATA, detections=False)


def shift() -> Iterator[Experiment]:
    """Return the runs that calibrate on another domain, in both directions."""
    for method in ("mse", "ptq4sam-s", "ptq4sam", "saq-sam-s", "saq-sam", "saq-sam-plus"):
        yield Experiment(method, "w4a4", calibration="nuclei_train", data=FEW_DATA, detections=False)


def steps() -> Iterator[Experiment]:
    """Return the runs of every method that learns, over the number of learning steps and so over time."""
    for count in CURVE:
        for method in ("saq-sam-plus", "ptq4sam", "qdrop", "brecq"):
            yield Experiment(method, "w4a4", data=("coco_val",), total_steps=count, detections=False)


def precision() -> Iterator[Experiment]:
    """Return the runs that learn in bfloat16, at few bits and at 8 bits, the precision of bfloat16 itself."""
    for method, bits in (("saq-sam", "w4a4"), ("saq-sam-plus", "w8a8")):
        yield Experiment(method, bits, settings=("reconstruction.precision=bfloat16",), detections=False)


def substitutions() -> Iterator[Experiment]:
    """Return the ablation of `--deploy`, one dataset after another, so that each is complete early."""
    for data in FEW_DATA:
        for bits in ("w8a8", "w4a8"):
            for settings in SUBSTITUTIONS.values():
                yield Experiment("mse", bits, settings=settings, data=(data,), detections=False)


def outliers() -> Iterator[Experiment]:
    """Return the runs on the model with planted outliers, of methods with and without clipping."""
    yield Experiment(FLOAT, "w4a4", data=("coco_val",))
    for bits, seeds in SEEDS.items():
        for seed in seeds:
            for method in OUTLIER_METHODS:
                yield Experiment(method, bits, seed, data=("coco_val",))


def sam2() -> Iterator[Experiment]:
    """Return the runs of ten methods on `sam2-mini`, the small SAM 2.1: two seeds where methods differ."""
    yield Experiment(FLOAT, "w4a4", data=("coco_val",))
    for bits in ("w8a8", "w4a8"):
        for method in ("mse", "saq-sam-plus"):
            yield Experiment(method, bits, data=("coco_val",))
    for seed in (0, 1):
        for bits in ("w4a4", "w6a6"):
            for method in METHODS:
                yield Experiment(method, bits, seed, data=("coco_val",))


GROUPS = {
    "methods": methods,
    "ablation": ablation,
    "shift": shift,
    "steps": steps,
    "precision": precision,
    "substitutions": substitutions,
    TWIN_GROUP: outliers,
    SAM2_GROUP: sam2,
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options that do not go to `ptq.py`."""
    parser = argparse.ArgumentParser(
        description="Compare the methods; more options are those of ptq.py.", allow_abbrev=False
    )
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    add_jobs(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. Options that are not its own go to `ptq.py`."""
    options, others = parser().parse_known_args(arguments)
    ptq_options = parse_arguments(others)  # before any work
    if options.jobs < 1:
        parser().error(f"--jobs must be 1 or more, got {options.jobs}")
    reference = ["--methods", FILL_BOX, FLOAT, "--data", "scenes", *DATA]
    plans = [("methods", reference)]
    plans += [(name, experiment.arguments()) for name in options.groups for experiment in GROUPS[name]()]
    calls = [["--out", str(RESULTS / f"{group}.csv"), *plan, *others] for group, plan in plans]
    models = {SAM2_GROUP: SAM2_MODEL}
    if TWIN_GROUP in options.groups:
        models[TWIN_GROUP] = str(cached_twin(ptq_options.data_root))
    for (group, _), call in zip(plans, calls, strict=True):
        if group in models:
            call += ["--model", models[group], "--detections", "0"]
    return run_calls(calls, options.jobs)


def run_calls(calls: Sequence[Sequence[str]], jobs: int) -> int:
    """Run `ptq.py` with each list of arguments, several at a time with one thread each, and return the exit code."""
    if jobs == 1:
        return next((code for code in map(ptq.main, calls) if code), 0)
    # Processes, since each experiment sets threads and seeds of its own; rows are appended whole, by whichever ends.
    command = [sys.executable, str(Path(ptq.__file__)), "--threads", "1"]
    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(lambda call: subprocess.run([*command, *call], check=False).returncode, calls))
    # A process that a signal has ended has the negative number of the signal.
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
