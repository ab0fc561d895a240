"""Measure web exports in headless Chromium: bytes, times, and masks against ONNX Runtime; rows in results/web.csv.

    python benchmarks/web.py --exports sam-mini-web sam2-mini-web

Each export holds a copy of onnxruntime-web. A run opens the page anew, chooses a sample, and moves the pointer over it;
times are taken in the page, from the event to the mask that is drawn. Masks are those of points and boxes on all
samples.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import shutil
import statistics
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from options import add_out
from plain_rows import append_plain
from plan import stamp
from rows import RESULTS
from saqsam.data.images import read_image_bytes
from saqsam.data.rle import decode_mask
from saqsam.export.manifest import read_manifest
from saqsam.export.web.page import SAMPLES, read_page
from saqsam.inference.predictor import Predictor
from saqsam.runtimes.loading import load_runtime
from saqsam.segmentation.prompts import Prompt, segment_prompts

if TYPE_CHECKING:
    from playwright.sync_api import Page

OUT = RESULTS / "web.csv"
COLUMNS = (
    "commit",
    "machine",
    "browser",
    "export",
    "model",
    "threads",
    "model_bytes",
    "runtime_bytes",
    "load_ms",
    "first_mask_ms",
    "hovers",
    "hover_median_ms",
    "hover_p95_ms",
    "masks",
    "iou_median",
    "iou_mean",
    "iou_least",
    "iou_decided_least",
    "openvino_iou_median",
    "openvino_iou_least",
)
"""Columns: `iou_` of the page's masks with ONNX Runtime's, `openvino_iou_` of OpenVINO's, as a yardstick."""
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update"),
)
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
PATIENCE = 120_000
"""Milliseconds to wait for the page."""

# From the click on a sample to the first mask that is drawn under a pointer.
_FIRST_MASK = """
() => new Promise((resolve) => {
  const canvas = document.querySelector("canvas");
  const pixels = document.getElementById("pixels0");
  const start = performance.now();
  let isAsked = false;
  const observer = new MutationObserver(() => {
    const area = canvas.getBoundingClientRect();
    if (!isAsked && document.getElementById("message").textContent.includes("Move over")) {
      isAsked = true;
      const [clientX, clientY] = [area.left + area.width / 2, area.top + area.height / 2];
      const place = { clientX, clientY, isPrimary: true, pointerType: "mouse" };
      canvas.dispatchEvent(new PointerEvent("pointermove", place));
    }
    if (isAsked && pixels.textContent) {
      observer.disconnect();
      resolve(performance.now() - start);
    }
  });
  observer.observe(document.body, { subtree: true, childList: true });
  document.querySelector("#samples button").click();
})
"""
# Times of masks under a pointer that jumps to the next place as soon as a mask is drawn.
_HOVERS = """
async (places) => {
  const canvas = document.querySelector("canvas");
  const field = document.getElementById("decode0");
  const times = [];
  for (const [x, y] of places) {
    const area = canvas.getBoundingClientRect();
    const [clientX, clientY] = [area.left + x * area.width, area.top + y * area.height];
    const start = performance.now();
    const drawn = new Promise((resolve) => {
      const observer = new MutationObserver(() => {
        observer.disconnect();
        resolve(performance.now());
      });
      observer.observe(field, { childList: true });
    });
    const place = { clientX, clientY, isPrimary: true, pointerType: "mouse" };
    canvas.dispatchEvent(new PointerEvent("pointermove", place));
    times.push((await drawn) - start);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return times;
}
"""
# COCO annotation files of prompts on a sample, from the module that the page imports, too.
_MASKS = """
async ([name, prompts]) => {
  const models = await import(new URL("models.js", location.href));
  const { id } = await models.open(await (await fetch(`samples/${name}`)).blob(), name);
  const found = [];
  for (const prompt of prompts) {
    found.push(JSON.parse(await (await models.mask({ image: id, prompt, format: "coco" })).text()));
  }
  return found;
}
"""


@contextmanager
def served(folder: Path, headers: Mapping[str, str]) -> Iterator[str]:
    """Serve a folder at the address that is yielded."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in headers.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def load(page: Page, address: str) -> float:
    """Open the page, and return the milliseconds until its model is ready."""
    page.goto(address)
    page.wait_for_selector("body[data-loaded]", timeout=PATIENCE)
    return float(page.evaluate("() => performance.now()"))


def prompts_on(size: tuple[int, int], count: int) -> list[Prompt]:
    """Return points and boxes, one after the other, in an image of a size (height, width)."""
    rng = np.random.default_rng(0)
    height, width = size
    prompts = []
    for number in range(count):
        x, y = rng.uniform(0.15, 0.85, 2) * (width, height)
        half = rng.uniform(0.1, 0.3, 2) * (width, height)
        if number % 2:
            corners = (
                max(0, x - half[0]),
                max(0, y - half[1]),
                min(width, x + half[0]),
                min(height, y + half[1]),
            )
            prompts.append(Prompt(box=tuple(float(value) for value in corners)))  # type: ignore[arg-type]
        else:
            prompts.append(Prompt(points=((float(x), float(y)),), labels=(1,)))
    return prompts


def as_json(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as the page takes it."""
    content: dict[str, Any] = {"points": [list(one) for one in prompt.points], "labels": list(prompt.labels)}
    return content if prompt.box is None else content | {"box": list(prompt.box)}


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the IoU of two masks; 1 if both are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def compare(page: Page, folder: Path, count: int) -> list[tuple[float, float, float]]:
    """Return IoUs with each mask of ONNX Runtime: the page's, over all pixels and over decided ones, and OpenVINO's.

    A pixel is undecided if the logit of ONNX Runtime is within 0.5 of the threshold.
    """
    predictor, other = (
        Predictor(*load_runtime(folder, runtime, device="cpu", threads=1))
        for runtime in ("onnxruntime", "openvino")
    )
    found = []
    for name in SAMPLES:
        pixels, _ = read_image_bytes(read_page(f"samples/{name}"), name)
        encoded, other_encoded = predictor.encode(pixels), other.encode(pixels)
        prompts = prompts_on((pixels.shape[0], pixels.shape[1]), count)
        documents = page.evaluate(_MASKS, [name, [as_json(prompt) for prompt in prompts]])
        for prompt, document in zip(prompts, documents, strict=True):
            segmentation = document["annotations"][0]["segmentation"]
            mask = decode_mask({"size": segmentation["size"], "counts": segmentation["counts"].encode()})
            (expected,) = segment_prompts(predictor, encoded, [prompt])
            (yardstick,) = segment_prompts(other, other_encoded, [prompt])
            own = expected.mask()
            decided = np.abs(logits_of(predictor, encoded, prompt)) > 0.5
            found.append((iou(mask, own), iou(mask & decided, own & decided), iou(yardstick.mask(), own)))
    return found


def logits_of(predictor: Predictor, encoded: Any, prompt: Prompt) -> np.ndarray:
    """Return the logits [H, W] of the mask that `segment_prompts` returns."""
    logits, ious, _ = predictor.predict(
        point_coords=prompt.points or None,
        point_labels=prompt.labels or None,
        box=prompt.box,
        multimask_output=prompt.box is None,
        return_logits=True,
        image=encoded,
    )
    best: np.ndarray = logits[int(ious.argmax())]
    return best


def measure(
    folder: Path, chromium: str, *, threads: bool, runs: int, hovers: int, masks: int
) -> dict[str, object]:
    """Return the row of an export."""
    from playwright.sync_api import sync_playwright

    manifest = read_manifest(folder)
    places = np.random.default_rng(1).uniform(0.05, 0.95, (hovers, 2)).tolist()
    loads, firsts, times = [], [], []
    with sync_playwright() as started, served(folder, ISOLATION if threads else {}) as address:
        for run in range(runs):
            browser = started.chromium.launch(executable_path=chromium, args=list(FLAGS))
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            loads.append(load(page, address))
            firsts.append(float(page.evaluate(_FIRST_MASK)))
            times += [float(one) for one in page.evaluate(_HOVERS, places)]
            shown = page.locator("#bytes0").inner_text()
            version = browser.version
            ious = compare(page, folder, masks) if run == runs - 1 else []
            browser.close()
    own, decided, yardstick = zip(*ious, strict=True)
    copy = folder / "onnxruntime-web"
    return {
        "browser": f"Chromium {version}",
        "export": folder.name,
        "model": manifest.name,
        "threads": shown.rpartition(", ")[2].split()[0] if shown.endswith("threads") else 1,
        "model_bytes": sum(manifest.details["bytes"].values()),
        "runtime_bytes": sum(path.stat().st_size for path in copy.iterdir()),
        "load_ms": round(statistics.median(loads)),
        "first_mask_ms": round(statistics.median(firsts)),
        "hovers": len(times),
        "hover_median_ms": round(statistics.median(times), 1),
        "hover_p95_ms": round(float(np.quantile(times, 0.95)), 1),
        "masks": len(ious),
        "iou_median": round(statistics.median(own), 4),
        "iou_mean": round(statistics.mean(own), 4),
        "iou_least": round(min(own), 4),
        "iou_decided_least": round(min(decided), 4),
        "openvino_iou_median": round(statistics.median(yardstick), 4),
        "openvino_iou_least": round(min(yardstick), 4),
    }


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Measure web exports in headless Chromium.")
    parser.add_argument(
        "--exports", nargs="+", type=Path, required=True, help="folders of saqsam export --format web"
    )
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    parser.add_argument("--threads", action="store_true", help="isolate the page, so that it uses threads")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--hovers", type=int, default=60, help="places of the pointer per run")
    parser.add_argument("--masks", type=int, default=16, help="prompts per sample")
    add_out(parser, OUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    common = stamp("cpu", COLUMNS)
    for folder in options.exports:
        row = measure(
            folder,
            options.chromium,
            threads=options.threads,
            runs=options.runs,
            hovers=options.hovers,
            masks=options.masks,
        )
        print(json.dumps(row))
        append_plain(options.out, COLUMNS, [common | row])
    return 0


if __name__ == "__main__":
    sys.exit(main())
