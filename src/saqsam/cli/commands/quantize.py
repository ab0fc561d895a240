"""Implementation of `saqsam quantize`."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from transformers import SamModel, SamProcessor

import saqsam
from saqsam.allocation.allocate import Allocation
from saqsam.allocation.budget import Budget
from saqsam.analysis.inventory import take_inventory
from saqsam.checkpoint import check_target, load_checkpoint, quantization_config_of, save_checkpoint
from saqsam.cli import reporting
from saqsam.cli.forecast import Forecast
from saqsam.cli.inputs import load_torch, open_calibration, open_labeled
from saqsam.cli.options import NO_CHECK, QuantizeOptions
from saqsam.cli.outputs import Output, claim_output
from saqsam.cli.progress import busy, progress_phases
from saqsam.cli.result_tables import print_allocation, print_skipped, print_substitutions, print_summary
from saqsam.cli.terminal import inform, say
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepared_copy
from saqsam.data.detections import Detections, load_detections
from saqsam.data.types import Dataset
from saqsam.evaluation import Evaluation, PromptTask
from saqsam.evaluation.compare import task_difference
from saqsam.models.registry import family_of
from saqsam.ptq.log import QuantizationLog
from saqsam.ptq.unit_costs import unit_costs
from saqsam.recipes.catalog import AUTO_EFFORT, DEFAULT_TARGET, WEIGHT_ONLY
from saqsam.recipes.deployment import check_uniform_inputs, deployable
from saqsam.recipes.overrides import with_overrides
from saqsam.recipes.presets import recipe_for, resolve_effort
from saqsam.recipes.recipe import Recipe
from saqsam.report.collect import Scored, collect
from saqsam.report.log import Source, write_log
from saqsam.report.write import PAGE, write_report
from saqsam.utils.atomic_write import write_png
from saqsam.utils.counts import count_phrase
from saqsam.utils.progress import renamed
from saqsam.utils.ranks import agreement, process_group, rank
from saqsam.utils.sizes import parse_size
from saqsam.viz.side_by_side import draw_side_by_side, median_and_worst

PICTURE = "comparison.png"
LARGE_MODEL = 200_000_000
"""Parameters above which a single image is scored by default: SAM-H takes most of a minute for it, twice."""
CHECK_TASK = PromptTask("box", keep_masks=True)
"""Task in which the float and the quantized model are compared."""


def quantize(
    model: str,
    out_dir: Path,
    options: QuantizeOptions,
    *,
    device: str,
    overwrite: bool,
) -> None:
    """Quantize a model, write the checkpoint, reload it, and compare it with the float model.

    Processes that torchrun started share the images; rank 0 alone writes and prints.
    """
    recipe = _recipe(options)
    budget = None if options.budget is None else Budget.parse(options.budget)
    if options.effort == AUTO_EFFORT:
        effort, reason = _effort(options)
        inform(f"effort: {effort or 'none'} ({reason})")
    memory = parse_size(options.memory)
    reporting.current().errors_may_differ = True
    with ExitStack() as stack:
        stack.enter_context(process_group())
        output = None
        with agreement():
            if rank() == 0:
                check_target(out_dir, overwrite=overwrite)
                output = stack.enter_context(claim_output(out_dir, overwrite=overwrite))
        with agreement():
            float_model, inputs = _open(model, options, device)
        allocation = None
        if budget is not None:
            allocation = _allocate(float_model, inputs, budget, recipe)
            recipe = allocation.recipe
        # Before the long work, so that unusable data fail early.
        # Any plan of quantized attentions will do: they compute in chunks, which takes less memory.
        plan = plan_quantization(float_model.config, recipe_for("mse"))
        before = _score(prepared_copy(float_model, plan), inputs, "float")
        target = float_model.device
        log, quantized = _quantize_into(output, float_model, inputs, recipe, allocation, memory=memory)
        del float_model  # two gigabytes of a large SAM
        with agreement():
            if output is not None:
                del quantized  # its checkpoint takes its place
                with busy("reading the checkpoint back"):
                    quantized = load_checkpoint(output.staged, device=target)
        after = _score(quantized, inputs, "quantized")
        if output is None:
            return
        checked = None
        if inputs.check_data is not None and before is not None and after is not None:
            checked = Scored(inputs.check_data, CHECK_TASK, after, before)
        _add_report(output.staged, quantized, checked)
        output.place_folder()
    say(f"checkpoint: {out_dir}")
    if recipe.needs_calibration:
        shown = f"{count_phrase(log.images, 'images')} (seed {options.seed}) of {inputs.data.name}"
        say(f"calibrated on {shown}, {count_phrase(log.prompts, 'prompts')}")
    print_skipped(log.skipped, log.notes, "calibration: ")
    if options.deploy or options.deploy_for is not None:
        print_substitutions(recipe)
    scores = None if checked is None or checked.float is None else (checked.float, checked.quantized)
    print_summary(take_inventory(quantized), out_dir, scores)
    say(f"report: {out_dir / PAGE}")
    if scores is not None:
        say(f"picture: {out_dir / PICTURE}")


@dataclass(frozen=True)
class _Inputs:
    """Opened inputs of the command, beside the model.

    Attributes:
        processor: Processor of the model.
        data: Calibration data.
        detections: Detected boxes on them; None to use annotated objects.
        source: Names of the inputs, for the log.
        check_data: Images to compare the models on; None for no comparison.
        check_images: Number of these images.
    """

    processor: SamProcessor
    data: Dataset
    detections: Detections | None
    source: Source
    check_data: Dataset | None
    check_images: int


def _open(model: str, options: QuantizeOptions, device: str) -> tuple[SamModel, _Inputs]:
    """Load the float model, and open the data that the options name."""
    data = open_calibration(options.calibration, options.images, options.seed, options.ignore_label)
    boxes = None if options.detections is None else str(options.detections)
    source = Source(model, options.calibration, boxes, options.ignore_label)
    detections = None if boxes is None else load_detections(boxes, data)
    check, check_images = options.check, options.check_images
    check_data = None if check == NO_CHECK else open_labeled(check, "--check", check_images)
    float_model, processor = load_torch(model, device, options.image_size)
    if quantization_config_of(float_model) is not None:
        raise ValueError(f"{model} is quantized already; quantize the float model")
    if check_images is None:
        check_images = _default_check_images(float_model)
    return float_model, _Inputs(processor, data, detections, source, check_data, check_images)


def _add_report(folder: Path, reloaded: SamModel, checked: Scored | None) -> None:
    """Write the picture and the short report of a checkpoint."""
    if checked is not None and checked.float is not None:
        scores = (checked.float, checked.quantized)
        with busy("drawing the comparison"):
            difference = task_difference(checked.task, *scores)
            chosen = median_and_worst(difference)
            drawn = draw_side_by_side(checked.dataset, checked.task, difference, *scores, chosen)
            write_png(folder / PICTURE, drawn)
    with busy("writing the report"):
        write_report(collect(folder, reloaded, checked), folder / PAGE)


def _quantize_into(
    output: Output | None,
    model: SamModel,
    inputs: _Inputs,
    recipe: Recipe,
    allocation: Allocation | None,
    *,
    memory: int,
) -> tuple[QuantizationLog, SamModel]:
    """Quantize, write the checkpoint with its log to the staging folder, if there is one, and return log and model."""
    units = [] if recipe.reconstruction is None else unit_costs(model.config, recipe)
    with agreement(), progress_phases(has_gaps=True, forecast=Forecast(units)) as progress:
        result = saqsam.quantize(
            model,
            inputs.processor,
            recipe,
            inputs.data,
            detections=inputs.detections,
            memory=memory,
            resume_dir=None if output is None else output.unfinished,
            progress=progress,
        )
    with agreement():
        if output is not None:
            with busy("writing the checkpoint"):
                # Not `result.save`: the finished steps are kept until the checkpoint is verified and in place.
                save_checkpoint(result.model, inputs.processor, output.staged)
                write_log(result.log, recipe, output.staged, inputs.source, allocation)
    return result.log, result.model


def _default_check_images(model: SamModel) -> int:
    """Return the number of images to score a model on, fewer the longer one takes."""
    if model.num_parameters() > LARGE_MODEL:
        return 1
    return 2 if family_of(model.config).input_spec(model.config).is_large else 24


def _recipe(options: QuantizeOptions) -> Recipe:
    """Return the recipe that the options describe; a budget decides its bits later."""
    target = options.deploy_for or (DEFAULT_TARGET if options.deploy else None)
    bits = options.bits
    if options.budget is not None:
        _check_budget(options)
        bits = "w4a4" if target is None else "w4a8"
    recipe = recipe_for(options.method, bits, options.effort)
    if target is not None:
        recipe = deployable(recipe, target)
    recipe = with_overrides(recipe, options.overrides or [])
    if target is not None:
        check_uniform_inputs(recipe, target)
    if options.steps is not None:
        if recipe.reconstruction is None:
            raise ValueError(f"--steps: {options.method} learns nothing")
        learned = dataclasses.replace(recipe.reconstruction, steps=options.steps)
        recipe = dataclasses.replace(recipe, reconstruction=learned)
    calibration = dataclasses.replace(recipe.calibration, images=options.images, seed=options.seed)
    return dataclasses.replace(recipe, calibration=calibration)


def _effort(options: QuantizeOptions) -> tuple[str | None, str]:
    """Return the effort that `auto` stands for and the reason for it; None for methods that learn nothing."""
    effort, reason = resolve_effort(options.method, options.bits)
    if options.budget is not None and effort is not None:
        reason = "a budget may leave some parts with few bits"
    return effort, reason


def _check_budget(options: QuantizeOptions) -> None:
    """Raise ValueError if the method has no bits to choose, or another option decides them, too."""
    if options.method == WEIGHT_ONLY:
        raise ValueError(
            f"--budget chooses the bits of activations, too, but {WEIGHT_ONLY} leaves them float"
        )
    if options.bits is not None:
        raise ValueError("--budget and --bits both decide the bits: pass one of them")
    for text in options.overrides or []:
        key = text.partition("=")[0].strip()
        if key.startswith("overrides.") or key in ("weights.bits", "activations.bits"):
            raise ValueError(f"--budget and --set {key} both decide the bits: pass one of them")


def _allocate(model: SamModel, inputs: _Inputs, budget: Budget, recipe: Recipe) -> Allocation:
    """Choose the bits of each part under a budget, and print what was chosen."""
    with agreement(), progress_phases() as progress:
        allocation = saqsam.allocate_bits(
            model,
            inputs.processor,
            budget,
            recipe,
            inputs.data,
            detections=inputs.detections,
            progress=progress,
        )
    if rank() == 0:
        print_allocation(allocation)
    return allocation


def _score(model: SamModel, inputs: _Inputs, name: str) -> Evaluation | None:
    """Score a model on the images of the comparison; None for no comparison."""
    if inputs.check_data is None:
        return None
    with progress_phases("images") as progress:
        return saqsam.evaluate(
            model,
            inputs.processor,
            inputs.check_data,
            tasks=[CHECK_TASK],
            limit=inputs.check_images,
            progress=renamed(progress, f"scoring, {name}"),
        )
