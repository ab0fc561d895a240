"""Measure the activation outliers that SAQ-SAM clips, on the float model: rows in results/ranges.csv.

    python benchmarks/ranges.py
    python benchmarks/ranges.py --model work/sam-mini-outliers    # adds the rows of another model

- `decoder`: queries, keys and what they are projected from, for each attention of the mask decoder: the largest
  absolute value against the 99th percentile. About 100 in SAM-B (arXiv 2503.06515).
- `encoder`: the largest absolute value of each token at the input of the encoder's linear layers: the largest over the
  median token. The same of the original SAM encoders, where their measured ranges lie in the data root.

32 calibration images of `coco_train`, or of scenes where there are no photographs. The rows of other models that are in
the file stay.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import SamModel

import saqsam
from options import add_data_root, add_machine, add_model, add_out, plan_options
from plan import make_plan
from rows import RESULTS
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepare
from saqsam.inference.backend import TorchBackend
from saqsam.models.registry import structure_of
from saqsam.ptq.calibration_images import CalibrationImages, choose_calibration_images
from saqsam.ptq.focus_search import searched_slots
from saqsam.utils.atomic_write import write_atomic

OUT = RESULTS / "ranges.csv"
ORIGINAL = "sam_encoder_activation_ranges.json"
ENCODER_PARTS = {"qkv": "attn.qkv", "proj": "attn.proj", "lin1": "mlp.lin1", "lin2": "mlp.lin2"}


@dataclass(frozen=True)
class Ratio:
    """Ratio of the largest value to common ones.

    Attributes:
        model: Of which it was measured.
        where: `decoder` or `encoder`.
        tensor: Slot and attention, or kind of layer; layers of one kind are one row.
        largest: Largest absolute value.
        common: Decoder: 99th percentile of the absolute values. Encoder: of the median token.
        ratio: Largest by common; encoder: the median over the layers.
        highest_ratio: Encoder: the highest over the layers.
    """

    model: str
    where: str
    tensor: str
    largest: float
    common: float
    ratio: float
    highest_ratio: float


def measure(model: SamModel, name: str, images: CalibrationImages) -> Iterator[Ratio]:
    """Return the ratios of a float model, which is not modified."""
    model = copy.deepcopy(model)
    structure = structure_of(model.config)
    prepare(
        model, plan_quantization(model.config, saqsam.recipe_for("mse", "w4a4"))
    )  # slots to watch; outputs stay
    decoder: dict[str, list[Tensor]] = {}
    encoder: dict[str, list[Tensor]] = {}
    handles = []

    def watch(module: nn.Module, store: dict[str, list[Tensor]], key: str, *, by_token: bool) -> None:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], _output: object) -> None:
            magnitude = inputs[0].detach().abs()
            values = magnitude.amax(-1).flatten() if by_token else magnitude.flatten()
            store.setdefault(key, []).append(values.cpu())

        handles.append(module.register_forward_hook(hook))

    for site in structure.decoder_attentions:
        for slot in searched_slots(site).values():
            watch(model.get_submodule(slot), decoder, slot, by_token=False)
    for site in structure.layers:
        if site.part.removeprefix("encoder.") in ENCODER_PARTS:
            watch(model.get_submodule(site.name), encoder, site.name, by_token=True)
    backend = TorchBackend(model)
    with torch.inference_mode():
        for i in range(len(images)):
            pixels, prompts = images[i]
            backend.decode(backend.encode(pixels), prompts, multimask_output=False)
    for handle in handles:
        handle.remove()
    for path, parts in decoder.items():
        values = torch.cat(parts)
        common = float(values.kthvalue(max(1, round(0.99 * len(values)))).values)
        largest = float(values.max())
        short = path.removeprefix("mask_decoder.transformer.")
        yield Ratio(name, "decoder", short, largest, common, largest / common, largest / common)
    layers = {path: torch.cat(parts) for path, parts in encoder.items()}
    for part, suffix in ENCODER_PARTS.items():
        pairs = [(float(v.max()), float(v.median())) for path, v in layers.items() if path.endswith(suffix)]
        yield _summary(name, part, pairs)


def original(path: Path) -> Iterator[Ratio]:
    """Return the ratios of the original encoders, from their measured ranges."""
    for name, layers in json.loads(path.read_text(encoding="utf-8"))["encoders"].items():
        for part, suffix in ENCODER_PARTS.items():
            pairs = [(layer["max"], layer["p50"]) for layer in layers if layer["layer"].endswith(suffix)]
            yield _summary(f"SAM {name.replace('_', '-')}", part, pairs)


def _summary(model: str, part: str, pairs: Sequence[tuple[float, float]]) -> Ratio:
    ratios = [largest / common for largest, common in pairs]
    largest, common = max(pairs)
    return Ratio(model, "encoder", part, largest, common, statistics.median(ratios), max(ratios))


def write_ratios(path: Path, ratios: Sequence[Ratio]) -> None:
    """Write ratios to a CSV file, in place of those of the same models; those of others stay."""
    names = [field.name for field in fields(Ratio)]
    known = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))) if path.is_file() else ()
    lines: dict[str, list[list[str]]] = {}
    for line in known:
        lines.setdefault(line["model"], []).append([line[name] for name in names])
    lines |= {ratio.model: [] for ratio in ratios}
    for ratio in ratios:
        lines[ratio.model].append([f"{v:.4f}" if isinstance(v, float) else v for v in astuple(ratio)])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for of_model in lines.values():
        writer.writerows(of_model)
    write_atomic(path, text.getvalue().encode())


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Measure outliers.", allow_abbrev=False)
    add_model(parser)
    add_data_root(parser)
    add_machine(parser)
    add_out(parser, OUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        plan = make_plan(plan_options(options, data=["scenes"]))
        model, processor = plan.model.loaded
        spec = plan.recipe("mse", "w4a4").calibration
        images = choose_calibration_images(model, processor, plan.calibration[1], spec)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ratios = list(measure(model, plan.model.name, images))
    if (options.data_root / ORIGINAL).is_file():
        ratios += original(options.data_root / ORIGINAL)
    write_ratios(options.out, ratios)
    for ratio in ratios:
        print(
            f"{ratio.model:12} {ratio.where} {ratio.tensor:55} {ratio.largest:9.3f} / {ratio.common:7.3f}"
            f" = {ratio.ratio:.2f} (highest {ratio.highest_ratio:.2f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
