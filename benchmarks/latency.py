"""How fast exported models are: rows in results/latency.csv, each beside what a user would otherwise run.

    python benchmarks/latency.py                      # sam-mini and a SAM-B of random weights, all parts and variants
    python benchmarks/latency.py --subjects sam-mini --threads 1

Variants take turns, several rounds, each turn in a process of its own (one session of a float SAM-B takes 6 GiB): one
run to warm up, then `--runs` that count. A row holds the median of all, the fastest and the slowest, the ratio to the
default float32 export in ONNX Runtime from the same call, and the highest memory of the process.

Variants: `default` is `torch.onnx.export` of the float model; `dynamic` and `static` are that file after ONNX Runtime's
own quantizers; `float` is saqsam's graph with nothing quantized; the others are saqsam's exports by bits, `-all` with
the encoder's attention products quantized too. `eager` is PyTorch's float model.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from transformers import SamModel

import saqsam
from plan import CACHE, circumstances
from random_models import pack_uncalibrated, random_sam_b
from rows import RESULTS
from saqsam.export.decoder import write_decoder
from saqsam.export.encoder import write_encoder
from saqsam.export.encoder_attention import EncoderOptions
from saqsam.export.graph import Graph
from saqsam.export.manifest import LOW_RES_OUTPUTS
from saqsam.export.to_onnx import keep_outputs
from saqsam.presets import deployable

OUT = RESULTS / "latency.csv"
COLUMNS = (
    *("date", "commit", "torch", "machine", "threads", "subject", "part", "prompts", "runtime", "variant"),
    *("seconds", "fastest", "slowest", "ratio", "peak_gib", "file_mb"),
)
SUBJECTS: dict[str, Callable[[], SamModel]] = {
    "sam-mini": lambda: saqsam.load("sam-mini")[0],
    "sam-b": random_sam_b,
}
INPUT_NAMES = {"encoder": ["pixel_values"], "decoder": ["image_embeddings", "boxes"]}
"""Of the default exports."""
PARTS = {"encoder": (0,), "decoder": (1, 32)}
OURS = ("w8a8", "w4a8", "w4a4")
BASELINE = ("onnxruntime", "default")
OPSET = 17
"""Of the default export."""


@dataclass(frozen=True)
class Case:
    """What one row measures."""

    subject: str
    part: str
    prompts: int
    runtime: str
    variant: str


def cases(subject: str) -> Iterator[Case]:
    """All rows of a subject; those that are compared with each other follow each other."""
    for part, counts in PARTS.items():
        ours = (*OURS, "w8a8-all") if part == "encoder" else OURS
        users = ("default", "dynamic", "static") if subject == "sam-mini" else ("default", "dynamic")
        for count in counts:
            for variant in (*users, "float", *ours):
                yield Case(subject, part, count, "onnxruntime", variant)
            for runtime in ("openvino", "openvino-native"):
                for variant in ("float", "w8a8", "w4a8"):
                    yield Case(subject, part, count, runtime, variant)
            yield Case(subject, part, count, "torch", "eager")


class DefaultEncoder(torch.nn.Module):
    """What a user exports: the encoder as it is."""

    def __init__(self, model: SamModel) -> None:
        super().__init__()
        self.encoder = model.vision_encoder

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels [1, 3, S, S] to the embedding [1, C, h, w]."""
        embedding: torch.Tensor = self.encoder(pixel_values, return_dict=True).last_hidden_state
        return embedding


class DefaultDecoder(torch.nn.Module):
    """What a user exports: prompt encoder and mask decoder as they are, for boxes."""

    def __init__(self, model: SamModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, image_embeddings: torch.Tensor, boxes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embedding [1, C, h, w] and boxes [1, P, 4] to logits [1, P, 3, 4h, 4w] and IoUs [1, P, 3]."""
        sparse, dense = self.model.prompt_encoder(
            input_points=None, input_labels=None, input_boxes=boxes, input_masks=None
        )
        masks, ious = self.model.mask_decoder(
            image_embeddings=image_embeddings,
            image_positional_embeddings=self.model.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        return masks, ious


def inputs(model: SamModel, part: str, prompts: int) -> dict[str, np.ndarray]:
    """Random inputs by the names of all variants; a session takes those that it knows."""
    generator = np.random.default_rng(0)
    config = model.config
    size, patch = config.vision_config.image_size, config.vision_config.patch_size
    side, channels = size // patch, config.prompt_encoder_config.hidden_size
    if part == "encoder":
        return {"pixel_values": generator.standard_normal((1, 3, size, size), dtype=np.float32)}
    corners = np.sort(generator.random((prompts, 2, 2), dtype=np.float32) * size, axis=1)
    return {
        "image_embeddings": generator.standard_normal((1, channels, side, side), dtype=np.float32),
        "boxes": corners.reshape(1, prompts, 4),
        "point_coords": corners,
        "point_labels": np.tile(np.array([2, 3], dtype=np.float32), (prompts, 1)),
        "mask_input": np.zeros((1, 1, 4 * side, 4 * side), dtype=np.float32),
        "has_mask_input": np.zeros(1, dtype=np.float32),
    }


def wrapped(model: SamModel, part: str) -> torch.nn.Module:
    """The part of a model that users run and export by themselves."""
    return (DefaultEncoder if part == "encoder" else DefaultDecoder)(model).eval()


def inputs_file(folder: Path, case: Case) -> Path:
    """Where the inputs of a case lie."""
    return folder / f"{case.part}-{case.prompts}.npz"


def make_files(subject: str, folder: Path) -> None:
    """Write the models of all variants and their inputs, once."""
    folder.mkdir(parents=True, exist_ok=True)
    model = SUBJECTS[subject]()
    for case in cases(subject):
        if not inputs_file(folder, case).exists():
            np.savez(inputs_file(folder, case), **inputs(model, case.part, case.prompts))
        path = file_of(folder, case)
        if path is not None and not path.exists():
            print(f"writing {path.name}", flush=True)
            make_file(case, folder, path)


def file_of(folder: Path, case: Case) -> Path | None:
    """The ONNX file of a case; the default export of the decoder has its number of prompts built in."""
    if case.runtime == "torch":
        return None
    built_in = f"-{case.prompts}" if case.variant in ("default", "dynamic", "static") and case.prompts else ""
    return folder / f"{case.part}-{case.variant}{built_in}.onnx"


def make_file(case: Case, folder: Path, path: Path) -> None:
    """Write one model."""
    partial = path.with_suffix(".partial")
    if case.variant == "default":
        model = SUBJECTS[case.subject]()
        wrapped = (DefaultEncoder if case.part == "encoder" else DefaultDecoder)(model).eval()
        given = inputs(model, case.part, case.prompts)
        names = ["pixel_values"] if case.part == "encoder" else ["image_embeddings", "boxes"]
        example = tuple(torch.from_numpy(given[name]) for name in names)
        torch.onnx.export(
            wrapped, example, str(partial), input_names=names, opset_version=OPSET, dynamo=False
        )
    elif case.variant in ("dynamic", "static"):
        quantize_default(case, folder, partial)
    else:
        model = SUBJECTS[case.subject]()
        if case.variant != "float":
            recipe = deployable(saqsam.recipe_for("mse", case.variant.removesuffix("-all")))
            if case.variant.endswith("-all"):
                recipe = dataclasses.replace(recipe, encoder_products="quantized")
            model = pack_uncalibrated(model, recipe)
        graph = Graph(case.part)
        if case.part == "encoder":
            write_encoder(graph, model, EncoderOptions())
            onnx.save(graph.model({}), partial)
        else:
            write_decoder(graph, model)
            onnx.save(keep_outputs(graph.model({}), set(LOW_RES_OUTPUTS)), partial)
    partial.rename(path)


def quantize_default(case: Case, folder: Path, path: Path) -> None:
    """ONNX Runtime's own quantization of the default export."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    default = file_of(folder, dataclasses.replace(case, variant="default"))
    assert default is not None
    if case.variant == "dynamic":
        quantize_dynamic(default, path)
        return

    class One(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            with np.load(inputs_file(folder, case)) as given:
                self.left = [{name: given[name] for name in INPUT_NAMES[case.part]}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    prepared = path.with_suffix(".prepared")
    quant_pre_process(default, prepared, skip_symbolic_shape=True)
    quantize_static(prepared, path, One(), quant_format=QuantFormat.QDQ, per_channel=True)
    prepared.unlink()


def measure_subject(subject: str, folder: Path, threads: int, rounds: int, runs: int) -> list[dict[str, Any]]:
    """Rows of a subject: all cases of a part in turn, several rounds."""
    make_files(subject, folder)
    every = list(cases(subject))
    seconds: dict[Case, list[float]] = {case: [] for case in every}
    peaks: dict[Case, float] = {}
    for part, prompts in dict.fromkeys((case.part, case.prompts) for case in every):
        group = [case for case in every if (case.part, case.prompts) == (part, prompts)]
        for turn in range(rounds):
            for case in group:
                found = in_process(case, folder, threads, runs)
                seconds[case] += found["seconds"]
                peaks[case] = max(peaks.get(case, 0.0), found["peak_gib"])
                print(turn + 1, case, [round(s, 4) for s in found["seconds"]], flush=True)
    medians = {case: statistics.median(found) for case, found in seconds.items()}
    rows = []
    for case in every:
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
                "file_mb": "" if path is None else round(path.stat().st_size / 1e6, 3),
            }
        )
    return rows


def in_process(case: Case, folder: Path, threads: int, runs: int) -> dict[str, Any]:
    """Seconds of each run and the highest memory of one turn, in a process of its own."""
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
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Measure exported models against what a user would otherwise run."
    )
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="in each round")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--cache", type=Path, default=CACHE / "latency", help="files of the variants")
    options = parser.parse_args(arguments)
    found = circumstances("cpu")
    common = {name: found[name] for name in ("commit", "torch", "machine")}
    common["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    for subject in options.subjects:
        rows = measure_subject(
            subject, options.cache / subject, options.threads, options.rounds, options.runs
        )
        is_new = not options.out.exists()
        with options.out.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerows({**common, **row} for row in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
