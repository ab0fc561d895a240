"""Measure `saqsam serve` under load: clients that hover at the same time; rows in results/serve.csv.

    python benchmarks/serve_load.py --models sam-float-onnx sam-w8-onnx

Each client asks for the mask under its pointer as the page does, the next one when it has the answer. All hover over
the same image, which is encoded before.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from options import add_out
from plain_rows import append_plain
from plan import stamp
from rows import RESULTS

OUT = RESULTS / "serve.csv"
COLUMNS = (
    "commit",
    "machine",
    "models",
    "clients",
    "answers",
    "errors",
    "median_ms",
    "p95_ms",
    "answers_per_s",
)
SAMPLE = Path(__file__).resolve().parents[1] / "docs" / "assets" / "photographs" / "cat.jpg"
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def post(address: str, path: str, body: bytes) -> dict[str, object]:
    """Return the answer to a request."""
    request = urllib.request.Request(f"{address}{path}", data=body, method="POST")
    with _OPENER.open(request, timeout=120) as response:
        content: dict[str, object] = json.load(response)
    return content


def hover(address: str, image: str, models: Sequence[str], seconds: float, seed: int) -> list[float | None]:
    """Ask for masks at random places until the time is up, and return the seconds of each answer; None for errors."""
    rng = np.random.default_rng(seed)
    ends, taken = time.monotonic() + seconds, []
    while time.monotonic() < ends:
        x, y = rng.uniform(0, (448, 298)).tolist()
        body = {"image": image, "models": list(models), "prompt": {"points": [[x, y]], "labels": [1]}}
        start = time.perf_counter()
        try:
            post(address, "/api/predict", json.dumps(body).encode())
            taken.append(time.perf_counter() - start)
        except (urllib.error.URLError, OSError):
            taken.append(None)
    return taken


def measure(address: str, models: Sequence[str], clients: int, seconds: float) -> dict[str, object]:
    """Return the row of a number of clients."""
    image = str(post(address, "/api/images?name=cat.jpg", SAMPLE.read_bytes())["image"])
    hover(address, image, models, 0.5, 0)  # encodes
    start = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        parts = list(pool.map(lambda seed: hover(address, image, models, seconds, seed), range(clients)))
    spent = time.monotonic() - start
    taken = [one for part in parts for one in part if one is not None]
    errors = sum(one is None for part in parts for one in part)
    return {
        "clients": clients,
        "answers": len(taken),
        "errors": errors,
        "median_ms": round(1000 * statistics.median(taken), 1),
        "p95_ms": round(1000 * float(np.quantile(taken, 0.95)), 1),
        "answers_per_s": round(len(taken) / spent, 1),
    }


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Measure `saqsam serve` under load.")
    parser.add_argument("--models", nargs="+", required=True, help="two models as `saqsam serve` takes them")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 10, 50])
    parser.add_argument("--seconds", type=float, default=30.0)
    add_out(parser, OUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    common = stamp("cpu", COLUMNS)
    command = [sys.executable, "-m", "saqsam", "serve", *options.models, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.match(r"(http://\S+)/\n", server.stdout.readline())
            if found is None:
                return 1
            names = [Path(text).name for text in options.models]
            for clients in options.clients:
                row = measure(found[1], names[:2], clients, options.seconds)
                append_plain(options.out, COLUMNS, [common | {"models": " ".join(names[:2])} | row])
        finally:
            server.send_signal(signal.SIGINT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
