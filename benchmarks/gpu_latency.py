"""Measure the GPU latency of float and packed models in PyTorch: rows in results/gpu_latency.csv.

    python benchmarks/gpu_latency.py                  # every model, all parts and variants
    python benchmarks/gpu_latency.py --subjects sam-mini --compiled

All variants of a part are loaded at once and take turns; a turn is timed by the GPU's own clock over `--runs` runs.
A row holds the median of the rounds, the fastest and the slowest, and the ratio to float32 in the same call.

Variants: `float32` in full precision, `tf32` with the operands of products rounded to 10 bits of fraction, `bfloat16`
the whole model. Those by bits are saqsam's, deployed: `packed` de-quantizes, `torch-int8` multiplies integers and has
the rest in float32, `torch-int8-bfloat16` the rest in bfloat16 (autocast). With `--compiled` each of these once more
after `torch.compile`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import SamModel

from latency_models import SUBJECTS, input_names, inputs, recipe_of_variant, wrapped
from options import add_out
from plain_rows import append_plain
from plan import stamp
from random_models import pack_uncalibrated
from rows import RESULTS
from saqsam.runtimes import use_integer_kernels

OUT = RESULTS / "gpu_latency.csv"
COLUMNS = (
    *("date", "commit", "torch", "machine", "subject", "part", "prompts", "variant", "bits", "compiled"),
    *("seconds", "fastest", "slowest", "ratio", "seconds_compile"),
)
PARTS = {"encoder": (0,), "decoder": (1, 32)}
FLOAT = ("float32", "tf32", "bfloat16")
OURS = ("packed", "torch-int8", "torch-int8-bfloat16")
BASELINE = "float32"


@dataclass(frozen=True)
class Case:
    """A measured variant, one row of the results; `bits` is empty for float models."""

    variant: str
    bits: str
    compiled: bool


def cases(bits: Sequence[str], variants: Sequence[str], compiled: bool) -> list[Case]:
    """Return the cases of a part, the baseline first."""
    every = [(variant, "") for variant in FLOAT] + [(variant, b) for b in bits for variant in OURS]
    chosen = [one for one in every if one[0] in variants]
    measured = [Case(*one, made) for made in ((False, True) if compiled else (False,)) for one in chosen]
    return list(dict.fromkeys([Case(BASELINE, "", False), *measured]))


@functools.cache
def float_model(subject: str, device: str) -> SamModel:
    """Return the float model that all variants are made from."""
    return SUBJECTS[subject]().to(device)


def prepare(case: Case, subject: str, part: str, prompts: int, device: str) -> Callable[[], object]:
    """Load the model of a case and return a function that runs it once."""
    model = copy.deepcopy(float_model(subject, device))
    arrays = inputs(model, part, prompts)
    if case.bits:
        pack_uncalibrated(model, recipe_of_variant(case.bits)).to(device)
    if case.variant.startswith("torch-int8"):
        use_integer_kernels(model)
    example = [torch.from_numpy(arrays[name]).to(device) for name in input_names(model, part)]
    if case.variant == "bfloat16":
        model.bfloat16()
        example = [tensor.bfloat16() for tensor in example]
    module = wrapped(model, part)
    if case.compiled:
        torch._dynamo.reset()  # type: ignore[attr-defined]  # each model is compiled for itself
        module = torch.compile(module)  # type: ignore[assignment]
    autocast = case.variant.endswith("-bfloat16")

    def run() -> object:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case.variant == "tf32"
        mixed = torch.autocast(device, torch.bfloat16) if autocast else nullcontext()
        with torch.inference_mode(), mixed:
            return module(*example)

    return run


def timed(run: Callable[[], object], runs: int, device: str) -> float:
    """Return the mean seconds of several consecutive runs."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(runs):
            run()
        return (time.perf_counter() - start) / runs
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(runs):
        run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / runs


def measure(subject: str, part: str, prompts: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """Measure the cases of a part in turn over several rounds, and return their rows."""
    ready: dict[Case, Callable[[], object]] = {}
    compile_seconds: dict[Case, float] = {}
    for case in cases(options.bits, options.variants, options.compiled):
        start = time.perf_counter()
        run = prepare(case, subject, part, prompts, options.device)
        for _ in range(3):
            run()
        ready[case], compile_seconds[case] = run, time.perf_counter() - start
    rounds: dict[Case, list[float]] = {case: [] for case in ready}
    for _ in range(options.rounds):
        for case, run in ready.items():
            timed(run, 1, options.device)  # caches are another model's
            rounds[case].append(timed(run, options.runs, options.device))
    base = statistics.median(next(iter(rounds.values())))
    rows = []
    for case, seconds in rounds.items():
        median = statistics.median(seconds)
        row = {
            **{"subject": subject, "part": part, "prompts": prompts or "", "variant": case.variant},
            **{"bits": case.bits, "compiled": int(case.compiled), "seconds": round(median, 6)},
            **{"fastest": round(min(seconds), 6), "slowest": round(max(seconds), 6)},
            **{"ratio": round(base / median, 3)},
            "seconds_compile": round(compile_seconds[case], 1) if case.compiled else "",
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Measure PyTorch on a GPU, float and from packed codes.")
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--bits", nargs="+", default=["w8a8", "w4a8"], metavar="wXaY")
    parser.add_argument("--variants", nargs="+", choices=(*FLOAT, *OURS), default=(*FLOAT, *OURS))
    parser.add_argument("--compiled", action="store_true", help="also after torch.compile: minutes for SAM-B")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=10, help="in each round")
    parser.add_argument("--device", default="cuda")
    add_out(parser, OUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    common = stamp(options.device, COLUMNS)
    for subject in options.subjects:
        for part in options.parts:
            for prompts in PARTS[part]:
                rows = measure(subject, part, prompts, options)
                append_plain(options.out, COLUMNS, [{**common, **row} for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
