"""Groups of options that the scripts of this folder share, and all options of `ptq.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from plan import CACHE, CALIBRATION, DATA_ROOT, MODELS
from rows import FILL_BOX, FLOAT, RESULTS
from saqsam.data.open import SCENES
from saqsam.models.loading import BUNDLED
from saqsam.recipes.methods import METHODS

BITS = ("w8a8", "w6a6", "w4a8", "w4a4")
DATA = (SCENES, "coco_val", "nuclei_val", "aerial_val")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, the float model."""
    parser.add_argument("--model", default=BUNDLED, help=f"{MODELS}, a folder of transformers, or a .pth")


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """Add `--data-root`, the folder of the datasets."""
    parser.add_argument("--data-root", type=Path, default=DATA_ROOT, metavar="DIR", help="also: SAQSAM_DATA")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add `--set`, changes of the recipe."""
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="as saqsam quantize --set",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add `--threads` and `--device`."""
    parser.add_argument("--threads", type=int, metavar="N", help="of torch; all by default")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add `--cache`, the folder of the checkpoints."""
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help="checkpoints")


def add_out(parser: argparse.ArgumentParser, default: Path) -> None:
    """Add `--out`, the file that rows are written to."""
    parser.add_argument("--out", type=Path, default=default, metavar="CSV", help="file of the rows")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add `--jobs`."""
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="experiments at a time, one thread each if several"
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of `ptq.py`."""
    parser = argparse.ArgumentParser(
        description="Measure quantized models; one CSV row per (model, method, bits, data).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    methods = [FILL_BOX, FLOAT, *METHODS]
    add = parser.add_argument
    add_model(parser)
    add("--methods", nargs="+", choices=methods, default=methods, metavar="METHOD", help=", ".join(methods))
    add("--bits", nargs="+", default=list(BITS), metavar="wXaY", help="for each method")
    add("--data", nargs="+", default=list(DATA), metavar="NAME", help="scenes, or a folder in the data root")
    add_data_root(parser)
    add("--prompt", choices=["box", "point"], default="box", help="made from each object")
    add(
        "--limit",
        type=int,
        metavar="N",
        help="only the first N images; such rows are kept apart from full ones",
    )
    add("--calibration", metavar="NAME", help=f"as --data; {CALIBRATION} if it is there, else scenes")
    add("--images", type=int, default=32, metavar="N", help="for the calibration")
    add("--seed", type=int, default=0, metavar="N", help="of the calibration")
    add_settings(parser)
    add(
        "--total-steps",
        type=int,
        metavar="N",
        help="of learning, over all units; those of the effort standard",
    )
    add(
        "--detections",
        type=int,
        default=20,
        metavar="N",
        help="AP on a detector's boxes, the N of the best scores of each image; 0 leaves it out",
    )
    add_machine(parser)
    add_out(parser, RESULTS / "ptq.csv")
    add_cache(parser)
    return parser


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of `ptq.py`."""
    return parser().parse_args(arguments)


def plan_options(given: argparse.Namespace, **chosen: object) -> argparse.Namespace:
    """Return the options that `make_plan` takes: those given and chosen, and the defaults of `ptq.py` for the rest."""
    return argparse.Namespace(**{**vars(parse_arguments([])), **vars(given), **chosen})
