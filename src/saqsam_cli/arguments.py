"""What several commands take, as typer declares it; imports nothing of saqsam."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DATA_HELP = (
    "scenes (made by the package); a folder with images/ and annotations.json (COCO format), labelTxt/ (DOTA) or "
    "masks/ (pairs); an image folder of a COCO root, such as ROOT/val2017; an annotation file of COCO or LVIS; of "
    "task semantic also the root of ADE20K."
)
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, mps, ...")]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="sam-mini, a checkpoint or export of saqsam, a transformers folder or hub id, or an official "
        "sam_vit_*.pth.",
    ),
]
RuntimeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="For an exported folder: onnxruntime, openvino or executorch. For a checkpoint: torch, or torch-int8, "
        "its linear layers on torch's integer kernels, timed against float.",
        show_default="what an export's format is for; torch",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads of torch or the runtime.", show_default="all")
]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to it.")]
DataOption = Annotated[str, typer.Option(metavar="DATA", help=DATA_HELP)]
TaskOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="prompt, instance, oriented, everything, semantic; repeatable.",
        show_default="prompt; instance too with --detections",
    ),
]
PromptOption = Annotated[
    str,
    typer.Option(
        metavar="box|point|clicks",
        help="Of task prompt: each object's box, the point deepest inside, or 5 clicks, each where the mask is wrong.",
    ),
]
DetectionsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|simulated",
        help="Of tasks instance and oriented: COCO results of any detector, whose boxes are prompts; or the objects' "
        "boxes moved a little, false ones among them.",
    ),
]
TileOption = Annotated[
    int,
    typer.Option(
        min=1, metavar="PX", help="Of task oriented: larger images are segmented in tiles of this side."
    ),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|simulated",
        help="Of task semantic: a PNG of labels for each image, or coarse ones made of the truth.",
    ),
]
PointsOption = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Of masks of everything: a grid of N x N points.", show_default="32"
    ),
]
PredIouOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="X",
        help="Of masks of everything: those of a lower predicted IoU are left out.",
        show_default="0.88, which fits SAM-H; sam-mini rates lower",
    ),
]
StabilityOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="X",
        help="Of masks of everything: those of a lower stability score are left out.",
        show_default="0.95",
    ),
]
LimitOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N images.")]
MemoryOption = Annotated[
    str, typer.Option(metavar="SIZE", help="For the prompts that are decoded at once, beside the model.")
]
WorkersOption = Annotated[int, typer.Option(min=0, metavar="N", help="Threads that read images ahead.")]
