"""Groups of options that commands take as one parameter each.

Choices, defaults and help texts come from the registries of tasks, methods and formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from saqsam.cli.help_texts import DATA_HELP, IGNORE_LABEL_HELP, alternatives, default_tasks, described
from saqsam.cli.option_groups import OptionGroup, TaskOptions, check_most
from saqsam.cli.parameters import ImageSizeOption
from saqsam.evaluation.registry import PROMPT, TASKS, TaskOption
from saqsam.recipes.catalog import (
    AUTO_EFFORT,
    DEFAULT_BITS,
    DEFAULT_CALIBRATION,
    DEFAULT_CALIBRATION_IMAGES,
    DEFAULT_EFFORT,
    DEFAULT_MEMORY,
    DEFAULT_METHOD,
    DEFAULT_SEED,
    DEFAULT_WEIGHT_BITS,
    DEPLOY_TARGETS,
    EFFORTS,
    METHOD_SUMMARIES,
)

SCENES = "scenes"
NO_CHECK = "none"


ScoredDataOption = Annotated[str, typer.Option(metavar="DATA", help=f"Dataset to score: {DATA_HELP}")]
IgnoreLabelOption = Annotated[
    str,
    typer.Option(metavar="auto|none|VALUE", help=f"In folders of images and masks, the {IGNORE_LABEL_HELP}"),
]


@dataclass(frozen=True)
class EvaluationOptions(OptionGroup):
    """Data and tasks of an evaluation."""

    data: ScoredDataOption = SCENES
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"Task: {described((e.name, e.summary) for e in TASKS.values())}; repeatable.",
            show_default=default_tasks(),
        ),
    ] = None
    ignore_label: IgnoreLabelOption = "auto"
    limit: Annotated[
        int | None,
        typer.Option(min=1, callback=check_most, metavar="N", help="Score the first N images only."),
    ] = None
    image_size: ImageSizeOption = None
    memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Memory for prompts that are decoded together, without the model."),
    ] = "1GiB"
    workers: Annotated[
        int, typer.Option(min=0, max=256, metavar="N", help="Threads that read images ahead.")
    ] = 2


class PromptOptions(TaskOptions):
    """The kind of prompt, for commands that score the task `prompt` alone."""

    panel = None
    names_tasks = False

    @classmethod
    def declared(cls) -> Sequence[TaskOption]:
        """Return the options of the group."""
        return (PROMPT,)


@dataclass(frozen=True)
class QuantizeOptions(OptionGroup):
    """Method, calibration and check of a quantization."""

    method: Annotated[
        str, typer.Option(metavar="NAME", help=f"Method: {described(METHOD_SUMMARIES.items())}.")
    ] = DEFAULT_METHOD
    bits: Annotated[
        str | None,
        typer.Option(
            metavar="wXaY",
            help="X bits for weights and Y bits for activations, 2 to 8 each; wXaY-mixed keeps the decoder at 8 bits; "
            "for weight-only such as w4, or w4g128 for groups of 128 inputs.",
            show_default=f"{DEFAULT_BITS}; {DEFAULT_WEIGHT_BITS} for weight-only",
        ),
    ] = None
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="LIMIT",
            help="Limit under which the bits of each part are chosen, instead of --bits: 4.5b (mean bits; w3.5b of "
            "weights, a4.3b of activations), 6MB (on disk), loss=0.05 (1 - IoU with the float model's masks), or "
            "several, separated by commas.",
        ),
    ] = None
    image_size: ImageSizeOption = None
    calibration: Annotated[
        str,
        typer.Option(
            metavar="DATA", help="Calibration set: a dataset as for evaluate --data, or any folder of images."
        ),
    ] = DEFAULT_CALIBRATION
    images: Annotated[
        int, typer.Option(min=1, callback=check_most, metavar="N", help="Number of calibration images.")
    ] = DEFAULT_CALIBRATION_IMAGES
    seed: Annotated[
        int,
        typer.Option(
            min=0, callback=check_most, metavar="N", help="Seed for drawing calibration images and prompts."
        ),
    ] = DEFAULT_SEED
    detections: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="COCO results file of a detector, whose boxes become the calibration prompts.",
        ),
    ] = None
    ignore_label: Annotated[
        str,
        typer.Option(
            metavar="auto|none|VALUE",
            help=f"In a calibration set of images and masks, the {IGNORE_LABEL_HELP}",
        ),
    ] = "auto"
    effort: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"Number of learning steps: {alternatives(EFFORTS)} (as published); {AUTO_EFFORT} chooses by method "
            "and bits, and prints the reason.",
        ),
    ] = DEFAULT_EFFORT
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            callback=check_most,
            metavar="N",
            help="Learning steps per unit, instead of those of --effort.",
        ),
    ] = None
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override one field of the method's recipe, such as clipping=none or reconstruction.loss=output; "
            "repeatable.",
        ),
    ] = None
    deploy: Annotated[
        bool,
        typer.Option(
            "--deploy",
            help="Adapt the recipe to integer kernels, so that the checkpoint can be exported: signed 8-bit weights, "
            "8-bit uniform probabilities, and more.",
        ),
    ] = False
    deploy_for: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"The same for the kernels of one export format: {alternatives(DEPLOY_TARGETS)}.",
        ),
    ] = None
    memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Captured activations to keep in memory; the rest goes to disk."),
    ] = DEFAULT_MEMORY
    check: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help=f"Dataset to score the float and the quantized model on; {NO_CHECK} skips this.",
        ),
    ] = SCENES
    check_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            callback=check_most,
            metavar="N",
            help="Images of --check to score.",
            show_default="24; 2 for inputs above 512 px, 1 for SAM-L and SAM-H",
        ),
    ] = None


@dataclass(frozen=True)
class ReportOptions(OptionGroup):
    """Data and measurements of a report."""

    data: ScoredDataOption = SCENES
    ignore_label: IgnoreLabelOption = "auto"
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            callback=check_most,
            metavar="N",
            help="Score the first N images only.",
            show_default="24; 4 for inputs above 512 px",
        ),
    ] = None
    float_model: Annotated[
        str | None,
        typer.Option(
            "--float",
            metavar="MODEL",
            help="Float model to compare with.",
            show_default="as recorded by quantize",
        ),
    ] = None
    calibration: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Calibration set.", show_default="as recorded by quantize"),
    ] = None
    sensitivity: Annotated[
        str,
        typer.Option(
            metavar="none|parts|layers",
            help="Measure each part, or each layer, quantized alone and left float alone.",
        ),
    ] = "parts"
    sensitivity_images: Annotated[
        int,
        typer.Option(min=1, callback=check_most, metavar="N", help="Images to measure sensitivity on."),
    ] = 4
    memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Memory for prompts that are decoded together, without the model."),
    ] = "1GiB"
