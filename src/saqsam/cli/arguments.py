"""What commands take, as typer declares it; imports nothing of saqsam."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MOST = 2**31 - 1
"""Largest count and seed; more would overflow the integers of libraries."""


def _check_most(value: int | None) -> int | None:
    """Refuse larger numbers than `MOST`. Not the `max` of an option, which would stand in the help of each."""
    if value is not None and value > MOST:
        raise typer.BadParameter(f"expected at most {MOST}, got {value}")
    return value


DATA_HELP = (
    "scenes (made by the package); a folder with images/ and annotations.json (COCO format), labelTxt/ (DOTA) or "
    "masks/ (pairs); an image folder of a COCO root, such as ROOT/val2017; an annotation file of COCO or LVIS; of "
    "task semantic also the root of ADE20K."
)
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto, cpu, cuda, mps, ...; for an exported folder a device of its runtime: cuda in ONNX Runtime, gpu or "
        "npu in OpenVINO.",
    ),
]
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
    int | None,
    typer.Option(min=1, max=1024, metavar="N", help="Threads of torch or the runtime.", show_default="all"),
]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to it.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
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
        min=1,
        callback=_check_most,
        metavar="PX",
        help="Of task oriented: larger images are segmented in tiles of this side.",
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
        min=1,
        max=1000,
        metavar="N",
        help="Of masks of everything: a grid of N x N points.",
        show_default="32",
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
IgnoreLabelOption = Annotated[
    str,
    typer.Option(
        metavar="auto|none|VALUE",
        help="Of folders of images and masks: the value of mask pixels that do not count. auto: 255 in masks of 0, 1 "
        "and 255.",
    ),
]
LimitOption = Annotated[
    int | None, typer.Option(min=1, callback=_check_most, metavar="N", help="Only the first N images.")
]
MemoryOption = Annotated[
    str, typer.Option(metavar="SIZE", help="For the prompts that are decoded at once, beside the model.")
]
WorkersOption = Annotated[
    int, typer.Option(min=0, max=256, metavar="N", help="Threads that read images ahead.")
]

# Of quantize.
MethodOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="min-max, percentile, mse (statistics); brecq, qdrop (learned rounding); ptq4sam-s, ptq4sam; "
        "saq-sam-s, saq-sam, saq-sam-plus. A final -s: without learning.",
    ),
]
BitsOption = Annotated[
    str, typer.Option(metavar="wXaY", help="X bits for weights, Y for activations, 2 to 8 each.")
]
CalibrationOption = Annotated[
    str,
    typer.Option(metavar="DATA", help="What to set ranges on: as evaluate --data, or any folder of images."),
]
CalibrationImagesOption = Annotated[
    int, typer.Option(min=1, callback=_check_most, metavar="N", help="Calibration images.")
]
SeedOption = Annotated[
    int, typer.Option(min=0, callback=_check_most, metavar="N", help="Which images and prompts are drawn.")
]
CalibrationDetectionsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="COCO results of any detector: its boxes are the prompts to calibrate with."
    ),
]
CalibrationIgnoreLabelOption = Annotated[
    str,
    typer.Option(
        metavar="auto|none|VALUE",
        help="Of --calibration with images and masks: the value of mask pixels that do not count.",
    ),
]
EffortOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="How long to learn: quick, standard or paper (the published steps)."),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        min=1, callback=_check_most, metavar="N", help="Learning steps of a unit, instead of --effort's."
    ),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one field of the method's recipe, such as clipping=none or reconstruction.loss=output; "
        "repeatable.",
    ),
]
DeployOption = Annotated[
    bool,
    typer.Option("--deploy", help="What integer kernels take: signed weights, 8-bit uniform probabilities."),
]
DeployForOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The same for a format of saqsam export: executorch has other kernels than onnx and openvino.",
    ),
]
CaptureMemoryOption = Annotated[
    str, typer.Option(metavar="SIZE", help="Captured activations held in memory; the rest goes to disk.")
]
CheckOption = Annotated[
    str,
    typer.Option(metavar="DATA", help="Score float and quantized model on it afterwards; none: do not."),
]
CheckImagesOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=_check_most,
        metavar="N",
        help="Images of --check.",
        show_default="24; 2 for inputs above 512 px",
    ),
]

# Of report.
ReportLimitOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=_check_most,
        metavar="N",
        help="Only the first N images.",
        show_default="24; 4 for inputs above 512 px",
    ),
]
ReportFormOption = Annotated[
    str | None, typer.Option(metavar="html|md|json", show_default="what --out ends in")
]
FloatModelOption = Annotated[
    str | None,
    typer.Option(
        "--float", metavar="MODEL", help="The float model.", show_default="that of quantize, as noted"
    ),
]
ReportCalibrationOption = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="The calibration data.", show_default="that of quantize, as noted"),
]
SensitivityOption = Annotated[
    str,
    typer.Option(
        metavar="none|parts|layers",
        help="Quantize each alone, and leave each float alone: the recipe's parts, or every single layer.",
    ),
]
SensitivityImagesOption = Annotated[
    int,
    typer.Option(min=1, callback=_check_most, metavar="N", help="Images that sensitivity is measured on."),
]

# Of segment.
BoxOption = Annotated[
    list[str] | None,
    typer.Option(metavar="x0,y0,x1,y1", help="Box around an object, in pixels; repeatable."),
]
PointOption = Annotated[
    list[str] | None, typer.Option(metavar="x,y", help="Point on an object, in pixels; repeatable.")
]
EverythingOption = Annotated[
    bool, typer.Option("--everything", help="All that a grid of points finds, instead.")
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
        help="Two models or more, each as for evaluate; DIR@NAME runs it in the runtime NAME, such as "
        "out/onnx@openvino or out/q@torch-int8.",
    ),
]
WorstPictureOption = Annotated[
    Path | None, typer.Option("--out", metavar="PNG", help="Draw the images that B lost most on.")
]

# Of export.
ExportFormatOption = Annotated[str, typer.Option(metavar="NAME", help="onnx, openvino or executorch.")]
SingleMaskOption = Annotated[
    bool,
    typer.Option("--single-mask", help="One mask a prompt, chosen as the official export does, not four."),
]
ExportRuntimeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Runtime to compare with torch: onnxruntime, openvino or executorch.",
        show_default="all that are installed and run the format",
    ),
]
MinParityOption = Annotated[
    float, typer.Option(metavar="IOU", help="Least mean IoU of a runtime's masks with torch's, from 0 to 1.")
]
