"""Groups of options of `saqsam segment`: prompts, automatic masks, outputs and bulk runs.

Choices and defaults come from the registries of tasks and formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from saqsam.cli.help_texts import described
from saqsam.cli.option_groups import OptionGroup, TaskOptions, check_most
from saqsam.cli.parameters import SimplifyOption
from saqsam.evaluation.registry import GENERATOR_OPTIONS, TaskOption
from saqsam.segmentation.formats.registry import FORMATS as MASK_FORMATS

LOCAL, RAY = ENGINES = ("local", "ray")
IMAGES_PER_FILE = 256


class GeneratorOptions(TaskOptions):
    """Options of automatic masks, for commands that run no task."""

    panel = "Options of --everything"
    names_tasks = False

    @classmethod
    def declared(cls) -> Sequence[TaskOption]:
        """Return the options of the group."""
        return GENERATOR_OPTIONS


@dataclass(frozen=True)
class SegmentPrompts(OptionGroup):
    """Prompts, or segmenting everything."""

    box: Annotated[
        list[str] | None,
        typer.Option(metavar="x0,y0,x1,y1", help="Box around an object, in pixels; repeatable."),
    ] = None
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="x,y[,0]",
            help="Foreground point of an object, in pixels; with ,0 a background point for all objects; repeatable.",
        ),
    ] = None
    points: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'x,y;x,y,0'",
            help="Foreground points and, with ,0, background points of one object; repeatable.",
        ),
    ] = None
    mask: Annotated[
        list[Path] | None,
        typer.Option(metavar="PNG", help="Earlier mask of an object, nonzero inside; repeatable."),
    ] = None
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Prompts of each image, as JSON or CSV; see the guide Segment images.",
        ),
    ] = None
    detections: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="COCO results file of a detector, for the images of an annotation file."
        ),
    ] = None
    everything: Annotated[
        bool, typer.Option("--everything", help="Segment everything from a grid of points instead.")
    ] = False


@dataclass(frozen=True)
class SegmentOutputs(OptionGroup):
    """Target and format of the masks, and tiling."""

    out_path: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help="File to write; for several images a folder, except for COCO, which is one file.",
            show_default="beside a single image, *.masks.png",
        ),
    ] = None
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Format: {described((entry.name, entry.description) for entry in MASK_FORMATS.values())}.",
            show_default="from the suffix of --out, or overlay",
        ),
    ] = None
    simplify: SimplifyOption = 1.0
    tile: Annotated[
        int | None,
        typer.Option(
            min=64,
            callback=check_most,
            metavar="PX",
            help="Side of tiles to segment at full resolution and merge across seams.",
            show_default="whole images",
        ),
    ] = None
    overlap: Annotated[
        int | None,
        typer.Option(
            min=0,
            callback=check_most,
            metavar="PX",
            help="Pixels that neighboring tiles share.",
            show_default="an eighth of --tile",
        ),
    ] = None


def _bulk_option(**settings: Any) -> Any:
    return typer.Option(rich_help_panel="Options of --format parquet", **settings)


@dataclass(frozen=True)
class BulkOptions(OptionGroup):
    """Parts, engine and parallelism of a bulk run."""

    shard: Annotated[
        str | None,
        _bulk_option(
            metavar="i/n", help="Segment share i of n, with i from 0, so that n processes share the work."
        ),
    ] = None
    images_per_file: Annotated[
        int | None,
        _bulk_option(
            min=1,
            callback=check_most,
            metavar="N",
            help="Images per Parquet file; a tar archive is one file.",
            show_default=str(IMAGES_PER_FILE),
        ),
    ] = None
    engine: Annotated[
        str | None,
        _bulk_option(
            metavar="local|ray", help="Engine: this process or a Ray cluster.", show_default=ENGINES[0]
        ),
    ] = None
    workers: Annotated[
        int | None,
        _bulk_option(
            min=1,
            max=256,
            metavar="N",
            help="Threads that run the model.",
            show_default="by the number of cores",
        ),
    ] = None
    batch: Annotated[
        int | None,
        _bulk_option(
            min=1,
            max=256,
            metavar="N",
            help="Images per call of the encoder.",
            show_default="8 on a GPU, else 1",
        ),
    ] = None
    actors: Annotated[
        int | None,
        _bulk_option(
            min=1,
            callback=check_most,
            metavar="N",
            help="Ray actors.",
            show_default="as many as there is room for",
        ),
    ] = None

    @property
    def is_given(self) -> bool:
        """Whether any option of the group is given."""
        return any(getattr(self, field.name) is not None for field in fields(self))
