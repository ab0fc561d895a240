"""Measure `saqsam segment --format parquet`: images per second, and memory over many images; rows in results/bulk.csv.

    python benchmarks/bulk.py --model sam-w4-onnx --data coco_val --images 500
    python benchmarks/bulk.py --model sam-w4-onnx --data coco_val --images 500 --everything
    python benchmarks/bulk.py --model sam-w4-onnx --data coco_val --images 10000 --memory

Prompts are the annotated boxes, or a grid of points. For more images than the data have, they are repeated under other
names. `--memory` leaves the speed out of the row, for runs beside other work.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memory import resident_mib
from options import add_out
from plain_rows import append_plain
from plan import stamp
from rows import RESULTS

OUT = RESULTS / "bulk.csv"
COLUMNS = (
    "commit",
    "machine",
    "model",
    "prompts",
    "options",
    "images",
    "masks",
    "images_per_s",
    "outside_model",
    "peak_mib",
    "growth_mib",
)
INTERVAL = 0.5
"""Seconds between two readings of the memory."""


def repeated(data: Path, count: int, folder: Path) -> Path:
    """Write an annotation file of `count` images, linked under other names, with at least a box each."""
    content = json.loads((data / "annotations.json").read_text())
    boxes: dict[int, list[dict[str, object]]] = {}
    for one in content["annotations"]:
        if not one.get("iscrowd"):
            boxes.setdefault(one["image_id"], []).append(one)
    originals = [image for image in content["images"] if image["id"] in boxes]
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        original = originals[(number - 1) % len(originals)]
        file = next(data.rglob(original["file_name"])).resolve()
        name = f"{number:06}{file.suffix}"
        (folder / "images" / name).symlink_to(file)
        images.append({**original, "id": number, "file_name": name})
        for one in boxes[original["id"]]:
            annotations.append({**one, "id": len(annotations) + 1, "image_id": number})
    document = {"images": images, "annotations": annotations, "categories": content["categories"]}
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder


def measure(command: Sequence[str]) -> tuple[str, list[float]]:
    """Run a command; return what it printed, and its resident MiB at intervals."""
    resident: list[float] = []
    with tempfile.TemporaryFile("w+") as output, subprocess.Popen(command, stdout=output) as process:
        while process.poll() is None:
            if mib := resident_mib(process.pid):
                resident.append(mib)
            time.sleep(INTERVAL)
        if process.returncode:
            raise SystemExit(process.returncode)
        output.seek(0)
        return output.read(), resident


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(
        description="Measure `saqsam segment --format parquet`.", allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="a model as `saqsam segment` takes it")
    parser.add_argument("--data", type=Path, required=True, help="a folder of COCO")
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--everything", action="store_true", help="segment everything from 8 x 8 points")
    parser.add_argument("--memory", action="store_true", help="measure the memory alone")
    add_out(parser, OUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options, further = parser().parse_known_args(arguments)
    grid = ["--everything", "--points-per-side", "8", "--pred-iou", "0.5", "--stability", "0.5"]
    with tempfile.TemporaryDirectory(prefix="saqsam-bulk-") as temporary:
        data = repeated(options.data.resolve(), options.images, Path(temporary) / "data")
        command = [sys.executable, "-m", "saqsam", "segment", options.model, str(data), "--format", "parquet"]
        command += [*further, *(grid if options.everything else []), "--out", f"{temporary}/masks"]
        printed, resident = measure(command)
    masks = re.search(r"([\d,]+) masks in", printed)
    speed = re.search(r"([\d.]+) images per second and process; (\d+)%", printed)
    assert masks
    assert speed
    # The mean of the last tenth over that of the second tenth, when all threads have worked.
    tenth = max(1, len(resident) // 10)
    growth = float(np.mean(resident[-tenth:]) - np.mean(resident[tenth : 2 * tenth]))
    common = stamp("cpu", COLUMNS)
    row = {
        "model": Path(options.model).name,
        "prompts": "8 x 8 points" if options.everything else "boxes",
        "options": " ".join(further),
        "images": options.images,
        "masks": masks[1].replace(",", ""),
        "images_per_s": "" if options.memory else speed[1],
        "outside_model": "" if options.memory else f"{int(speed[2]) / 100:.2f}",
        "peak_mib": round(max(resident)),
        "growth_mib": round(growth) if options.memory else "",  # short runs are still warming up
    }
    append_plain(options.out, COLUMNS, [common | row])
    print(row, resident[:: max(1, len(resident) // 20)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
