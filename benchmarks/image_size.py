"""Measure models at other input sizes: rows in results/image_size.csv and results/image_size_latency.csv.

    python benchmarks/image_size.py                        # both
    python benchmarks/image_size.py --only latency --threads 1
    python benchmarks/image_size.py --only accuracy --sizes 192 256 --limit 20

Accuracy is that of `sam-mini`: the float model is resized, then quantized at that size and reloaded from its
checkpoint. Latency is that of the image encoder of a SAM-B of random weights, in CPU seconds of the process: with one
thread, they are the time on an idle machine. Sizes and variants take turns, each turn in a process of its own, so that
ratios within one call are comparable on a busy machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

import saqsam
from latency import in_process, make_files, subject_folder
from latency_models import RESIZED_SUBJECTS, Case
from options import add_data_root, add_out
from plain_rows import append_plain, read_plain
from plan import CACHE, FLOAT_BITS, FloatModel, stamp
from rows import FLOAT, RESULTS
from saqsam.evaluation import PromptTask
from saqsam.utils.allocator import keep_freed_memory

OUT, LATENCY_OUT = RESULTS / "image_size.csv", RESULTS / "image_size_latency.csv"
KEY = (
    *(
        "model",
        "model_hash",
        "image_size",
        "method",
        "bits",
        "effort",
        "calibration",
        "calibration_images",
        "seed",
    ),
    *("data", "images"),
)
COLUMNS = ("date", "commit", "torch", "machine", *KEY, "miou", "instances")
LATENCY_COLUMNS = (
    *("date", "commit", "torch", "machine", "threads", "subject", "image_size", "runtime", "variant"),
    *("seconds", "fastest", "slowest", "runs", "ratio", "peak_gib"),
)
MODEL = "sam-mini"
SIZES = (256, 192, 384)
VARIANTS = ((FLOAT, FLOAT_BITS, ""), ("mse", "w8a8", ""), ("saq-sam-plus", "w4a4", "quick"))
"""Methods with bits and effort, the latter for methods that learn."""
SEED = 0
TIMED = (("torch", "eager"), ("onnxruntime", "float"), ("onnxruntime", "w8a8"))
"""Runtimes and variants, as in `latency.py`."""


def measure_accuracy(options: argparse.Namespace, common: dict[str, str]) -> None:
    """Score each variant at each size, and append the rows that are missing."""
    known = {tuple(row[column] for column in KEY) for row in read_plain(options.out)}
    data = {name: saqsam.open_dataset(options.data_root / name, limit=options.limit) for name in options.data}
    calibration = saqsam.open_dataset(options.data_root / options.calibration)
    weights = FloatModel(MODEL, "cpu").hash
    for size in options.sizes:
        for method, bits, effort in VARIANTS:
            is_float = method == FLOAT
            keys = {
                name: {
                    "model": MODEL,
                    "model_hash": weights,
                    "image_size": size,
                    "method": method,
                    "bits": bits,
                    "effort": effort,
                    "calibration": "" if is_float else options.calibration,
                    "calibration_images": "" if is_float else options.images,
                    "seed": "" if is_float else SEED,
                    "data": name,
                    "images": len(dataset),
                }
                for name, dataset in data.items()
            }
            missing = [
                name for name, key in keys.items() if tuple(str(key[column]) for column in KEY) not in known
            ]
            if not missing:
                continue
            model, processor = saqsam.load(MODEL, image_size=size)
            if not is_float:
                recipe = saqsam.recipe_for(method, bits, effort or "quick")
                drawn = dataclasses.replace(recipe.calibration, images=options.images, seed=SEED)
                recipe = dataclasses.replace(recipe, calibration=drawn)
                with tempfile.TemporaryDirectory() as folder:
                    saqsam.quantize(model, processor, recipe, calibration).save(Path(folder) / "packed")
                    model, processor = saqsam.load(Path(folder) / "packed")
            for name in missing:
                result = saqsam.evaluate(model, processor, data[name], tasks=[PromptTask()])
                metrics = result.metrics["prompt"]
                scores = {"miou": round(metrics["miou"], 6), "instances": metrics["instances"]}
                append_plain(options.out, COLUMNS, [{**common, **keys[name], **scores}])
                print(size, method, bits, name, scores, flush=True)


def measure_latency(options: argparse.Namespace, common: dict[str, str]) -> None:
    """Time the encoder at each size in turns, and append its rows."""
    cases = {
        size: [
            Case(subject, "encoder", 0, runtime, variant)
            for runtime, variant in TIMED
            if runtime in options.runtimes
        ]
        for size, subject in RESIZED_SUBJECTS.items()
    }
    folders = {size: subject_folder(CACHE / "latency", of_size[0].subject) for size, of_size in cases.items()}
    for size, of_size in cases.items():
        make_files(of_size, folders[size], sys.executable)
    every = [(size, case) for size, of_size in cases.items() for case in of_size]
    seconds: dict[Case, list[float]] = {case: [] for _, case in every}
    peaks: dict[Case, float] = dict.fromkeys(seconds, 0.0)
    for turn in range(options.rounds):
        for size, case in every:
            measured = in_process(case, folders[size], options.threads, options.runs)
            seconds[case] += measured["cpu_seconds"]
            peaks[case] = max(peaks[case], measured["peak_gib"])
            print(turn + 1, size, case.runtime, case.variant, measured["cpu_seconds"], flush=True)
    medians = {case: statistics.median(times) for case, times in seconds.items()}
    rows = []
    for size, case in every:
        largest = dataclasses.replace(case, subject=RESIZED_SUBJECTS[max(cases)])
        rows.append(
            {
                **common,
                "threads": options.threads,
                "subject": "sam-b",
                "image_size": size,
                "runtime": case.runtime,
                "variant": case.variant,
                "seconds": round(medians[case], 5),
                "fastest": round(min(seconds[case]), 5),
                "slowest": round(max(seconds[case]), 5),
                "runs": len(seconds[case]),
                "ratio": round(medians[largest] / medians[case], 3),
                "peak_gib": peaks[case],
            }
        )
    append_plain(options.latency_out, LATENCY_COLUMNS, rows)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Measure models at other input sizes.")
    parser.add_argument("--only", choices=["accuracy", "latency"])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="of the accuracy")
    parser.add_argument("--data", nargs="+", default=["coco_val", "nuclei_val"], metavar="NAME")
    add_data_root(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="score the first N images only")
    parser.add_argument("--calibration", default="coco_train", metavar="NAME")
    parser.add_argument("--images", type=int, default=32, metavar="N", help="of the calibration")
    parser.add_argument("--runtimes", nargs="+", default=["torch", "onnxruntime"], help="of the latency")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5, help="of the latency")
    parser.add_argument("--runs", type=int, default=1, help="in each round")
    add_out(parser, OUT)
    parser.add_argument(
        "--latency-out", type=Path, default=LATENCY_OUT, metavar="CSV", help="file of the rows of the latency"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    common = stamp("cpu", COLUMNS)
    if options.only != "accuracy":
        measure_latency(options, common)
    if options.only != "latency":
        measure_accuracy(options, common)
    return 0


if __name__ == "__main__":
    sys.exit(main())
