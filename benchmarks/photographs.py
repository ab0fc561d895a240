"""Draw the first picture of README.md: three photographs segmented by the float model and by a packed checkpoint.

    saqsam quantize sam-mini --out out/w4a4 --effort quick
    python benchmarks/photographs.py out/w4a4

The photographs lie in docs/assets/photographs; docs/assets/LICENSES.md names their sources.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import saqsam
from saqsam.data.images import read_image
from saqsam.evaluation import mask_iou
from saqsam.viz.overlays import overlay_masks

ASSETS = Path(__file__).resolve().parents[1] / "docs" / "assets"
BOXES: dict[str, list[tuple[int, int, int, int]]] = {
    "cat": [(132, 86, 212, 150), (294, 112, 340, 164), (230, 220, 296, 266)],
    "coffee": [(140, 14, 330, 150), (254, 186, 326, 264)],
    "astronaut": [(24, 8, 284, 398), (306, 1, 384, 218), (212, 266, 399, 399)],
}
"""Prompts of each photograph, xyxy in pixels."""


def segment(model: str | Path) -> dict[str, NDArray[np.bool_]]:
    """Return the masks [P, H, W] of each photograph's boxes."""
    predictor = saqsam.Predictor(*saqsam.load(model))
    masks = {}
    for name, boxes in BOXES.items():
        predictor.set_image(read_image(ASSETS / "photographs" / f"{name}.jpg"))
        batch, _, _ = predictor.predict_batch(boxes=np.array(boxes, dtype=np.float32), multimask_output=False)
        masks[name] = batch[:, 0].cpu().numpy()
    return masks


def draw(columns: dict[str, dict[str, NDArray[np.bool_]]]) -> Figure:
    """Return a figure with one row per model and one column per photograph; the first model is the reference."""
    images = {name: read_image(ASSETS / "photographs" / f"{name}.jpg") for name in BOXES}
    widths = [image.shape[1] / image.shape[0] for image in images.values()]
    height = 2.2
    figure = Figure(figsize=(height * sum(widths) + 0.4, height * len(columns) + 0.2), layout="constrained")
    grid = figure.subplots(len(columns), len(BOXES), squeeze=False, width_ratios=widths)
    reference = next(iter(columns.values()))
    for row, (label, masks) in enumerate(columns.items()):
        for axes, (name, image) in zip(grid[row], images.items(), strict=True):
            _draw_panel(axes, image, masks[name], BOXES[name])
            if row:
                iou = mask_iou(torch.from_numpy(masks[name]), torch.from_numpy(reference[name])).mean()
                axes.set_xlabel(f"IoU with the float masks: {iou:.2f}", fontsize=9)
        grid[row][0].set_ylabel(label, fontsize=11)
    return figure


def _draw_panel(
    axes: Axes,
    image: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    boxes: Sequence[tuple[int, int, int, int]],
) -> None:
    """Draw one photograph with its masks and prompts."""
    axes.imshow(overlay_masks(image, masks))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    for x0, y0, x1, y1 in boxes:
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="white", linewidth=1.2)
    axes.set_xlim(0, image.shape[1] - 1)
    axes.set_ylim(image.shape[0] - 1, 0)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Draw photographs with float and quantized masks.")
    parser.add_argument("checkpoint", type=Path, help="a packed checkpoint of the float model")
    parser.add_argument("--model", default="sam-mini", help="the float model")
    parser.add_argument("--label", default="4-bit", help="label of the checkpoint's row")
    parser.add_argument("--out", type=Path, default=ASSETS / "photographs.jpg")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    rows = {"float32": segment(options.model), options.label: segment(options.checkpoint)}
    draw(rows).savefig(options.out, dpi=110, pil_kwargs={"quality": 88})
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
