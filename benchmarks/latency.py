"""Measure the latency of exported models and of their alternatives: rows in results/latency.csv.

    python benchmarks/latency.py                      # every model at its own input size, all parts and variants
    python benchmarks/latency.py --subjects sam-mini --threads 1

Variants take turns, several rounds, each turn in a process of its own (one session of a float SAM-B takes 6 GiB): one
run to warm up, then `--runs` that count. A row holds the median of all, the fastest and the slowest, the ratio to the
default float32 export in ONNX Runtime from the same call, and the highest memory of the process.

Variants: `default` is `torch.onnx.export` of the float model; `dynamic` and `static` are that file after ONNX
Runtime's own quantizers, `nncf` after NNCF's, `int4` with 4-bit weights beside float activations (ONNX Runtime's
MatMulNBits, NNCF's compress_weights); `float` is saqsam's graph with nothing quantized; the others are saqsam's exports
by bits, `-all` with the encoder's attention products quantized too. `eager` is PyTorch's float model; PyTorch runs
checkpoints de-quantized or (`torch-int8`) with integer products.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latency_models import (
    SUBJECTS,
    TOOLS,
    WHOLE_SUBJECTS,
    Case,
    file_bytes,
    file_of,
    inputs,
    inputs_file,
    make_with_tool,
)
from options import add_out
from plain_rows import append_plain
from plan import CACHE, sources_hash, stamp
from rows import RESULTS

OUT = RESULTS / "latency.csv"
COLUMNS = (
    *("date", "commit", "torch", "machine", "threads", "subject", "part", "prompts", "runtime", "variant"),
    *("seconds", "fastest", "slowest", "ratio", "peak_gib", "file_mb"),
)
RUNTIMES = ("onnxruntime", "openvino", "openvino-native", "torch", "torch-int8")
PARTS = {"encoder": (0,), "decoder": (1, 32)}
OURS = ("w8a8", "w4a8", "w4a4")
BASELINE = ("onnxruntime", "default")


def cases(subject: str) -> Iterator[Case]:
    """Return the cases of a subject, sorted by comparison."""
    for part, counts in PARTS.items():
        ours = (*OURS, "w8a8-all") if part == "encoder" else OURS
        # `quantize_static` of SAM-B's decoder for 32 prompts would take more memory than the encoder's 12 GiB.
        for count in counts:
            users = ("default", "dynamic", *(() if subject == "sam-b" and count > 1 else ("static",)), "int4")
            by_runtime = {
                "onnxruntime": (*users, "float", *ours),
                "openvino": ("default", *TOOLS, "float", "w8a8", "w4a8"),
                "openvino-native": ("default", *TOOLS, "float", "w8a8", "w4a8"),
                "torch": ("eager", "w8a8", "w4a8"),
                "torch-int8": ("w8a8", "w4a8"),
            }
            for runtime, variants in by_runtime.items():
                for variant in variants:
                    yield Case(subject, part, count, runtime, variant)


def chosen_cases(subject: str, options: argparse.Namespace) -> list[Case]:
    """Return the cases that the options select, with their baselines."""
    return [
        case
        for case in cases(subject)
        if (case.runtime, case.variant) == BASELINE
        or (case.runtime in options.runtimes and case.variant in (options.variants or [case.variant]))
        if case.part in options.parts
    ]


def subject_folder(cache: Path, subject: str) -> Path:
    """Return the folder with the files of a subject, of the package and the scripts that make them as they are."""
    scripts = (
        Path(__file__).with_name(name) for name in ("latency_models.py", "random_models.py", "other_tools.py")
    )
    return cache / f"{subject}-{sources_hash(*scripts)}"


def make_files(every: Sequence[Case], folder: Path, tools_python: str) -> None:
    """Write the models of cases and their inputs, once, each model in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    model = SUBJECTS[every[0].subject]()
    for case in every:
        if not inputs_file(folder, case).exists():
            np.savez(inputs_file(folder, case), **inputs(model, case.part, case.prompts))
    del model
    for case in every:
        path = file_of(folder, case)
        if path is None or path.exists():
            continue
        print(f"writing {path.name}", flush=True)
        if case.variant in TOOLS:
            make_with_tool(case, folder, path, tools_python)
        else:
            script = Path(__file__).with_name("latency_models.py")
            order = json.dumps(dataclasses.asdict(case))
            subprocess.run([sys.executable, str(script), order, str(folder)], check=True)


def measure(
    group: Sequence[Case], folder: Path, threads: int, rounds: int, runs: int
) -> list[dict[str, Any]]:
    """Measure the cases of a comparison in turn over several rounds, and return their rows."""
    seconds: dict[Case, list[float]] = {case: [] for case in group}
    peaks: dict[Case, float] = {}
    for turn in range(rounds):
        for case in group:
            measured = in_process(case, folder, threads, runs)
            seconds[case] += measured["seconds"]
            peaks[case] = max(peaks.get(case, 0.0), measured["peak_gib"])
            print(turn + 1, case, [round(s, 4) for s in measured["seconds"]], flush=True)
    medians = {case: statistics.median(times) for case, times in seconds.items()}
    rows = []
    for case in group:
        base = dataclasses.replace(case, runtime=BASELINE[0], variant=BASELINE[1])
        path = file_of(folder, case)
        rows.append(
            {
                **dataclasses.asdict(case),
                "prompts": case.prompts or "",
                "threads": threads,
                "seconds": round(medians[case], 5),
                "fastest": round(min(seconds[case]), 5),
                "slowest": round(max(seconds[case]), 5),
                "ratio": round(medians[base] / medians[case], 3),
                "peak_gib": peaks[case],
                "file_mb": "" if path is None else round(file_bytes(path) / 1e6, 3),
            }
        )
    return rows


def in_process(case: Case, folder: Path, threads: int, runs: int) -> dict[str, Any]:
    """Return the seconds of each run and the peak memory of one turn, in a process of its own."""
    path = file_of(folder, case)
    order = {
        **dataclasses.asdict(case),
        "model": None if path is None else str(path),
        "inputs": str(inputs_file(folder, case)),
        "threads": threads,
        "runs": runs,
    }
    script = Path(__file__).with_name("run_once.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(order)], check=True, capture_output=True, text=True
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(
        description="Measure exported models against what a user would otherwise run."
    )
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(WHOLE_SUBJECTS))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="all by default")
    parser.add_argument(
        "--tools-python", default=sys.executable, metavar="FILE", help="with benchmarks/requirements.txt"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="in each round")
    add_out(parser, OUT)
    parser.add_argument("--cache", type=Path, default=CACHE / "latency", help="files of the variants")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    common = stamp("cpu", COLUMNS)
    for subject in options.subjects:
        folder, every = subject_folder(options.cache, subject), chosen_cases(subject, options)
        make_files(every, folder, options.tools_python)
        for part, prompts in dict.fromkeys((case.part, case.prompts) for case in every):
            group = [case for case in every if (case.part, case.prompts) == (part, prompts)]
            rows = measure(group, folder, options.threads, options.rounds, options.runs)
            append_plain(options.out, COLUMNS, [{**common, **row} for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
