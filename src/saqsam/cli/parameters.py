"""Single arguments and options of the commands, as typer declares them.

Choices and help texts come from the registries of formats and runtimes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saqsam.cli.help_texts import (
    FLOAT_MODEL_HELP,
    MODEL_HELP,
    TORCH_MODEL_HELP,
    alternatives,
    described,
    runtime_devices,
)
from saqsam.cli.option_groups import check_most
from saqsam.export.formats import FORMATS, OPSETS
from saqsam.export.layouts.catalog import LAYOUTS
from saqsam.runtimes.registry import RUNTIMES, TORCH, TORCH_INTEGER

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
FloatModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=FLOAT_MODEL_HELP)]
TorchModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=TORCH_MODEL_HELP)]
CheckpointArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a packed checkpoint.")]
_TORCH_DEVICES = "Device: auto, cpu, cuda, cuda:N, mps or another PyTorch device"
TorchDeviceOption = Annotated[str, typer.Option(metavar="NAME", help=f"{_TORCH_DEVICES}.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"{_TORCH_DEVICES}; for an exported folder auto, cpu, or a device of its runtime: "
        f"{runtime_devices()}.",
    ),
]
RuntimeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Runtime. For an exported folder {alternatives(RUNTIMES)}; for a checkpoint {TORCH}, or {TORCH_INTEGER}: "
        "linear layers on PyTorch's integer kernels, timed against float.",
        show_default=f"that of the export's format; {TORCH}",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, max=1024, metavar="N", help="Threads of PyTorch or the runtime.", show_default="all"),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=check_most,
        metavar="PX",
        help="Input size that a float model is resized to, such as 512. Packed checkpoints and exports keep theirs.",
        show_default="that of the model",
    ),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write all results to a JSON file.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]

# Of segment.
ImagesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE...", help="Images to segment, or an annotation file or folder whose boxes are prompts."
    ),
]

SimplifyOption = Annotated[
    float,
    typer.Option(min=0, max=1000, metavar="PX", help="Tolerance of polygons; 0 follows the pixel edges."),
]

# Of merge.
BulkFolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder written by saqsam segment --format parquet.")
]

# Of serve.
ServedModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Models to choose from, each as for evaluate; DIR@NAME selects a runtime, such as out/onnx@openvino.",
    ),
]
HostOption = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Address to listen on. Any address but this machine's own requires a token, which is printed.",
    ),
]
PortOption = Annotated[
    int, typer.Option(min=0, max=65535, metavar="N", help="Port to listen on; 0 takes a free one.")
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
        "--out", metavar="PNG", help="Write a picture of the images on which the second model lost most."
    ),
]

# Of export.
ExportFormatOption = Annotated[str, typer.Option(metavar="NAME", help=f"Format: {alternatives(FORMATS)}.")]
LayoutOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Names and files that clients of another project expect: "
        f"{described((entry.name, entry.clients) for entry in LAYOUTS.values())}. saqsam and clients of the official "
        "ONNX decoder load the default layout.",
    ),
]
SingleMaskOption = Annotated[
    bool,
    typer.Option(
        "--single-mask", help="Return one mask per prompt, chosen as in the official export, instead of four."
    ),
]
OpsetOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help=f"ONNX operator set, {OPSETS[0]} to {OPSETS[-1]}: lower ones for older runtimes. Weights of up to 4 bits "
        f"need {OPSETS[-1]}.",
        show_default=str(OPSETS[-1]),
    ),
]
FreeBatchOption = Annotated[
    bool,
    typer.Option("--free-batch", help="Let an ONNX encoder take any number of images per call."),
]
WebRuntimeOption = Annotated[
    Path | None,
    typer.Option(
        "--onnxruntime-web",
        metavar="DIR",
        help="npm package of onnxruntime-web to copy into a web export, such as node_modules/onnxruntime-web.",
        show_default="the page loads it from a CDN",
    ),
]
ExportRuntimeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Runtime to compare with PyTorch: {alternatives(RUNTIMES)}.",
        show_default="all that are installed and run the format",
    ),
]
MinParityOption = Annotated[
    float,
    typer.Option(
        metavar="IOU", help="Lowest accepted mean IoU between a runtime's masks and PyTorch's, from 0 to 1."
    ),
]
