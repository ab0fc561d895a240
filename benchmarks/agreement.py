"""Append what `saqsam compare` found between a float model and exports: rows in results/agreement.csv.

    saqsam compare sam2-mini s2-w8a8-onnx s2-w4a8-onnx --data coco_val --json compared.json
    python benchmarks/agreement.py compared.json --model sam2-mini --runtime onnxruntime

The first model of the comparison is the float one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from options import add_out
from plain_rows import append_plain
from plan import stamp
from rows import RESULTS

OUT = RESULTS / "agreement.csv"
COLUMNS = (
    *("commit", "machine", "model", "recipe", "runtime", "data", "objects"),
    *("float_miou", "miou", "change_low", "change_high", "mask_iou", "share_above_90"),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Append what `saqsam compare` found.")
    parser.add_argument("file", type=Path, help="of saqsam compare --json, whose first model is float")
    parser.add_argument("--model", required=True, help="name of the float model")
    parser.add_argument("--runtime", required=True, help="runtime of the other models")
    add_out(parser, OUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    content = json.loads(options.file.read_text())
    recipes = {model["letter"]: model["recipe"] for model in content["models"]}
    common = stamp("cpu", COLUMNS)
    common |= {"model": options.model, "runtime": options.runtime, "data": content["data"]["name"]}
    rows = []
    for found in content["differences"]:
        (task,) = (one for one in found["tasks"] if one["task"] == "prompt")
        row = {
            "recipe": recipes[found["other"]],
            "objects": task["objects"],
            "float_miou": f"{task['first']:.6f}",
            "miou": f"{task['other']:.6f}",
            "change_low": f"{task['difference']['low']:.6f}",
            "change_high": f"{task['difference']['high']:.6f}",
            "mask_iou": f"{task['agreement']['iou']:.6f}",
            "share_above_90": f"{task['agreement']['share_above_90']:.6f}",
        }
        rows.append(common | row)
    append_plain(options.out, COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
