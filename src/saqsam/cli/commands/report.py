"""Implementation of `saqsam report`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from transformers import SamModel, SamProcessor

from saqsam.checkpoint import quantization_config_of, recipe_of
from saqsam.cli.inputs import load_torch, open_calibration, open_labeled
from saqsam.cli.options import ReportOptions
from saqsam.cli.outputs import claim_output
from saqsam.cli.progress import busy, progress_phases
from saqsam.cli.result_tables import print_skipped
from saqsam.cli.terminal import say, warn
from saqsam.data.detections import load_detections
from saqsam.data.types import Dataset
from saqsam.evaluation.prompt_batches import prompts_within
from saqsam.evaluation.registry import create_tasks
from saqsam.evaluation.run import evaluate_together
from saqsam.evaluation.subject import Subject
from saqsam.evaluation.task import Task
from saqsam.evaluation.tasks.prompt import PromptTask
from saqsam.export import is_export
from saqsam.models.registry import family_of
from saqsam.report.choices import Level
from saqsam.report.collect import GALLERY, Scored, add_focus, add_measurements, collect
from saqsam.report.content import Report
from saqsam.report.labels import short_path
from saqsam.report.log import Source, read_log
from saqsam.report.reference import Reference, check_reference, make_reference
from saqsam.report.table_rows import lead, left_out
from saqsam.report.write import report_bytes
from saqsam.utils.atomic_write import check_file_writable
from saqsam.utils.progress import Progress, renamed
from saqsam.utils.sizes import parse_size

IMAGES, IMAGES_IF_LARGE = 24, 4


def report(
    folder: Path,
    options: ReportOptions,
    prompt_options: Mapping[str, Any],
    *,
    path: Path,
    form: str,
    device: str,
    overwrite: bool,
) -> None:
    """Measure a checkpoint, and write the report."""
    if is_export(folder):
        raise ValueError(f"{folder} is an export; report on the checkpoint that it was made from")
    check_file_writable(path)
    parse_size(options.memory)
    with claim_output(path, overwrite=overwrite) as output:
        content, scored = _collect(folder, options, prompt_options, device)
        with busy(f"writing {path}"):
            output.write(report_bytes(content, form))
    say(lead(content))
    print_skipped(scored.quantized.skipped, scored.quantized.notes)
    for name, why in left_out(content):
        say(f"left out: {name}: {why}")
    say(f"report: {path}")


def _collect(
    folder: Path, options: ReportOptions, prompt_options: Mapping[str, Any], device: str
) -> tuple[Report, Scored]:
    """Measure everything that the options ask for."""
    known = read_log(folder)
    source = None if known is None else known.source
    quantized, processor = load_torch(str(folder), device)
    if quantization_config_of(quantized) is None:
        raise ValueError(f"{folder} is float; a report is on a checkpoint of saqsam quantize")
    spec = family_of(quantized.config).input_spec(quantized.config)
    limit = options.limit
    if limit is None:
        limit = IMAGES_IF_LARGE if spec.is_large else IMAGES
    dataset = open_labeled(options.data, "--data", limit, options.ignore_label)
    (task,) = create_tasks(dataset, [PromptTask.name], keep_masks=True, **prompt_options)
    float_model, why_not = _open_float(options, source, device, spec.image_size)
    scored = _score(quantized, float_model, processor, dataset, task, options, limit)
    with busy("gathering"):
        content = collect(folder, quantized, scored, gallery=GALLERY)
    if float_model is not None:
        return _measure(content, quantized, float_model, processor, scored, source, options), scored
    missing = dict.fromkeys(("distributions", "sensitivity", "focus"), why_not)
    return replace(content, left_out={**content.left_out, **missing}), scored


def _open_float(
    options: ReportOptions, source: Source | None, device: str, image_size: int
) -> tuple[SamModel | None, str]:
    """Load the float model at the input size of the checkpoint, or return the reason why there is none."""
    name = options.float_model or (None if source is None else source.model)
    if name is None:
        return None, "quantization.json does not name the float model: --float MODEL does"
    try:
        model, _ = load_torch(name, device, image_size)
    except (ValueError, OSError) as error:
        if options.float_model is not None:
            raise
        warn(str(error))  # on the terminal alone: it may hold paths, which a report should not
        return (
            None,
            f"the float model {short_path(name)} could not be loaded: --float MODEL names another place",
        )
    if quantization_config_of(model) is not None:
        raise ValueError(f"--float {name}: expected a float model, got a quantized one")
    return model, ""


def _score(
    quantized: SamModel,
    float_model: SamModel | None,
    processor: SamProcessor,
    dataset: Dataset,
    task: Task,
    options: ReportOptions,
    limit: int,
) -> Scored:
    assert isinstance(task, PromptTask)
    at_once = prompts_within(parse_size(options.memory), processor)
    models = [quantized] if float_model is None else [quantized, float_model]
    with progress_phases("images") as progress:
        evaluations = evaluate_together(
            [Subject(model, processor, at_once) for model in models],
            dataset,
            [task],
            limit=limit,
            progress=renamed(progress, "scoring"),
        )
    return Scored(dataset, task, *evaluations)


def _measure(
    content: Report,
    quantized: SamModel,
    float_model: SamModel,
    processor: SamProcessor,
    scored: Scored,
    source: Source | None,
    options: ReportOptions,
) -> Report:
    """Add the measurements that need the float model, and those that need the calibration images too."""
    with busy("looking where attention looks"):
        content = add_focus(content, quantized, float_model, processor, scored)
    with progress_phases(has_gaps=True) as progress:
        reference, why_not = _make_reference(quantized, float_model, processor, source, options, progress)
        if reference is None:
            missing = dict.fromkeys(("distributions", "sensitivity"), why_not)
            return replace(content, left_out={**content.left_out, **missing})
        return add_measurements(
            content,
            quantized,
            reference,
            processor,
            scored.dataset,
            level=_level(options),
            images=options.sensitivity_images,
            progress=progress,
        )


def _make_reference(
    quantized: SamModel,
    float_model: SamModel,
    processor: SamProcessor,
    source: Source | None,
    options: ReportOptions,
    progress: Progress,
) -> tuple[Reference | None, str]:
    """Return the float model in the form of the checkpoint, or the reason why there is none."""
    spec = options.calibration or (None if source is None else source.calibration)
    if spec is None:
        return None, "quantization.json does not name the calibration data: --calibration DATA does"
    recipe = recipe_of(quantized)
    try:
        own = source if source is not None and options.calibration is None else None
        ignore_label = "auto" if own is None else own.ignore_label
        data = open_calibration(spec, recipe.calibration.images, recipe.calibration.seed, ignore_label)
        boxes = None if own is None or own.detections is None else load_detections(own.detections, data)
        reference = make_reference(float_model, processor, recipe, data, detections=boxes, progress=progress)
        check_reference(reference.model, quantized, recipe)
    except (ValueError, OSError) as error:
        if options.calibration is not None or options.float_model is not None:
            raise
        warn(str(error))  # as above
        data_name = short_path(spec)
        return (
            None,
            f"the calibration data {data_name} did not lead back to this checkpoint: --calibration DATA",
        )
    return reference, ""


def _level(options: ReportOptions) -> Level | None:
    """Return the level of the sensitivity analysis; None for none."""
    return None if options.sensitivity == "none" else cast(Level, options.sensitivity)
