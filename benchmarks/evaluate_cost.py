"""Measure the cost of evaluation: images per second by processes, memory over images, time outside the model.

    python benchmarks/evaluate_cost.py                     # rows in results/evaluate_cost.csv
    python benchmarks/evaluate_cost.py --images 200 --out trial.csv

Scenes are generated once and stored as a COCO folder of JPEGs in `work/`, so that images are read and decoded as those
of a real data set are. Each run is a process of its own (or several, started by torchrun) that scores `sam-mini` with
box prompts and keeps its records in a folder, as `saqsam evaluate --json` does; rows are taken on the way, after so and
so many images. Memory over thousands of images is that of a small random model: it depends on images and records, and
`sam-mini` would take more than an hour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import SamModel

import saqsam
from memory import resident_mib
from options import add_out
from plain_rows import append_plain
from plan import CACHE, ROOT, sources_hash, stamp
from random_models import random_small_sam
from rows import RESULTS
from saqsam.data.open import open_dataset
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.inference.backend import TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.models.loading import BUNDLED
from saqsam.models.processing import build_processor
from saqsam.utils import ranks

OUT = RESULTS / "evaluate_cost.csv"
COLUMNS = (
    *("date", "commit", "torch", "machine", "model", "processes", "threads", "prompt"),
    *("images", "seconds", "images_per_second", "outside_share", "resident_mib"),
)
IMAGES = 5000
MARKS = (50, 500, 5000)
"""Numbers of images after which a row is recorded."""
SHORT = 50
"""Number of images of the throughput runs."""


class TimedBackend(TorchBackend):
    """Torch backend with a clock that runs only inside the network.

    Attributes:
        seconds: Spent in `encode` and `decode`.
    """

    def __init__(self, model: SamModel) -> None:
        super().__init__(model)
        self.seconds = 0.0

    def encode(self, pixel_values: torch.Tensor) -> Features:
        """Encode an image, as `Backend.encode`."""
        start = time.perf_counter()
        features = super().encode(pixel_values)
        self.seconds += time.perf_counter() - start
        return features

    def decode(
        self, features: Features, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict masks, as `Backend.decode`."""
        start = time.perf_counter()
        output = super().decode(features, prompts, multimask_output)
        self.seconds += time.perf_counter() - start
        return output


def write_scenes(folder: Path, count: int) -> Path:
    """Return a COCO folder of the first `count` scenes, and create it if it is missing."""
    if (folder / "annotations.json").is_file():
        return folder
    (folder / "images").mkdir(parents=True, exist_ok=True)
    scenes = ScenesDataset(count=count)
    images, annotations = [], []
    for index in range(count):
        sample = scenes[index]
        height, width, _ = sample.image.shape
        name = f"{index + 1:05d}.jpg"
        Image.fromarray(sample.image).save(folder / "images" / name, quality=92)
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for instance in sample.instances:
            x0, y0, x1, y1 = instance.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": {
                        "size": instance.rle["size"],
                        "counts": instance.rle["counts"].decode(),
                    },
                }
            )
    categories = [{"id": 1, "name": "object"}]
    content = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / "annotations.json").write_text(content, encoding="utf-8")
    return folder


SMALL = "random, 64 px"
MODELS: dict[str, Callable[[], SamModel]] = {
    BUNDLED: lambda: saqsam.load(BUNDLED)[0],
    SMALL: random_small_sam,
}


def turn(data: Path, images: int, threads: int, prompt: str, name: str) -> list[dict[str, object]]:
    """Evaluate once as one of the processes, and measure after each of `MARKS` and at the end."""
    torch.set_num_threads(threads)
    model = MODELS[name]()
    backend, processor = TimedBackend(model), build_processor(model.config)
    dataset = open_dataset(data, limit=images)
    taken: list[dict[str, object]] = []
    with ranks.process_group(), tempfile.TemporaryDirectory() as folder:
        processes = ranks.world_size()
        start = time.perf_counter()

        def look(phase: str, done: int, count: int, note: str = "", /) -> None:
            everywhere = done * processes
            if everywhere in MARKS or done == count:
                seconds = time.perf_counter() - start
                taken.append(
                    {
                        "images": everywhere,
                        "seconds": round(seconds, 2),
                        "images_per_second": round(everywhere / seconds, 3),
                        "outside_share": round(1 - backend.seconds / seconds, 4),
                        "resident_mib": resident_mib(),
                    }
                )

        saqsam.evaluate(
            backend, processor, dataset, prompt=prompt, resume_dir=Path(folder) / "records", progress=look
        )
        return taken if ranks.rank() == 0 else []


def run_turn(
    processes: int, threads: int, data: Path, images: int, prompt: str, name: str
) -> list[dict[str, object]]:
    """Run `turn` in processes of its own."""
    own = [__file__, "--turn", str(data), str(images), str(threads), prompt, name]
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run([*command, *own], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    reports = [line for line in done.stdout.splitlines() if line.startswith("[{")]
    rows: list[dict[str, object]] = json.loads(reports[-1])
    return [
        {"model": name, "processes": processes, "threads": threads, "prompt": prompt, **row} for row in rows
    ]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Measure what evaluating costs.")
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N", help="of the longest run")
    add_out(parser, OUT)
    parser.add_argument(
        "--turn", nargs=5, metavar=("DATA", "IMAGES", "THREADS", "PROMPT", "MODEL"), help="its own use"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    if options.turn is not None:
        data, images, threads, prompt, name = options.turn
        rows = turn(Path(data), int(images), int(threads), prompt, name)
        if rows:
            print(json.dumps(rows))
        return 0
    if options.images < 1:
        parser().error(f"--images must be at least 1, got {options.images}")
    data = write_scenes(CACHE / f"scenes-{options.images}-{sources_hash()}", options.images)
    short = min(SHORT, options.images)
    plans = [(1, 1, "box"), (2, 1, "box"), (1, 2, "box"), (1, 2, "point"), (1, 2, "clicks")]
    turns = [(BUNDLED, *plan, short) for plan in plans] + [(SMALL, 1, 2, "box", options.images)]
    known = stamp("cpu", COLUMNS)
    for name, processes, threads, prompt, count in turns:
        print(f"{name}: {processes} x {threads} threads, {count} images, {prompt}", file=sys.stderr)
        common = {**known, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        rows = run_turn(processes, threads, data, count, prompt, name)
        append_plain(options.out, COLUMNS, [{**common, **row} for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
