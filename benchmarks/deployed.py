"""Measure deployed checkpoints in torch and in other runtimes, and the IoU between their masks: results/deployed.csv.

    python benchmarks/deployed.py --methods mse saq-sam-plus --bits w8a8 w4a8

Each checkpoint is made once by `saqsam.quantize` with a deployable recipe, written, exported, and each evaluated as
reloaded from disk. A row that is in the file already is not measured again. The method `nncf` is what NNCF makes of the
float model at w8a8, in OpenVINO alone; it needs an interpreter with benchmarks/requirements.txt (--tools-python).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import Progress
from transformers import SamModel, SamProcessor

import saqsam
from nncf_model import NAME as NNCF_NAME
from nncf_model import SCRIPTS, nncf_backend
from options import add_data_root, add_settings
from plain_rows import append_plain, read_plain
from plan import CACHE, FloatModel, circumstances, sources_hash, stamp
from ptq import bar, exit_code
from rows import RESULTS
from saqsam.cli.terminal import progress_bars
from saqsam.data.types import Dataset
from saqsam.export import export_model, read_manifest
from saqsam.inference.backend import Backend, TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.models.loading import BUNDLED
from saqsam.recipes.deployment import deployable
from saqsam.recipes.methods import METHODS
from saqsam.recipes.overrides import with_overrides
from saqsam.recipes.specs import Calibration
from saqsam.runtimes import TORCH_INTEGER, load_runtime, use_integer_kernels
from saqsam.verification.parity import TorchReference, compare_with_torch

OUT = RESULTS / "deployed.csv"
RUNTIMES = {
    "torch": "",
    "torch-float64": "",
    "torch-int8": "",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "openvino-native": "openvino",
}
"""And the format of their files. `torch-float64` sums the products of linear layers in float64, which no rounding of
the recipe notices but for values at the border of two codes: how far two right answers are from each other.
`torch-int8` multiplies integers in torch. `openvino-native` leaves it to OpenVINO in what to compute beside them."""
COLUMNS = (
    *(
        "date",
        "commit",
        "torch",
        "machine",
        "model_hash",
        "recipe",
        "settings",
        "checkpoint",
        "runtime",
        "data",
        "images",
        "miou",
        "instances",
    ),
    *("mask_iou", "least_mask_iou", "embedding_error", "file_mb"),
)
CALIBRATION, SEED = "coco_train", 0
NNCF = "nncf"


class Float64Sums(TorchBackend):
    """Torch backend whose linear layers sum products in float64."""

    def encode(self, pixel_values: torch.Tensor) -> Features:
        """Encode an image, as `Backend.encode`."""
        with _float64_sums():
            return super().encode(pixel_values)

    def decode(
        self, features: Features, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict masks, as `Backend.decode`."""
        with _float64_sums():
            return super().decode(features, prompts, multimask_output)


@contextmanager
def _float64_sums() -> Iterator[None]:
    plain = F.linear

    def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        wide = None if bias is None else bias.double()
        return plain(rows.double(), weight.double(), wide).float()

    F.linear = linear
    try:
        yield
    finally:
        F.linear = plain


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Measure deployed checkpoints in their runtimes.")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, NNCF], default=["mse", "saq-sam-plus"])
    parser.add_argument("--bits", nargs="+", default=["w8a8", "w4a8", "w4a4"])
    add_settings(parser)
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES))
    parser.add_argument("--data", default="coco_val", help="a folder in the data root")
    add_data_root(parser)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tools-python", default=sys.executable, metavar="FILE", help="for nncf")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--cache", type=Path, default=CACHE / "deployed")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    return exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Measure the rows that are missing."""
    torch.set_num_threads(options.threads)
    data = saqsam.open_dataset(options.data_root / options.data, limit=options.limit)
    with progress_bars() as bars:
        for method in options.methods:
            if method == NNCF:
                for runtime in options.runtimes:
                    if RUNTIMES[runtime] == "openvino":
                        measure_nncf(runtime, data, options, bars)
                continue
            for bits in options.bits:
                checkpoint = make_checkpoint(method, bits, options, bars)
                for runtime in options.runtimes:
                    measure(checkpoint, runtime, data, options, bars)


def make_checkpoint(method: str, bits: str, options: argparse.Namespace, bars: Progress) -> Path:
    """Return the folder of a deployed checkpoint, quantized if it is missing."""
    weights = FloatModel(BUNDLED, "cpu").hash
    folder: Path = options.cache / "-".join([method, bits, *options.settings, weights, sources_hash()])
    if not folder.exists():
        model, processor = saqsam.load(BUNDLED)
        recipe = with_overrides(deployable(saqsam.recipe_for(method, bits, "standard")), options.settings)
        recipe = replace(recipe, calibration=replace(recipe.calibration, seed=SEED))
        calibration = saqsam.open_dataset(options.data_root / CALIBRATION)
        with bar(bars, f"making {folder.name}") as step:
            result = saqsam.quantize(model, processor, recipe, calibration, progress=step)
        result.save(folder)
    return folder


def measure(
    checkpoint: Path, runtime: str, data: Dataset, options: argparse.Namespace, bars: Progress
) -> None:
    """Measure one row, unless it is there."""
    model, processor = saqsam.load(checkpoint)
    recipe, sha = saqsam.recipe_of(model), model.config.quantization_config.content_sha256[:12]
    row = new_row(recipe.name, sha, runtime, data, options)
    if row is None:
        return
    subject, files = model, list(checkpoint.glob("*.safetensors"))
    if runtime == "torch-float64":
        subject = Float64Sums(model)
    elif runtime == TORCH_INTEGER:
        integer, _ = saqsam.load(checkpoint)
        use_integer_kernels(integer)
        subject = TorchBackend(integer)
    elif runtime != "torch":
        folder = checkpoint.with_name(f"{checkpoint.name}-{RUNTIMES[runtime]}")
        export_model(model, processor, folder, format=RUNTIMES[runtime], overwrite=True)
        name, _, native = runtime.partition("-")
        precision = None if native else "f32"
        subject, _ = load_runtime(folder, name, device="cpu", threads=options.threads, precision=precision)
        files = [folder / name for name in read_manifest(folder).files]
    if runtime != "torch":
        with bar(bars, f"{checkpoint.name} in {runtime} against torch") as step:
            reference = TorchReference(model, processor, data)
            parity = compare_with_torch(subject, processor, reference, progress=step)
        row |= {"mask_iou": round(parity.mask_iou, 5), "least_mask_iou": round(parity.least_mask_iou, 4)}
        row["embedding_error"] = round(parity.tensors[0].relative, 5)
    finish_row(row, subject, processor, files, data, options, bars)


def measure_nncf(runtime: str, data: Dataset, options: argparse.Namespace, bars: Progress) -> None:
    """Measure the row of NNCF's model, unless it is there."""
    row = new_row(NNCF_NAME, "", runtime, data, options)
    if row is None:
        return
    folder = options.cache / f"{NNCF_NAME}-{row['model_hash']}-{sources_hash(*SCRIPTS)}"
    subject, processor = nncf_backend(
        folder,
        saqsam.open_dataset(options.data_root / CALIBRATION),
        Calibration(seed=SEED),
        options.tools_python,
        options.threads,
        None if runtime.endswith("-native") else "f32",
    )
    files = [*folder.glob("*.xml"), *folder.glob("*.bin")]
    finish_row(row, subject, processor, files, data, options, bars)


def new_row(
    recipe: str, checkpoint: str, runtime: str, data: Dataset, options: argparse.Namespace
) -> dict[str, object] | None:
    """Return the key columns of a row; None if the row is already measured."""
    settings = "" if recipe == NNCF_NAME else " ".join(options.settings)
    key = {
        "model_hash": FloatModel(BUNDLED, "cpu").hash,
        "recipe": recipe,
        "settings": settings,
        "checkpoint": checkpoint,
        "runtime": runtime,
        "machine": circumstances("cpu")["machine"],
    }
    key |= {"data": options.data, "images": str(len(data))}
    if any(all(row[name] == value for name, value in key.items()) for row in read_plain(options.out)):
        return None
    return {**stamp("cpu", COLUMNS), **key}


def finish_row(
    row: dict[str, object],
    subject: SamModel | Backend,
    processor: SamProcessor,
    files: Sequence[Path],
    data: Dataset,
    options: argparse.Namespace,
    bars: Progress,
) -> None:
    """Evaluate a model and append its row."""
    name = f"{row['recipe']} in {row['runtime']}"
    with bar(bars, name) as step:
        metrics = saqsam.evaluate(subject, processor, data, progress=step).metrics["prompt"]
    row |= {"miou": round(metrics["miou"], 6), "instances": metrics["instances"]}
    row["file_mb"] = round(sum(file.stat().st_size for file in files) / 1e6, 3)
    append_plain(options.out, COLUMNS, [row])
    bars.console.print(f"{name} on {options.data}: mean IoU {metrics['miou']:.4f}")


if __name__ == "__main__":
    sys.exit(main())
