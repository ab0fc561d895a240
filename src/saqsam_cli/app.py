"""The commands of `saqsam`: what they take, and refusing what needs no model."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from saqsam_cli.arguments import (
    DataOption,
    DetectionsOption,
    DeviceOption,
    JsonOption,
    LabelsOption,
    LimitOption,
    MemoryOption,
    ModelArgument,
    PointsOption,
    PredIouOption,
    PromptOption,
    RuntimeOption,
    StabilityOption,
    TaskOption,
    ThreadsOption,
    TileOption,
    WorkersOption,
)
from saqsam_cli.options import EvaluationOptions, check_choice, check_form, check_png, check_tasks
from saqsam_cli.terminal import busy, guarded, say

app = typer.Typer(
    name="saqsam",
    help="Quantize Segment Anything Models to real low-bit integers, and use the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SCENES = "scenes"


def main() -> None:
    """Entry point."""
    app(prog_name="saqsam")


@contextmanager
def _library() -> Iterator[None]:
    """Import what the commands do, saying so, and keep what transformers logs for programmers out of it."""
    # What torch and transformers import tells programmers while it is imported, where ExecuTorch is installed.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with busy("starting"):
        from saqsam_cli.commands import quiet_transformers
    with quiet_transformers():
        yield


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"saqsam {importlib.metadata.version('saqsam')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
@guarded
def quantize(
    model: ModelArgument = "sam-mini",
    *,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="The checkpoint to write.")],
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="min-max, percentile, mse (statistics); brecq, qdrop (learned rounding); ptq4sam-s, ptq4sam; "
            "saq-sam-s, saq-sam, saq-sam-plus. A final -s: without learning.",
        ),
    ] = "saq-sam-plus",
    bits: Annotated[
        str, typer.Option(metavar="wXaY", help="X bits for weights, Y for activations, 2 to 8 each.")
    ] = "w4a4",
    calibration: Annotated[
        str,
        typer.Option(
            metavar="DATA", help="What to set ranges on: as evaluate --data, or any folder of images."
        ),
    ] = SCENES,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Calibration images.")] = 32,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Which images and prompts are drawn.")] = 0,
    detections: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="COCO results of any detector: its boxes are the prompts to calibrate with."
        ),
    ] = None,
    effort: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="How long to learn: quick, standard or paper (the published steps)."
        ),
    ] = "standard",
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Learning steps of a unit, instead of --effort's.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one field of the method's recipe, such as clipping=none or reconstruction.loss=output; "
            "repeatable.",
        ),
    ] = None,
    deploy: Annotated[
        bool,
        typer.Option(
            "--deploy", help="What integer kernels take: symmetric weights, 8-bit uniform probabilities."
        ),
    ] = False,
    deploy_for: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The same for a format of saqsam export: executorch has other kernels than onnx and openvino.",
        ),
    ] = None,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Captured activations held in memory; the rest goes to disk.")
    ] = "4GiB",
    check: Annotated[
        str,
        typer.Option(metavar="DATA", help="Score float and quantized model on it afterwards; none: do not."),
    ] = SCENES,
    check_images: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Images of --check.", show_default="24; 2 for inputs above 512 px"
        ),
    ] = None,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint at --out.")] = False,
) -> None:
    """Quantize a SAM, write a packed checkpoint, and compare what was written with the float model.

    Ends with sizes, mean IoU and a picture, all computed from the checkpoint as reloaded from disk. Interrupted, it
    goes on where it stopped when the same command is given again.
    """
    with _library():
        from saqsam_cli import commands

        commands.quantize(
            model,
            out_dir,
            method=method,
            bits=bits,
            calibration=calibration,
            images=images,
            seed=seed,
            detections=detections,
            effort=effort,
            steps=steps,
            settings=settings or [],
            deploy=deploy_for or ("onnx" if deploy else None),
            memory=memory,
            check=check,
            check_images=check_images,
            device=device,
            overwrite=overwrite,
        )


@app.command()
@guarded
def evaluate(
    model: ModelArgument = "sam-mini",
    *,
    data: DataOption = SCENES,
    task: TaskOption = None,
    prompt: PromptOption = "box",
    detections: DetectionsOption = None,
    tile: TileOption = 1024,
    labels: LabelsOption = None,
    points_per_side: PointsOption = None,
    pred_iou: PredIouOption = None,
    stability: StabilityOption = None,
    limit: LimitOption = None,
    json_file: JsonOption = None,
    memory: MemoryOption = "1GiB",
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Score a model, a checkpoint or, in its runtime, an export, on one task or several.

    With --json, what has been scored is kept in FILE.unfinished until all is: interrupted, the same command goes on.
    Started by torchrun (torchrun --nproc-per-node 2 -m saqsam evaluate ...), processes share the images.
    """
    check_tasks(task, prompt)
    with _library():
        from saqsam_cli import evaluation

        evaluation.evaluate(
            model,
            EvaluationOptions(
                data,
                task,
                prompt,
                detections,
                limit,
                memory,
                workers,
                tile=tile,
                labels=labels,
                points_per_side=points_per_side,
                pred_iou=pred_iou,
                stability=stability,
            ),
            json_file=json_file,
            device=device,
            runtime=runtime,
            threads=threads,
        )


@app.command()
@guarded
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Two models or more, each as for evaluate; DIR@NAME runs it in the runtime NAME, such as "
            "out/onnx@openvino or out/q@torch-int8.",
        ),
    ],
    *,
    data: DataOption = SCENES,
    task: TaskOption = None,
    prompt: PromptOption = "box",
    detections: DetectionsOption = None,
    tile: TileOption = 1024,
    labels: LabelsOption = None,
    points_per_side: PointsOption = None,
    pred_iou: PredIouOption = None,
    stability: StabilityOption = None,
    limit: LimitOption = None,
    json_file: JsonOption = None,
    out_png: Annotated[
        Path | None, typer.Option("--out", metavar="PNG", help="Draw the images that B lost most on.")
    ] = None,
    memory: MemoryOption = "1GiB",
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Compare models on the same images and prompts: differences to the first with intervals, and where they lie.

    Beside IoU with the truth stands the IoU of the models' masks with each other. With --json, what has been scored is
    kept in FILE.unfinished until all is: interrupted, the same command goes on.
    """
    check_tasks(task, prompt)
    if len(models) < 2:
        raise ValueError(f"compare: expected two models or more, got {len(models)}")
    check_png(out_png)
    with _library():
        from saqsam_cli import comparison

        comparison.compare_models(
            models,
            EvaluationOptions(
                data,
                task,
                prompt,
                detections,
                limit,
                memory,
                workers,
                tile=tile,
                labels=labels,
                points_per_side=points_per_side,
                pred_iou=pred_iou,
                stability=stability,
            ),
            json_file=json_file,
            picture=out_png,
            device=device,
            threads=threads,
        )


@app.command()
@guarded
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint of saqsam.")],
    *,
    out_file: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="REPORT.html, or .md or .json: the file to write.")
    ],
    data: DataOption = SCENES,
    prompt: PromptOption = "box",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Only the first N images.",
            show_default="24; 4 for inputs above 512 px",
        ),
    ] = None,
    format: Annotated[
        str | None, typer.Option(metavar="html|md|json", show_default="what --out ends in")
    ] = None,
    float_model: Annotated[
        str | None,
        typer.Option(
            "--float", metavar="MODEL", help="The float model.", show_default="that of quantize, as noted"
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="The calibration data.", show_default="that of quantize, as noted"),
    ] = None,
    sensitivity: Annotated[
        str,
        typer.Option(
            metavar="none|parts|layers",
            help="Quantize each alone, and leave each float alone: the recipe's parts, or every single layer.",
        ),
    ] = "parts",
    sensitivity_images: Annotated[
        int, typer.Option(min=1, metavar="N", help="Images that sensitivity is measured on.")
    ] = 4,
    memory: MemoryOption = "1GiB",
    device: DeviceOption = "auto",
) -> None:
    """Write a report on a checkpoint: one file that needs no network, to be read in two minutes and sent on.

    Scores float and quantized model side by side, and measures what each part costs. saqsam quantize writes the short
    version, report.html, by itself.
    """
    check_tasks(None, prompt)
    form = check_form(out_file, format)
    check_choice("--sensitivity", sensitivity, ("none", "parts", "layers"))
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {folder}")
    with _library():
        from saqsam_cli import reporting

        reporting.report(
            folder,
            reporting.ReportOptions(
                data,
                prompt,  # type: ignore[arg-type]
                limit,
                float_model,
                calibration,
                None if sensitivity == "none" else sensitivity,  # type: ignore[arg-type]
                sensitivity_images,
                memory,
            ),
            path=out_file,
            form=form,
            device=device,
        )


@app.command()
@guarded
def segment(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="sam-mini, a checkpoint, an export, or any other model.")
    ],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Picture to segment.")],
    *,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="x0,y0,x1,y1", help="Box around an object, in pixels; repeatable."),
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(metavar="x,y", help="Point on an object, in pixels; repeatable.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="All that a grid of points finds, instead.")
    ] = False,
    points_per_side: PointsOption = None,
    pred_iou: PredIouOption = None,
    stability: StabilityOption = None,
    out_png: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="PNG", help="Picture to write.", show_default="beside IMAGE, *.masks.png"
        ),
    ] = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Segment objects of a picture from boxes and points, a mask each, or everything in it."""
    boxes = [(text, _numbers(text, 4, "--box", "x0,y0,x1,y1")) for text in box or []]
    points = [(text, _numbers(text, 2, "--point", "x,y")) for text in point or []]
    if everything and (boxes or points):
        raise ValueError("give --everything or prompts, not both")
    if not everything and not boxes and not points:
        raise ValueError("give at least one --box x0,y0,x1,y1 or --point x,y, or --everything")
    if not everything and not (points_per_side is pred_iou is stability is None):
        raise ValueError("--points-per-side, --pred-iou and --stability need --everything")
    path = out_png or image.with_name(f"{image.stem}.masks.png")
    check_png(path)
    with _library():
        from saqsam_cli import commands

        if everything:
            commands.segment_everything(
                model,
                image,
                path,
                points_per_side=points_per_side,
                pred_iou=pred_iou,
                stability=stability,
                device=device,
                runtime=runtime,
                threads=threads,
            )
            return
        commands.segment(
            model,
            image,
            path,
            boxes=boxes,
            points=points,
            device=device,
            runtime=runtime,
            threads=threads,
        )


def _numbers(text: str, count: int, option: str, form: str) -> list[float]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise ValueError(f"{option} must look like {form}, got {text!r}")
    return values


@app.command()
@guarded
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint of saqsam.")],
    *,
    json_file: JsonOption = None,
) -> None:
    """Show what is quantized to how many bits: ranges, bytes and multiply-accumulates of each part."""
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {folder}")
    with _library():
        from saqsam_cli import commands

        commands.inspect(folder, json_file=json_file)


@app.command()
@guarded
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint of saqsam.")],
    *,
    out_dir: Annotated[Path, typer.Option("--out", metavar="OUT", help="The folder to write.")],
    format: Annotated[str, typer.Option(metavar="NAME", help="onnx, openvino or executorch.")] = "onnx",
    single_mask: Annotated[
        bool,
        typer.Option(
            "--single-mask", help="One mask a prompt, chosen as the official export does, not four."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the export at --out.")] = False,
) -> None:
    """Write a checkpoint as files for another runtime, encoder and decoder, and compare their masks with torch's."""
    if not checkpoint.is_dir():
        raise ValueError(f"no checkpoint folder {checkpoint}")
    with _library():
        from saqsam_cli import commands

        commands.export(checkpoint, out_dir, format=format, single_mask=single_mask, overwrite=overwrite)
