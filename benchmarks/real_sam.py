"""Measure an original SAM on COCO with a detector's boxes, beside the published figures.

    python benchmarks/real_sam.py --model facebook/sam-vit-base --coco ~/coco --detections boxes.json --device cuda

Needs the original weights and COCO. Measures every method at `w6a6` and `w4a4`, each score from a checkpoint reloaded
from disk. `--coco` holds `train2017`, `val2017` and `annotations`, as COCO is distributed; `--detections` is a COCO
results file with the boxes of any detector for val2017. Rows go to `--out`; an interrupted run resumes. The table is
printed at the end, and by `--table` alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

import ptq
import saqsam
from plan import CACHE, FLOAT_BITS, ROOT, FloatModel, Plan, circumstances
from rows import FLOAT, Row, current, read_rows
from saqsam.data.detections import load_detections
from saqsam.models.weights import first_line
from saqsam.recipes.catalog import EFFORTS
from saqsam.recipes.methods import METHODS
from table_text import markdown, method_label

VALIDATION, CALIBRATION = "val2017", "train2017"
BITS = ("w6a6", "w4a4")


@dataclass(frozen=True)
class Published:
    """COCO mask AP of one method on the boxes of DINO, in percent (arXiv 2503.06515).

    Attributes:
        w6a6: By the variant of SAM: b, l, h; those that are not published are missing.
        w4a4: The same at 4 bits.
        is_integer: Whether the figures are of an integer model. Published code with reconstruction evaluates with
            activations that stay float at random, and with most rounding variables between two codes.
    """

    w6a6: Mapping[str, float]
    w4a4: Mapping[str, float]
    is_integer: bool = True

    def cell(self, variant: str, bits: str) -> str:
        """Return the figure of a variant of SAM as text, marked unless it is of an integer model."""
        figure: float | None = getattr(self, bits, {}).get(variant)
        if figure is None:
            return ""
        return f"{figure:.1f}" if self.is_integer else f"({figure:.1f})"


PUBLISHED = {
    FLOAT: Published({"b": 44.5, "l": 48.6, "h": 49.1}, {"b": 44.5, "l": 48.6, "h": 49.1}),
    "min-max": Published({"b": 11.2, "l": 44.7, "h": 42.8}, {}),
    "qdrop": Published(
        {"b": 38.9, "l": 47.5, "h": 48.3}, {"b": 11.2, "l": 27.5, "h": 41.7}, is_integer=False
    ),
    "ptq4sam-s": Published({"b": 20.4, "l": 47.7, "h": 48.1}, {"l": 23.1, "h": 30.5}),
    "ptq4sam": Published(
        {"b": 40.4, "l": 48.3, "h": 48.7}, {"b": 14.4, "l": 36.6, "h": 43.9}, is_integer=False
    ),
    "saq-sam-s": Published({"b": 39.4, "l": 48.0, "h": 48.2}, {"b": 3.5, "l": 27.8, "h": 31.6}),
    "saq-sam": Published(
        {"b": 42.4, "l": 48.3, "h": 48.9}, {"b": 33.8, "l": 46.3, "h": 47.4}, is_integer=False
    ),
}
VARIANTS = {768: "b", 1024: "l", 1280: "h"}
"""Variant of SAM by the width of its image encoder."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(
        description="Measure an original SAM on COCO, beside the published figures."
    )
    add = parser.add_argument
    add("--model", default="facebook/sam-vit-base", help="hub id, local folder, or official .pth")
    add("--coco", type=Path, required=True, metavar="ROOT", help="with train2017, val2017 and annotations")
    add("--detections", type=Path, required=True, metavar="JSON", help="a detector's boxes for val2017")
    add("--boxes", type=int, default=100, metavar="N", help="boxes of an image, those of the best scores")
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    add("--bits", nargs="+", default=list(BITS), metavar="wXaY")
    add("--effort", choices=list(EFFORTS), default="paper", help="learning steps of methods that learn")
    add("--images", type=int, default=32, metavar="N", help="for the calibration")
    add("--limit", type=int, metavar="N", help="score the first N images only")
    add("--device", default="cpu", help="cpu, cuda, ...")
    add("--out", type=Path, default=ROOT / "work" / "real_sam.csv", metavar="CSV", help="rows")
    add("--cache", type=Path, default=CACHE, metavar="DIR", help="checkpoints and scores of single objects")
    add("--table", action="store_true", help="measure nothing, print the table of the rows")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    return ptq.exit_code(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> None:
    if options.table:
        model = FloatModel(_local(options.model), options.device)
    else:
        plan = make_plan(options)
        ptq.run(plan)
        model = plan.model
    variant = VARIANTS.get(model.loaded[0].config.vision_config.hidden_size, "")
    rows = [row for row in current(read_rows(options.out)) if row.model_hash == model.hash]
    print(table(rows, options.bits, variant))


def make_plan(options: argparse.Namespace) -> Plan:
    """Open data and model before any long work begins, the data before a download.

    Raises:
        ValueError: COCO, the detections or the model cannot be used.
    """
    validation = saqsam.open_dataset(options.coco / VALIDATION, limit=options.limit)
    detections = load_detections(options.detections, validation).best(options.boxes)
    calibration = saqsam.open_dataset(options.coco / CALIBRATION)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return Plan(
        model=FloatModel(_local(options.model), options.device),
        methods=[FLOAT, *options.methods],
        bits=[bits.lower() for bits in options.bits],
        data={VALIDATION: validation},
        detections={VALIDATION: detections},
        most_detections=options.boxes,
        calibration=(CALIBRATION, calibration),
        images=options.images,
        seed=0,
        prompt="box",
        settings=(),
        total_steps=None,
        device=options.device,
        circumstances=circumstances(options.device),
        out=options.out,
        cache=options.cache,
        effort=options.effort,
    )


def table(rows: Sequence[Row], bits: Sequence[str], variant: str) -> str:
    """Return the Markdown table of mask AP, measured and published, in percent.

    Args:
        rows: Rows of one model.
        bits: Bits, one pair of columns each.
        variant: Variant of SAM: `b`, `l` or `h`; anything else has no published figures.
    """
    lines = []
    for method in (FLOAT, *METHODS):
        cells = [method_label(method)]
        for width in bits:
            found = [row for row in rows if row.method == method and row.bits in (width, FLOAT_BITS)]
            cells.append("" if not found else f"{100 * (found[-1].segm_ap or 0.0):.1f}")
            published = PUBLISHED.get(method)
            cells.append("" if published is None else published.cell(variant, width))
        lines.append(cells)
    heading = ["mask AP", *(column for width in bits for column in (width, f"{width}, published"))]
    note = "In parentheses: published figures that are not of an integer model."
    return f"{markdown(heading, lines, right=len(heading) - 1)}\n\n{note}"


def _local(model: str) -> str:
    """Return the folder of a model on the hub, downloaded if need be, and anything else unchanged."""
    if Path(model).exists() or model.count("/") != 1:
        return model
    try:
        return snapshot_download(model, allow_patterns=["*.json", "model*.safetensors"])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--model {model}: no such file or folder, and not on the hub: {first_line(error)}"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
