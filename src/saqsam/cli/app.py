"""The commands of `saqsam`: what they take, and refusing what needs no model."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from saqsam.cli import arguments
from saqsam.cli.options import (
    EvaluationOptions,
    check_choice,
    check_form,
    check_new,
    check_png,
    check_tasks,
    default_masks_path,
    parse_numbers,
)
from saqsam.cli.terminal import guarded, say, starting
from saqsam.recipes.catalog import (
    DEFAULT_BITS,
    DEFAULT_CALIBRATION,
    DEFAULT_CALIBRATION_IMAGES,
    DEFAULT_EFFORT,
    DEFAULT_MEMORY,
    DEFAULT_METHOD,
    DEFAULT_SEED,
)

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
    with starting():
        from saqsam.cli.commands import quiet_transformers
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
    model: arguments.ModelArgument = "sam-mini",
    *,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="The checkpoint to write.")],
    method: arguments.MethodOption = DEFAULT_METHOD,
    bits: arguments.BitsOption = DEFAULT_BITS,
    calibration: arguments.CalibrationOption = DEFAULT_CALIBRATION,
    images: arguments.CalibrationImagesOption = DEFAULT_CALIBRATION_IMAGES,
    seed: arguments.SeedOption = DEFAULT_SEED,
    detections: arguments.CalibrationDetectionsOption = None,
    ignore_label: arguments.CalibrationIgnoreLabelOption = "auto",
    effort: arguments.EffortOption = DEFAULT_EFFORT,
    steps: arguments.StepsOption = None,
    settings: arguments.SettingsOption = None,
    deploy: arguments.DeployOption = False,
    deploy_for: arguments.DeployForOption = None,
    memory: arguments.CaptureMemoryOption = DEFAULT_MEMORY,
    check: arguments.CheckOption = SCENES,
    check_images: arguments.CheckImagesOption = None,
    device: arguments.DeviceOption = "auto",
    overwrite: arguments.OverwriteOption = False,
) -> None:
    """Quantize a SAM, write a packed checkpoint, and compare what was written with the float model.

    Ends with sizes, mean IoU and a picture, all computed from the checkpoint as reloaded from disk. Interrupted, it
    goes on where it stopped when the same command is given again.
    """
    check_new(out_dir, overwrite=overwrite)
    with _library():
        from saqsam.cli import commands

        commands.quantize(
            model,
            out_dir,
            method=method,
            bits=bits,
            calibration=calibration,
            images=images,
            seed=seed,
            detections=detections,
            ignore_label=ignore_label,
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
    model: arguments.ModelArgument = "sam-mini",
    *,
    data: arguments.DataOption = SCENES,
    task: arguments.TaskOption = None,
    prompt: arguments.PromptOption = "box",
    detections: arguments.DetectionsOption = None,
    tile: arguments.TileOption = 1024,
    labels: arguments.LabelsOption = None,
    points_per_side: arguments.PointsOption = None,
    pred_iou: arguments.PredIouOption = None,
    stability: arguments.StabilityOption = None,
    ignore_label: arguments.IgnoreLabelOption = "auto",
    limit: arguments.LimitOption = None,
    json_file: arguments.JsonOption = None,
    memory: arguments.MemoryOption = "1GiB",
    workers: arguments.WorkersOption = 2,
    device: arguments.DeviceOption = "auto",
    runtime: arguments.RuntimeOption = None,
    threads: arguments.ThreadsOption = None,
    overwrite: arguments.OverwriteOption = False,
) -> None:
    """Score a model, a checkpoint or, in its runtime, an export, on one task or several.

    With --json, what has been scored is kept in FILE.unfinished until all is: interrupted, the same command goes on.
    Started by torchrun (torchrun --nproc-per-node 2 -m saqsam evaluate ...), processes share the images.
    """
    check_tasks(task, prompt)
    check_new(json_file, overwrite=overwrite)
    with _library():
        from saqsam.cli import evaluation

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
                ignore_label=ignore_label,
            ),
            json_file=json_file,
            device=device,
            runtime=runtime,
            threads=threads,
            overwrite=overwrite,
        )


@app.command()
@guarded
def compare(
    models: arguments.ModelsArgument,
    *,
    data: arguments.DataOption = SCENES,
    task: arguments.TaskOption = None,
    prompt: arguments.PromptOption = "box",
    detections: arguments.DetectionsOption = None,
    tile: arguments.TileOption = 1024,
    labels: arguments.LabelsOption = None,
    points_per_side: arguments.PointsOption = None,
    pred_iou: arguments.PredIouOption = None,
    stability: arguments.StabilityOption = None,
    ignore_label: arguments.IgnoreLabelOption = "auto",
    limit: arguments.LimitOption = None,
    json_file: arguments.JsonOption = None,
    out_png: arguments.WorstPictureOption = None,
    memory: arguments.MemoryOption = "1GiB",
    workers: arguments.WorkersOption = 2,
    device: arguments.DeviceOption = "auto",
    threads: arguments.ThreadsOption = None,
    overwrite: arguments.OverwriteOption = False,
) -> None:
    """Compare models on the same images and prompts: differences to the first with intervals, and where they lie.

    Beside IoU with the truth stands the IoU of the models' masks with each other. With --json, what has been scored is
    kept in FILE.unfinished until all is: interrupted, the same command goes on.
    """
    check_tasks(task, prompt)
    if len(models) < 2:
        raise ValueError(f"compare: expected two models or more, got {len(models)}")
    check_png(out_png)
    for path in (json_file, out_png):
        check_new(path, overwrite=overwrite)
    with _library():
        from saqsam.cli import comparison

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
                ignore_label=ignore_label,
            ),
            json_file=json_file,
            picture=out_png,
            device=device,
            threads=threads,
            overwrite=overwrite,
        )


@app.command()
@guarded
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint of saqsam.")],
    *,
    out_file: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="REPORT.html, or .md or .json: the file to write.")
    ],
    data: arguments.DataOption = SCENES,
    prompt: arguments.PromptOption = "box",
    limit: arguments.ReportLimitOption = None,
    format: arguments.ReportFormOption = None,
    float_model: arguments.FloatModelOption = None,
    calibration: arguments.ReportCalibrationOption = None,
    sensitivity: arguments.SensitivityOption = "parts",
    sensitivity_images: arguments.SensitivityImagesOption = 4,
    memory: arguments.MemoryOption = "1GiB",
    device: arguments.DeviceOption = "auto",
    overwrite: arguments.OverwriteOption = False,
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
    check_new(out_file, overwrite=overwrite)
    with _library():
        from saqsam.cli import reporting

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
            overwrite=overwrite,
        )


@app.command()
@guarded
def segment(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="sam-mini, a checkpoint, an export, or any other model.")
    ],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Picture to segment.")],
    *,
    box: arguments.BoxOption = None,
    point: arguments.PointOption = None,
    everything: arguments.EverythingOption = False,
    points_per_side: arguments.PointsOption = None,
    pred_iou: arguments.PredIouOption = None,
    stability: arguments.StabilityOption = None,
    out_png: arguments.MasksPictureOption = None,
    device: arguments.DeviceOption = "auto",
    runtime: arguments.RuntimeOption = None,
    threads: arguments.ThreadsOption = None,
    overwrite: arguments.OverwriteOption = False,
) -> None:
    """Segment objects of a picture from boxes and points, a mask each, or everything in it."""
    boxes = [(text, parse_numbers(text, 4, "--box", "x0,y0,x1,y1")) for text in box or []]
    points = [(text, parse_numbers(text, 2, "--point", "x,y")) for text in point or []]
    if everything and (boxes or points):
        raise ValueError("give --everything or prompts, not both")
    if not everything and not boxes and not points:
        raise ValueError("give at least one --box x0,y0,x1,y1 or --point x,y, or --everything")
    if not everything and not (points_per_side is pred_iou is stability is None):
        raise ValueError("--points-per-side, --pred-iou and --stability need --everything")
    path = out_png or default_masks_path(image)
    check_png(path)
    if path.exists() and image.exists() and path.samefile(image):
        raise ValueError(f"--out: {path} is the picture to segment; choose another name")
    check_new(path, overwrite=overwrite)
    with _library():
        from saqsam.cli import commands

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
                overwrite=overwrite,
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
            overwrite=overwrite,
        )


@app.command()
@guarded
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint of saqsam.")],
    *,
    json_file: arguments.JsonOption = None,
    overwrite: arguments.OverwriteOption = False,
) -> None:
    """Show what is quantized to how many bits: ranges, bytes and multiply-accumulates of each part."""
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {folder}")
    check_new(json_file, overwrite=overwrite)
    with _library():
        from saqsam.cli import commands

        commands.inspect(folder, json_file=json_file, overwrite=overwrite)


@app.command()
@guarded
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint of saqsam.")],
    *,
    out_dir: Annotated[Path, typer.Option("--out", metavar="OUT", help="The folder to write.")],
    format: arguments.ExportFormatOption = "onnx",
    single_mask: arguments.SingleMaskOption = False,
    runtime: arguments.ExportRuntimeOption = None,
    min_parity: arguments.MinParityOption = 0.95,
    overwrite: arguments.OverwriteOption = False,
) -> None:
    """Write a checkpoint as files for another runtime, encoder and decoder, and compare their masks with torch's.

    The export fails, and leaves nothing at --out, if a runtime computes other masks; the error names the first node
    that differs.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"no checkpoint folder {checkpoint}")
    check_new(out_dir, overwrite=overwrite)
    with _library():
        from saqsam.cli import commands

        commands.export(
            checkpoint,
            out_dir,
            format=format,
            single_mask=single_mask,
            runtime=runtime,
            min_parity=min_parity,
            overwrite=overwrite,
        )
