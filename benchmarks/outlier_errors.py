"""Measure what balancing, equalization and clipping repair on planted outliers: rows in results/outlier_errors.csv.

    python benchmarks/outlier_errors.py

For `sam-mini` and copies of it with some of the outliers of `outlier_twin.py`: the relative squared error of the output
of each decoder attention at 4 bits, with quantized queries and keys and nothing else, summed over the attentions.
Ranges are those of least error, or clipped by the attention's output, as the model is, after equalization, and after
balancing the heads and equalization. Four images of `coco_train`, or scenes where there are no photographs.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from transformers import SamModel

import saqsam
from options import add_data_root, add_out
from outlier_twin import DATA, IMAGES, KINDS, make_twin, open_photographs
from rows import RESULTS
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepare, prepared_copy
from saqsam.models.loading import BUNDLED
from saqsam.ptq.calibration import encode_image
from saqsam.ptq.calibration_images import CalibrationImages, choose_calibration_images
from saqsam.ptq.clipping import attention_inputs
from saqsam.ptq.equalization import equalize, observe_channels
from saqsam.ptq.focus_search import SEARCHED, FocusSearch
from saqsam.ptq.head_balancing import balance_heads, observe_heads
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.range_observers import HistogramObserver
from saqsam.quant.ranges import activation_parameters
from saqsam.recipes.specs import Calibration
from saqsam.utils.atomic_write import write_atomic

OUT = RESULTS / "outlier_errors.csv"
COLUMNS = ("outliers", "channels", "ranges", "error")
CHANNELS = ("as they are", "equalized", "balanced")
"""States of the channels: balanced ones are equalized as well."""
PLANTED: dict[str, Sequence[str]] = {
    "none": (),
    "humps": ("humps",),
    "axis": ("axis",),
    "oblique": ("oblique",),
    "all": KINDS,
}
"""Kinds of outliers by the name of the row."""
BITS = 4
PASSES = 2
MEASURED = Calibration(images=4, prompts=8)
SIDES = {"query": 0, "key": 1}


def measure(model: SamModel, images: CalibrationImages) -> Iterator[tuple[str, str, float]]:
    """Yield one of `CHANNELS`, `mse` or `clipped`, and the error; the model stays unchanged."""
    plan = plan_quantization(model.config, saqsam.recipe_for("mse", f"w{BITS}a{BITS}"))
    for channels in CHANNELS:
        changed = copy.deepcopy(model)
        if channels == "balanced":
            balance_heads(
                changed, plan.structure, observe_heads(prepared_copy(changed, plan), plan.structure, images)
            )
        if channels != "as they are":
            equalize(changed, plan.structure, observe_channels(changed, plan.structure, images))
        prepare(changed, plan)
        names = [site.name for site in plan.structure.decoder_attentions]
        encoded = [
            attention_inputs(changed, names, encode_image(changed, pixels), prompts)
            for pixels, prompts in (images[index] for index in range(len(images)))
        ]
        errors = dict.fromkeys(("mse", "clipped"), 0.0)
        for name in names:
            attention = changed.get_submodule(name)
            search = FocusSearch(attention, [image[name] for image in encoded], 0.5, "output")  # type: ignore[arg-type]
            for ranges, quantizers in _quantizers(search).items():
                sides = (search.side(side, quantizers) for side in (0, 1))
                errors[ranges] += search.error(*sides)
        for ranges, error in errors.items():
            yield channels, ranges, error


def _quantizers(search: FocusSearch) -> dict[str, Mapping[str, nn.Module]]:
    """Return quantizers of queries and keys by the kind of their ranges."""
    mse: dict[str, nn.Module] = {operand: nn.Identity() for operand in SEARCHED}
    for operand, side in SIDES.items():
        observer = HistogramObserver()
        for values in search.sides[side]:
            observer(values)
        parameters = activation_parameters(observer, BITS, symmetric=False, method="mse")
        mse[operand] = AffineQuantizer(BITS, *parameters)
    clipped: dict[str, nn.Module] = {operand: nn.Identity() for operand in SEARCHED}
    for _ in range(PASSES):
        for operand, side in SIDES.items():
            found = [quantizer for _, quantizer in search.candidates(side, operand, BITS, symmetric=False)]
            calibrated = mse[operand]
            assert isinstance(calibrated, AffineQuantizer)
            candidates = sorted(
                [calibrated, *found], key=lambda quantizer: quantizer.range[0] - quantizer.range[1]
            )
            clipped[operand] = candidates[search.best(side, operand, candidates, clipped)]
    return {"mse": mse, "clipped": clipped}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Measure what equalization and clipping repair.")
    parser.add_argument("--model", default=BUNDLED)
    add_data_root(parser)
    parser.add_argument("--planted", nargs="+", choices=PLANTED, default=list(PLANTED), metavar="NAME")
    add_out(parser, OUT)
    return parser


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    model, processor = saqsam.load(options.model)
    photographs = open_photographs(options.data_root / DATA)
    made_from, measured = (
        choose_calibration_images(model, processor, photographs, spec) for spec in (IMAGES, MEASURED)
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name in options.planted:
        planted = make_twin(model, made_from, PLANTED[name]) if PLANTED[name] else model
        for channels, ranges, error in measure(planted, measured):
            writer.writerow([name, channels, ranges, f"{error:.6f}"])
            print(f"{name:8} {channels:11} {ranges:8} {error:.4f}", flush=True)
    write_atomic(options.out, text.getvalue().encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
