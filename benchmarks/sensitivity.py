"""Append the sensitivity of each part, which `saqsam report` measured: rows in results/sensitivity.csv.

    saqsam report s2-w4a4 --data coco_train --limit 40 --sensitivity-images 40 --out report.json
    python benchmarks/sensitivity.py report.json --model sam2-mini

The rows hold the IoU with the float masks, of the part quantized alone and of all but the part quantized.
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

OUT = RESULTS / "sensitivity.csv"
COLUMNS = (
    "commit",
    "machine",
    "model",
    "recipe",
    "data",
    "images",
    "objects",
    "part",
    "alone",
    "without",
    "all",
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Append the sensitivity that `saqsam report` measured.")
    parser.add_argument("file", type=Path, help="of saqsam report --out FILE.json")
    parser.add_argument("--model", required=True, help="name of the float model")
    add_out(parser, OUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    content = json.loads(options.file.read_text())
    found = content["sensitivity"]
    common = stamp("cpu", COLUMNS)
    common |= {
        "model": options.model,
        "recipe": content["name"],
        "data": found["dataset"],
        "images": found["images"],
        "objects": found["objects"],
        "all": f"{found['quantized']:.6f}",
    }
    rows = [
        common | {"part": one["name"], "alone": f"{one['alone']:.6f}", "without": f"{one['without']:.6f}"}
        for one in found["groups"]
    ]
    append_plain(options.out, COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
