"""Declaration of the commands of `saqsam`, and the checks that need no model."""

from __future__ import annotations

import importlib.metadata
import inspect as inspect_module
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from saqsam.cli import options, parameters, segment_options
from saqsam.cli.checks import (
    check_bulk,
    check_checkpoint,
    check_choice,
    check_new,
    check_png,
    check_segment_output,
    check_segment_prompts,
    check_share,
    check_tasks,
    report_form,
)
from saqsam.cli.guard import guarded
from saqsam.cli.help_texts import alternatives
from saqsam.cli.library import library
from saqsam.cli.log_options import with_log_options
from saqsam.cli.option_groups import TaskOptions, expand_groups
from saqsam.cli.terminal import say
from saqsam.export.formats import DEFAULT_FORMAT
from saqsam.export.layouts.contract import OWN_LAYOUT
from saqsam.segmentation.formats.registry import MERGED_FORMATS, PARQUET, format_of
from saqsam.utils.allocator import keep_freed_memory


def main() -> None:
    """Run the command line."""
    keep_freed_memory()
    app(prog_name="saqsam")


def quantize(
    model: parameters.FloatModelArgument = "sam-mini",
    *,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Checkpoint to write.")],
    choices: options.QuantizeOptions,
    device: parameters.TorchDeviceOption = "auto",
    overwrite: parameters.OverwriteOption = False,
) -> None:
    """Quantize a float model to a packed checkpoint, and compare the two.

    Prints sizes and mean IoU and draws a picture, all from the checkpoint as reloaded from disk. To resume an
    interrupted command, run it again. Processes started by torchrun (torchrun --nproc-per-node 2 -m saqsam quantize
    ...) share the images.
    """
    check_new(out_dir, overwrite=overwrite)
    with library():
        from saqsam.cli.commands.quantize import quantize

        quantize(model, out_dir, choices, device=device, overwrite=overwrite)


def evaluate(
    model: parameters.ModelArgument = "sam-mini",
    *,
    choices: options.EvaluationOptions,
    task_options: TaskOptions,
    json_file: parameters.JsonOption = None,
    device: parameters.DeviceOption = "auto",
    runtime: parameters.RuntimeOption = None,
    threads: parameters.ThreadsOption = None,
    overwrite: parameters.OverwriteOption = False,
) -> None:
    """Score a model, a checkpoint or an exported folder on one or more tasks.

    With --json, finished images are kept in FILE.unfinished; to resume an interrupted command, run it again. Processes
    started by torchrun (torchrun --nproc-per-node 2 -m saqsam evaluate ...) share the images.
    """
    check_tasks(choices.task, task_options)
    check_new(json_file, overwrite=overwrite)
    with library():
        from saqsam.cli.commands.evaluate import evaluate

        evaluate(
            model,
            choices,
            task_options.values,
            json_file=json_file,
            device=device,
            runtime=runtime,
            threads=threads,
            overwrite=overwrite,
        )


def compare(
    models: parameters.ModelsArgument,
    *,
    choices: options.EvaluationOptions,
    task_options: TaskOptions,
    json_file: parameters.JsonOption = None,
    out_png: parameters.WorstPictureOption = None,
    device: parameters.DeviceOption = "auto",
    threads: parameters.ThreadsOption = None,
    overwrite: parameters.OverwriteOption = False,
) -> None:
    """Compare models on the same images and prompts, with confidence intervals.

    Prints the change of each model from the first, the IoU of its masks with those of the first, and the images on
    which it lost most. With --json, finished images are kept in FILE.unfinished; to resume an interrupted command, run
    it again.
    """
    check_tasks(choices.task, task_options)
    if len(models) < 2:
        raise ValueError(f"compare: expected two models or more, got {len(models)}")
    check_png(out_png)
    for path in (json_file, out_png):
        check_new(path, overwrite=overwrite)
    with library():
        from saqsam.cli.commands.compare import compare_models

        compare_models(
            models,
            choices,
            task_options.values,
            json_file=json_file,
            picture=out_png,
            device=device,
            threads=threads,
            overwrite=overwrite,
        )


def report(
    folder: parameters.CheckpointArgument,
    *,
    out_file: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="File to write, such as report.html.")
    ],
    choices: options.ReportOptions,
    prompt_options: options.PromptOptions,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="html|md|json", help="Format of the file.", show_default="from the suffix of --out"
        ),
    ] = None,
    device: parameters.TorchDeviceOption = "auto",
    overwrite: parameters.OverwriteOption = False,
) -> None:
    """Write a report on a checkpoint as one self-contained file.

    Scores the float and the quantized model side by side, and measures the accuracy drop of each part. saqsam quantize
    writes a short version, report.html, into every checkpoint.
    """
    check_tasks(None, prompt_options)
    form = report_form(out_file, format)
    check_choice("--sensitivity", choices.sensitivity, ("none", "parts", "layers"))
    check_checkpoint(folder)
    check_new(out_file, overwrite=overwrite)
    with library():
        from saqsam.cli.commands.report import report

        report(
            folder,
            choices,
            prompt_options.values,
            path=out_file,
            form=form,
            device=device,
            overwrite=overwrite,
        )


def segment(
    model: parameters.ModelArgument,
    inputs: parameters.ImagesArgument,
    *,
    prompts: segment_options.SegmentPrompts,
    generator: segment_options.GeneratorOptions,
    outputs: segment_options.SegmentOutputs,
    bulk: segment_options.BulkOptions,
    image_size: parameters.ImageSizeOption = None,
    device: parameters.DeviceOption = "auto",
    runtime: parameters.RuntimeOption = None,
    threads: parameters.ThreadsOption = None,
    overwrite: parameters.OverwriteOption = False,
) -> None:
    """Segment objects in images from boxes, points or masks, or everything in them.

    Images are files, folders, patterns ('photos/*.jpg'), lists of paths (.txt), URLs, standard input (-), or a COCO or
    LVIS annotation file, whose boxes are the prompts. --format parquet also reads any number of tar archives and
    Parquet files.
    """
    check_segment_prompts(prompts, has_generator_options=bool(generator.values))
    form = format_of(outputs.out_path, outputs.format)
    if outputs.overlap is not None and outputs.tile is None:
        raise ValueError("--overlap needs --tile")
    if form.name == PARQUET:
        check_bulk(outputs, bulk, overwrite=overwrite)
        with library():
            from saqsam.cli.commands.bulk import segment_bulk
            from saqsam.cli.commands.segment import Machine

            machine = Machine(device, runtime, threads, image_size)
            segment_bulk(
                model, inputs, prompts, generator.values, outputs, bulk, machine, overwrite=overwrite
            )
        return
    if bulk.is_given:
        raise ValueError("--shard, --engine and the other options of a bulk run need --format parquet")
    check_segment_output(inputs, form, outputs.out_path, overwrite=overwrite)
    with library():
        from saqsam.cli.commands.segment import Machine, segment

        machine = Machine(device, runtime, threads, image_size)
        segment(model, inputs, prompts, generator.values, form, outputs, machine, overwrite=overwrite)


def merge(
    folder: parameters.BulkFolderArgument,
    *,
    out_file: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")],
    format: Annotated[
        str | None,
        typer.Option(
            metavar=alternatives(MERGED_FORMATS),
            help="Format of the file.",
            show_default="from the suffix of --out",
        ),
    ] = None,
    simplify: parameters.SimplifyOption = 1.0,
    partial: Annotated[
        bool, typer.Option("--partial", help="Merge the finished parts even if others are missing.")
    ] = False,
    overwrite: parameters.OverwriteOption = False,
) -> None:
    """Merge the Parquet files of a bulk run into one file.

    Memory use does not grow with the number of masks.
    """
    form = format_of(out_file, format)
    if form.name not in MERGED_FORMATS:
        raise ValueError(f"--format: expected {alternatives(MERGED_FORMATS)}, got {form.name}")
    check_new(out_file, overwrite=overwrite)
    with library():
        from saqsam.cli.commands.merge import merge

        merge(folder, out_file, form, simplify=simplify, partial=partial, overwrite=overwrite)


def serve(
    served: parameters.ServedModelsArgument,
    *,
    host: parameters.HostOption = "127.0.0.1",
    port: parameters.PortOption = 8000,
    image_size: parameters.ImageSizeOption = None,
    device: parameters.DeviceOption = "auto",
    threads: parameters.ThreadsOption = None,
) -> None:
    """Serve a local web page that compares models side by side.

    Both sides of the page answer the same points and boxes. It starts with the first two models and offers all others.
    Nothing leaves the machine.
    """
    with library():
        from saqsam.cli.commands.serve import serve

        serve(served, host=host, port=port, device=device, threads=threads, image_size=image_size)


def inspect(
    folder: parameters.CheckpointArgument,
    *,
    json_file: parameters.JsonOption = None,
    overwrite: parameters.OverwriteOption = False,
) -> None:
    """Show bits, ranges, bytes and multiply-accumulates of each part of a checkpoint."""
    check_checkpoint(folder)
    check_new(json_file, overwrite=overwrite)
    with library():
        from saqsam.cli.commands.inspect import inspect

        inspect(folder, json_file=json_file, overwrite=overwrite)


def export(
    model: parameters.TorchModelArgument,
    *,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    image_size: parameters.ImageSizeOption = None,
    format: parameters.ExportFormatOption = DEFAULT_FORMAT,
    layout: parameters.LayoutOption = OWN_LAYOUT,
    single_mask: parameters.SingleMaskOption = False,
    opset: parameters.OpsetOption = None,
    free_batch: parameters.FreeBatchOption = False,
    web_runtime: parameters.WebRuntimeOption = None,
    runtime: parameters.ExportRuntimeOption = None,
    min_parity: parameters.MinParityOption = 0.95,
    overwrite: parameters.OverwriteOption = False,
) -> None:
    """Export a float model or a packed checkpoint for another runtime, and compare its masks with PyTorch's.

    The export fails, and writes nothing to --out, if its masks agree with PyTorch's by less than 0.95 mean IoU
    (--min-parity). The error names the first node that differs.
    """
    check_share("--min-parity", min_parity)
    check_new(out_dir, overwrite=overwrite)
    with library():
        from saqsam.cli.commands.export import export

        export(
            model,
            out_dir,
            image_size=image_size,
            format=format,
            layout=layout,
            single_mask=single_mask,
            opset=opset,
            free_batch=free_batch,
            web_runtime=web_runtime,
            runtime=runtime,
            min_parity=min_parity,
            overwrite=overwrite,
        )


def _print_version(is_given: bool) -> None:
    if is_given:
        say(f"saqsam {importlib.metadata.version('saqsam')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


def _help_text(command: Callable[..., None]) -> str:
    """Return the docstring of a command with one line per paragraph, which the terminal wraps to its width."""
    paragraphs = (inspect_module.getdoc(command) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


COMMANDS = (quantize, evaluate, compare, report, segment, merge, serve, inspect, export)


def create_app() -> typer.Typer:
    """Create the command line from `COMMANDS` and the registries as they are now."""
    created = typer.Typer(
        name="saqsam",
        help="Quantize Segment Anything Models to packed low-bit integers; evaluate, compare, segment, serve and "
        "export them.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    created.callback()(_root)
    for command in COMMANDS:
        created.command(help=_help_text(command))(guarded(with_log_options(expand_groups(command))))
    return created


app = create_app()
