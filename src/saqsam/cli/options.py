"""Options of the commands, as typer declares them: single ones that several commands share, and groups.

Choices, defaults and help texts come from the registries of tasks, methods, formats and runtimes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from saqsam.cli.option_groups import OptionGroup, TaskOptions, check_most
from saqsam.evaluation.registry import GENERATOR_OPTIONS, PROMPT, TASKS, TaskOption
from saqsam.export.formats import FORMATS
from saqsam.recipes.catalog import (
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
from saqsam.runtimes.registry import RUNTIMES, TORCH, TORCH_INTEGER

SCENES = "scenes"
NO_CHECK = "none"


def alternatives(names: Iterable[str]) -> str:
    """Return names as a list that ends in "or"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def described(summaries: Iterable[tuple[str, str]]) -> str:
    """Return names with their summaries in brackets, as one sentence without its full stop."""
    return ", ".join(f"{name} ({summary})" for name, summary in summaries)


def _runtime_devices() -> str:
    return ", ".join(f"{alternatives(r.devices)} in {r.name}" for r in RUNTIMES.values() if r.devices)


def _default_tasks() -> str:
    names = " and ".join(entry.name for entry in TASKS.values() if entry.is_default)
    implied = [f"{e.name} too with --{e.implied_by}" for e in TASKS.values() if e.implied_by is not None]
    return "; ".join([names, *implied])


MODEL_HELP = (
    "sam-mini, a checkpoint or export of saqsam, a folder or hub id of transformers, or an official "
    "sam_vit_*.pth."
)
DATA_HELP = (
    "scenes (generated images); a folder with images/ and annotations.json (COCO format), labelTxt/ (DOTA) or masks/ "
    "(pairs); an image folder of a COCO root, such as ROOT/val2017; an annotation file of COCO or LVIS; for task "
    "semantic also the root of ADE20K."
)
IGNORE_LABEL_HELP = "value of mask pixels that do not count; auto: 255 in masks of 0, 1 and 255."

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
CheckpointArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint of saqsam.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"Device: auto, cpu, cuda, mps, ...; for an exported folder one of its runtime: {_runtime_devices()}.",
    ),
]
RuntimeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Runtime. For an exported folder {alternatives(RUNTIMES)}; for a checkpoint {TORCH}, or {TORCH_INTEGER}: "
        "linear layers on torch's integer kernels, timed against float.",
        show_default=f"that of the export's format; {TORCH}",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, max=1024, metavar="N", help="Threads of torch or the runtime.", show_default="all"),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all results to a JSON file.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]


@dataclass(frozen=True)
class EvaluationOptions(OptionGroup):
    """Data and tasks of an evaluation."""

    data: Annotated[str, typer.Option(metavar="DATA", help=f"Dataset to score: {DATA_HELP}")] = SCENES
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"Task: {described((e.name, e.summary) for e in TASKS.values())}; repeatable.",
            show_default=_default_tasks(),
        ),
    ] = None
    ignore_label: Annotated[
        str,
        typer.Option(
            metavar="auto|none|VALUE", help=f"In folders of images and masks, the {IGNORE_LABEL_HELP}"
        ),
    ] = "auto"
    limit: Annotated[
        int | None,
        typer.Option(min=1, callback=check_most, metavar="N", help="Score the first N images only."),
    ] = None
    memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Memory for prompts that are decoded together, beside the model."),
    ] = "1GiB"
    workers: Annotated[
        int, typer.Option(min=0, max=256, metavar="N", help="Threads that read images ahead.")
    ] = 2


class PromptOptions(TaskOptions):
    """The kind of prompt, for commands that score the task `prompt` alone."""

    panel = None

    @classmethod
    def declared(cls) -> Sequence[TaskOption]:
        """Return the options of the group."""
        return (PROMPT,)


class GeneratorOptions(TaskOptions):
    """Options of automatic masks, for commands that run no task."""

    panel = "Options of --everything"

    @classmethod
    def declared(cls) -> Sequence[TaskOption]:
        """Return the options of the group."""
        return GENERATOR_OPTIONS


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
            help="X bits for weights, Y for activations, 2 to 8 each; for weight-only such as w4, or w4g128 for groups "
            "of 128 inputs.",
            show_default=f"{DEFAULT_BITS}; {DEFAULT_WEIGHT_BITS} for weight-only",
        ),
    ] = None
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
            min=0, callback=check_most, metavar="N", help="Seed that draws calibration images and prompts."
        ),
    ] = DEFAULT_SEED
    detections: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="COCO results of any detector, whose boxes become the calibration prompts."
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
            help=f"Length of learning: {alternatives(EFFORTS)} (the published number of steps).",
        ),
    ] = DEFAULT_EFFORT
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, callback=check_most, metavar="N", help="Learning steps per unit, instead of --effort's."
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
            help="Make the recipe run on integer kernels: signed weights, 8-bit uniform probabilities.",
        ),
    ] = False
    deploy_for: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"The same for a format of saqsam export: {alternatives(DEPLOY_TARGETS)}.",
        ),
    ] = None
    memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Captured activations to hold in memory; the rest goes to disk."),
    ] = DEFAULT_MEMORY
    check: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help=f"Dataset to score float and quantized model on afterwards; {NO_CHECK} skips that.",
        ),
    ] = SCENES
    check_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            callback=check_most,
            metavar="N",
            help="Images of --check.",
            show_default="24; 2 for inputs above 512 px",
        ),
    ] = None


@dataclass(frozen=True)
class ReportOptions(OptionGroup):
    """Data and measurements of a report."""

    data: Annotated[str, typer.Option(metavar="DATA", help=f"Dataset to score: {DATA_HELP}")] = SCENES
    ignore_label: Annotated[
        str,
        typer.Option(
            metavar="auto|none|VALUE", help=f"In folders of images and masks, the {IGNORE_LABEL_HELP}"
        ),
    ] = "auto"
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
            help="Quantize each alone, and leave each float alone: the recipe's parts, or every single layer.",
        ),
    ] = "parts"
    sensitivity_images: Annotated[
        int,
        typer.Option(min=1, callback=check_most, metavar="N", help="Images that sensitivity is measured on."),
    ] = 4
    memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Memory for prompts that are decoded together, beside the model."),
    ] = "1GiB"


# Of segment.
BoxOption = Annotated[
    list[str] | None,
    typer.Option(metavar="x0,y0,x1,y1", help="Box around an object, in pixels; repeatable."),
]
PointOption = Annotated[
    list[str] | None, typer.Option(metavar="x,y", help="Point on an object, in pixels; repeatable.")
]
EverythingOption = Annotated[
    bool, typer.Option("--everything", help="Segment everything from a grid of points instead.")
]
MasksPictureOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="PNG", help="Picture to write.", show_default="beside IMAGE, *.masks.png"),
]

# Of compare.
ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL",
        help="Two models or more, each as for evaluate. DIR@NAME selects a runtime, such as out/onnx@openvino or "
        f"out/q@{TORCH_INTEGER}.",
    ),
]
WorstPictureOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="PNG", help="Picture of the images on which the second model lost most, to write."
    ),
]

# Of export.
ExportFormatOption = Annotated[str, typer.Option(metavar="NAME", help=f"Format: {alternatives(FORMATS)}.")]
SingleMaskOption = Annotated[
    bool,
    typer.Option(
        "--single-mask", help="Return one mask per prompt, chosen as in the official export, instead of four."
    ),
]
ExportRuntimeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Runtime to compare with torch: {alternatives(RUNTIMES)}.",
        show_default="all that are installed and run the format",
    ),
]
MinParityOption = Annotated[
    float,
    typer.Option(
        metavar="IOU", help="Lowest accepted mean IoU between a runtime's masks and torch's, from 0 to 1."
    ),
]
