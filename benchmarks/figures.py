"""Draw the figures of docs/results from checkpoints reloaded from disk, on scenes of the bundled generator.

    python benchmarks/figures.py                 # the pictures below, in docs/assets

- `focus.png`: where a mask token looks in the image, in float, with minimum-error ranges, and clipped by the focus.
- `masks.png`: the masks of one model after another at the hardest bits.
- `learning.png`: loss curves of SAQ-SAM's units and the focus deviation before and after clipping.
- `steps.png`: accuracy over the time of quantization, from the rows in results/steps.csv.
- `bits.png`: accuracy over mean bits, from the rows in results/budget.csv.

Checkpoints are those of the rows in results/methods.csv if the cache of `ptq.py` still has them, else made anew as
`ptq.py` does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from transformers import SamModel, SamProcessor

import ptq
import saqsam
from budget_figure import draw_bits
from options import add_cache, add_data_root, add_machine, plan_options
from plan import ROOT, Plan, make_plan
from rows import FLOAT, RESULTS, Row, current, read_rows
from saqsam.cli.terminal import progress_bars
from saqsam.data.open import open_dataset
from saqsam.data.types import Sample
from saqsam.evaluation import mask_iou
from saqsam.inference.predictor import Predictor
from saqsam.models.registry import family_of, structure_of
from saqsam.report import focus
from saqsam.report.log import LOG_PICTURE, write_log
from saqsam.utils.atomic_write import write_atomic
from saqsam.viz.overlays import overlay_masks

FIGURES = ("learning", "masks", "focus", "steps", "bits")
IMAGES = ROOT / "docs" / "assets"
BITS = "w4a4"
FOCUS = ("ptq4sam-s", "saq-sam-s")
"""Two methods that differ only in clipping."""
MASKS = ("mse", "ptq4sam", "saq-sam", "saq-sam-plus")
FOCUS_SCENE, MASK_SCENES = 3, (1, 5, 8)
MOST_BOXES = 8


class Models:
    """The float model and its quantized checkpoints, by method."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @property
    def float(self) -> tuple[SamModel, SamProcessor]:
        """Return the float model."""
        return self.plan.model.loaded

    def quantized(self, method: str) -> tuple[SamModel, SamProcessor]:
        """Load a checkpoint of a method, from the cache of the tables if it is there."""
        folder = self._measured(method)
        if folder is None:
            with progress_bars() as bars:
                folder, _ = ptq.make_checkpoint(self.plan, method, BITS, bars)
        return saqsam.load(folder)

    def _measured(self, method: str) -> Path | None:
        hashes = {
            row.checkpoint
            for row in read_rows(RESULTS / "methods.csv")
            if (row.method, row.bits, row.seed, row.settings) == (method, BITS, 0, "")
            and row.model_hash == self.plan.model.hash
        }
        for path in sorted((self.plan.cache / "checkpoints").glob(f"{method}-{BITS}-*/config.json")):
            config = json.loads(path.read_text(encoding="utf-8"))["quantization_config"]
            if config["content_sha256"][:12] in hashes:
                return path.parent
        return None


def draw_focus(models: Models, scene: Sample) -> Figure:
    """Draw the probabilities of the mask token, averaged over heads: one row per token-to-image attention."""
    box = max((i for i in scene.instances if not i.is_crowd), key=lambda i: i.area).box
    float_model, processor = models.float
    float_model = focus.with_slots(float_model, saqsam.recipe_for("mse", BITS))
    token = family_of(float_model.config).mask_token
    sites = focus.looking_attentions(structure_of(float_model.config))
    columns = {"float": focus.probabilities(float_model, processor, scene.image, box, sites)}
    titles = {"ptq4sam-s": "minimum-error ranges", "saq-sam-s": "clipped by the focus"}
    for method in FOCUS:
        columns[titles[method]] = focus.probabilities(*models.quantized(method), scene.image, box, sites)
    figure = Figure(figsize=(2.9 * (len(columns) + 1), 2.75 * len(sites)), layout="constrained")
    grid = figure.subplots(len(sites), len(columns) + 1, squeeze=False)
    names = [f"layer {i + 1}" for i in range(len(sites) - 1)] + ["final attention"]
    height, width = scene.image.shape[:2]
    for row, (site, name) in enumerate(zip(sites, names, strict=True)):
        for axes in grid[row]:
            axes.set_xticks([])
            axes.set_yticks([])
        grid[row][0].imshow(scene.image)
        grid[row][0].set_ylabel(f"token-to-image, {name}", fontsize=9)
        x0, y0, x1, y1 = box
        grid[row][0].plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="white", linewidth=1.5)
        exact = columns["float"][site]
        for column, (title, by_site) in enumerate(columns.items(), start=1):
            axes, probabilities = grid[row][column], by_site[site]
            picture = focus.token_map(probabilities, token, (height, width))
            axes.imshow(picture.sqrt(), cmap="magma", vmin=0, vmax=float(picture.max().sqrt()))
            deviation = (
                "" if column == 1 else f"focus deviation {focus.focus_deviation(exact, probabilities):.3f}"
            )
            axes.set_xlabel(deviation, fontsize=8)
            if row == 0:
                axes.set_title(title, fontsize=10)
    return figure


def draw_masks(models: Models, scenes: Sequence[Sample]) -> Figure:
    """Draw the masks of each model for the same boxes, with their mean IoU: one row per scene."""
    columns = {"float": models.float, **{f"{m}, {BITS}": models.quantized(m) for m in MASKS}}
    figure = Figure(figsize=(2.7 * (len(columns) + 1), 2.6 * len(scenes)), layout="constrained")
    grid = figure.subplots(len(scenes), len(columns) + 1, squeeze=False)
    for row, scene in enumerate(scenes):
        instances = [i for i in scene.instances if not i.is_crowd][:MOST_BOXES]
        truth = np.stack([i.mask() for i in instances])
        boxes = np.array([i.box for i in instances])
        panels = {"ground truth": truth}
        for name, (model, processor) in columns.items():
            predictor = Predictor(model, processor)
            predictor.set_image(scene.image)
            masks, _, _ = predictor.predict_batch(boxes=boxes, multimask_output=False)
            panels[name] = masks[:, 0].cpu().numpy()
        for axes, (name, masks) in zip(grid[row], panels.items(), strict=True):
            axes.set_axis_off()
            axes.imshow(overlay_masks(scene.image, masks))
            iou = float(mask_iou(torch.from_numpy(masks), torch.from_numpy(truth)).mean())
            note = "" if name == "ground truth" else f"mean IoU {iou:.3f}"
            axes.set_title(f"{name}\n{note}" if row == 0 else note, fontsize=9)
    return figure


def write_learning(plan: Plan, path: Path) -> None:
    """Write the picture that `saqsam quantize` writes beside a checkpoint."""
    model, processor = plan.model.loaded
    recipe = plan.recipe("saq-sam", BITS)
    folder = plan.cache / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bars() as bars, ptq.bar(bars, "learning") as step:
        result = saqsam.quantize(
            model,
            processor,
            recipe,
            plan.calibration[1],
            progress=step,
        )
    write_log(result.log, recipe, folder)
    write_atomic(path, (folder / LOG_PICTURE).read_bytes())


def draw_steps(rows: Sequence[Row]) -> Figure:
    """Draw mean IoU over the time of quantization: one panel per dataset, one line per method."""
    data = list(dict.fromkeys(row.data for row in rows if row.steps))
    figure = Figure(figsize=(4 * len(data) + 1, 3.2), layout="constrained")
    panels = figure.subplots(1, len(data), squeeze=False)[0]
    for axes, name in zip(panels, data, strict=True):
        here = [row for row in rows if row.data == name]
        for method in dict.fromkeys(row.method for row in here if row.steps):
            points = sorted(
                (row.seconds_quantize / 60, row.miou)
                for row in here
                if row.method == method and row.seconds_quantize is not None
            )
            axes.plot(*zip(*points, strict=True), marker="o", label=method)
        for row in here:
            if row.method == FLOAT:
                axes.axhline(row.miou, color="0.5", linestyle="--", label="float")
        axes.set_xlim(left=0)
        axes.set_title(f"{name}, {BITS}", fontsize=9)
        axes.set_xlabel("minutes of one core")
        axes.set_ylabel("mean IoU")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False
    )
    return figure


def steps_rows() -> list[Row]:
    """Return the rows of the curve and of the float model."""
    curve = current(read_rows(RESULTS / "steps.csv"))
    data = {row.data for row in curve}
    floats = [
        row for row in current(read_rows(RESULTS / "methods.csv")) if row.data in data and row.method == FLOAT
    ]
    return [*curve, *floats]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Draw the figures.", allow_abbrev=False)
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES))
    add_data_root(parser)
    add_machine(parser)
    parser.add_argument("--out", type=Path, default=IMAGES, metavar="DIR", help="folder of the pictures")
    add_cache(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        plan = make_plan(plan_options(options, data=["scenes"]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    data = open_dataset("scenes", limit=max(FOCUS_SCENE, *MASK_SCENES) + 1)
    models = Models(plan)
    for name in options.figures:
        path = options.out / f"{name}.png"
        if name == "masks":
            draw_masks(models, [data[i] for i in MASK_SCENES]).savefig(path, dpi=100)
        elif name == "focus":
            draw_focus(models, data[FOCUS_SCENE]).savefig(path, dpi=100)
        elif name == "steps":
            draw_steps(steps_rows()).savefig(path, dpi=100)
        elif name == "bits":
            draw_bits(models.float[0].config).savefig(path, dpi=100)
        else:
            write_learning(plan, path)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
