"""Implementation of `saqsam segment`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import SamModel, SamProcessor

from saqsam.cli.inputs import open_model
from saqsam.cli.integer_layers import measure_integers, print_integers
from saqsam.cli.outputs import claim_output
from saqsam.cli.progress import busy
from saqsam.cli.terminal import print_table, result_table, say
from saqsam.data.images import read_image
from saqsam.evaluation.registry import GENERATOR_OPTIONS
from saqsam.evaluation.task_inputs import generator_options
from saqsam.inference.backend import Backend
from saqsam.inference.mask_generator import MaskGenerator
from saqsam.inference.predictor import Predictor
from saqsam.runtimes import TORCH_INTEGER
from saqsam.utils.atomic_write import check_file_writable, png_bytes
from saqsam.viz.overlays import overlay_masks

Prompt = tuple[str, Sequence[float]]
"""Coordinates in pixels, xyxy or x, y, with the text that gave them."""


@dataclass(frozen=True)
class Machine:
    """Device, runtime, threads and input size that a model runs with, as in the options of these names."""

    device: str
    runtime: str | None
    threads: int | None
    image_size: int | None

    def open(self, model: str) -> tuple[SamModel | Backend, SamProcessor, str]:
        """Load a model with its processor and the name of its recipe."""
        return open_model(model, self.device, self.runtime, self.threads, self.image_size)


def segment(
    model: str,
    image: Path,
    path: Path,
    boxes: Sequence[Prompt],
    points: Sequence[Prompt],
    machine: Machine,
    *,
    overwrite: bool,
) -> None:
    """Segment an image from boxes and points, and draw one mask per prompt to `path`."""
    picture = _read_picture(image, path)
    with claim_output(path, overwrite=overwrite) as output:
        sam, processor, _ = machine.open(model)
        predictor = Predictor(sam, processor)
        with busy(f"segmenting {image}"):
            predictor.set_image(picture)
            results = [predictor.predict(box=np.array(b), multimask_output=False) for _, b in boxes]
            results += [
                predictor.predict(np.array([p]), np.array([1]), multimask_output=True) for _, p in points
            ]
            best = [int(ious.argmax()) for _, ious, _ in results]
            masks = np.stack([masks[i] for (masks, _, _), i in zip(results, best, strict=True)]).astype(bool)
            output.write(png_bytes(overlay_masks(picture, masks)))
    table = result_table("prompt", "predicted IoU", "pixels", right=2)
    prompts = [f"box {text}" for text, _ in boxes] + [f"point {text}" for text, _ in points]
    for name, mask, (_, ious, _), i in zip(prompts, masks, results, best, strict=True):
        table.add_row(name, f"{ious[i]:.3f}", f"{mask.sum():,}")
    print_table(table)
    say(f"picture: {path}")
    if machine.runtime == TORCH_INTEGER:
        print_integers(measure_integers(sam))


def segment_everything(
    model: str, image: Path, path: Path, options: Mapping[str, Any], machine: Machine, *, overwrite: bool
) -> None:
    """Generate automatic masks of an image, and draw them to `path`, smaller ones on top."""
    generator = generator_options({option.name: options.get(option.name) for option in GENERATOR_OPTIONS})
    picture = _read_picture(image, path)
    with claim_output(path, overwrite=overwrite) as output:
        sam, processor, _ = machine.open(model)
        with busy(f"segmenting {image}"):
            masks = MaskGenerator(Predictor(sam, processor), generator).generate(picture)
            if not masks:
                raise ValueError(
                    f"no mask is rated above --pred-iou {generator.pred_iou_thresh} with a stability above --stability "
                    f"{generator.stability_score_thresh}; lower them"
                )
            masks.sort(key=lambda one: -one.area)
            output.write(png_bytes(overlay_masks(picture, np.stack([one.mask() for one in masks]))))
    say(f"{len(masks)} masks from {generator.points_per_side}^2 points")
    say(f"picture: {path}")
    if machine.runtime == TORCH_INTEGER:
        print_integers(measure_integers(sam))


def _read_picture(image: Path, path: Path) -> NDArray[np.uint8]:
    """Read the image to segment, after checking that a picture can be written to `path`."""
    picture = read_image(image)
    check_file_writable(path)
    return picture
