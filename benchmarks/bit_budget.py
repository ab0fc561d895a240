"""Measure mixed precision: accuracy over mean bits, of uniform bits, of a wide decoder, and of bits under a budget.

    python benchmarks/bit_budget.py              # rows in results/budget.csv; an interrupted run resumes
    python benchmarks/bit_budget.py --jobs 2

Bits are allocated on the calibration images alone, once for each budget; results/allocations.csv keeps what was chosen.
The checkpoints are those of `ptq.py`, without learning for the whole curve and with the effort `standard` for three
points of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import saqsam
from methods import run_calls
from options import add_data_root, add_jobs, parse_arguments
from plain_rows import append_plain, read_plain
from plan import FloatModel, stamp
from rows import RESULTS
from saqsam.allocation.allocate import WIDTHS, Allocation
from saqsam.models.loading import BUNDLED

METHOD = "saq-sam-plus"
CALIBRATION = "coco_train"
DATA = ("coco_val", "nuclei_val")
WITHOUT_LEARNING = ("reconstruction=none",)
FIXED = ("w4a4-mixed", "w4a4", "w6a6", "w5a5")
CURVE = ("w4.3b,a4.3b", "3.5b", "w4a4-mixed", "w4a4", "w3.5b", "w6a6", "w5a5", "4.5b", "5b")
"""Every point of the curve without learning: `FIXED` bits and budgets, those that say most first."""
LEARNED = ("w4.3b,a4.3b", "w3.5b", "w4a4-mixed")
SUMS = RESULTS / "bit_errors.csv"
SUM_COLUMNS = (
    "date",
    "commit",
    "machine",
    "model_hash",
    "allocation",
    "mean_bits",
    "predicted_loss",
    "measured_loss",
)
RANDOM = 20
ALLOCATIONS = RESULTS / "allocations.csv"
OUT = RESULTS / "budget.csv"
COLUMNS = (
    *("date", "commit", "machine", "model_hash", "budget", "bits", "settings"),
    *("mean_bits", "mean_weight_bits", "mean_activation_bits", "bytes", "predicted_loss", "measured_loss"),
)


@dataclass(frozen=True)
class Point:
    """One checkpoint of the curve.

    Attributes:
        bits: Bits of `recipe_for`.
        settings: Overrides of the recipe.
    """

    bits: str
    settings: tuple[str, ...] = ()


def point_of(allocation: Allocation) -> Point:
    """Return an allocated recipe as bits and overrides, from which `ptq.py` makes the same recipe."""
    recipe = allocation.recipe
    settings = [f"probabilities.finest={recipe.probabilities.finest}"]
    for part, override in recipe.overrides.items():
        for kind in ("weights", "activations"):
            if (bits := getattr(override, kind)) is not None:
                settings.append(f"overrides.{part}.{kind}={bits}")
    return Point(f"w{recipe.weights.bits}a{recipe.activation_spec.bits}", tuple(settings))


def allocate(budgets: Sequence[str], root: Path) -> dict[str, Point]:
    """Return the allocation for each budget; those that were made before are read from their rows."""
    weights = FloatModel(BUNDLED, "cpu").hash
    known = {row["budget"]: row for row in read_plain(ALLOCATIONS) if row["model_hash"] == weights}
    missing = [budget for budget in budgets if budget not in known]
    if missing:
        allocator = saqsam.BitAllocator(*saqsam.load(BUNDLED), METHOD, root / CALIBRATION)
        if all(row["model_hash"] != weights for row in read_plain(SUMS)):
            append_plain(SUMS, SUM_COLUMNS, compare_sums(allocator))
    for budget in missing:
        found = allocator.allocate(budget)
        point, log = point_of(found), found.log
        row = {
            **conditions(),
            "budget": budget,
            "bits": point.bits,
            "settings": " ".join(point.settings),
            **{name: round(getattr(log, name), 4) for name in COLUMNS[7:]},
        }
        append_plain(ALLOCATIONS, COLUMNS, [row])
        print(f"{budget}: {found.recipe.name}, {log.mean_bits:.2f} bits, {log.measured_loss:.4f}", flush=True)
        known[budget] = {name: str(value) for name, value in row.items()}
    return {
        budget: Point(known[budget]["bits"], tuple(known[budget]["settings"].split())) for budget in budgets
    }


def conditions() -> dict[str, str]:
    """Return the columns that say when, where and on what weights a row was measured."""
    return {**stamp("cpu", COLUMNS), "model_hash": FloatModel(BUNDLED, "cpu").hash}


def compare_sums(allocator: saqsam.BitAllocator) -> Iterator[dict[str, object]]:
    """Yield predicted and measured losses, of uniform bits and of random ones: do errors add as squares?"""
    random = np.random.default_rng(0)
    operands = allocator.costs.operands
    drawn = {f"random {number}": random.choice(WIDTHS, len(operands)).tolist() for number in range(RANDOM)}
    uniform = {f"w{bits}a{bits}": [bits] * len(operands) for bits in WIDTHS}
    for name, widths in (uniform | drawn).items():
        bits = dict(zip(operands, widths, strict=True))
        yield {
            **conditions(),
            "allocation": name,
            "mean_bits": round(allocator.costs.mean_bits(bits), 4),
            "predicted_loss": round(allocator.predict(bits), 5),
            "measured_loss": round(allocator.measure(bits), 5),
        }


def points(allocated: dict[str, Point]) -> Iterator[tuple[Point, bool]]:
    """Yield every checkpoint of the curve, and whether it is learned."""
    by_name = allocated | {bits: Point(bits) for bits in FIXED}
    for name in CURVE:
        yield by_name[name], False
    for name in LEARNED:
        yield by_name[name], True


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options that do not go to `ptq.py`."""
    parser = argparse.ArgumentParser(
        description="Measure mixed precision; more options are those of ptq.py.", allow_abbrev=False
    )
    add_jobs(parser)
    add_data_root(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. Options that are not its own go to `ptq.py`."""
    options, others = parser().parse_known_args(arguments)
    parse_arguments(others)  # before any work
    calls = []
    for point, is_learned in points(
        allocate([name for name in CURVE if name not in FIXED], options.data_root)
    ):
        call = [
            "--out",
            str(OUT),
            "--methods",
            METHOD,
            "--bits",
            point.bits,
            "--data",
            *DATA,
            "--detections",
            "0",
        ]
        call += ["--calibration", CALIBRATION, "--data-root", str(options.data_root)]
        for setting in (*point.settings, *(() if is_learned else WITHOUT_LEARNING)):
            call += ["--set", setting]
        calls.append([*call, *others])
    return run_calls(calls, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
