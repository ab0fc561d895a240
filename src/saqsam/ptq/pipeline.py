"""The pipeline of SAQ-SAM (arXiv 2503.06515): from a float SAM to one of packed integers.

`quantize` runs the phases of the paper in order; the recipe decides which of them a method takes part in.
"""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import SamModel, SamProcessor

from saqsam.checkpoint import SaqsamConfig, attach_quantizer, processor_hash, quantization_config_of
from saqsam.convert.pack import pack, pack_embeddings, pack_without_calibration, round_float_parameters
from saqsam.convert.plan import QuantizationPlan, plan_quantization
from saqsam.convert.prepare import fill_slots, prepare, prepared_copy, shared_copy
from saqsam.data.detections import Detections
from saqsam.data.open import DatasetSource
from saqsam.data.types import Dataset
from saqsam.models.family import Features
from saqsam.models.processing import build_processor
from saqsam.models.registry import family_of
from saqsam.ptq.bimodal import find_signs, integrate_bimodal, merged_observers
from saqsam.ptq.calibration import calibrate
from saqsam.ptq.calibration_data import open_calibration
from saqsam.ptq.calibration_images import CalibrationImages, choose_calibration_images
from saqsam.ptq.clipping import clip_attentions
from saqsam.ptq.compensation import compensate, needs_float_embeddings
from saqsam.ptq.equalization import ChannelRange, equalize, observe_channels, scale_inputs
from saqsam.ptq.head_balancing import balance_heads, observe_heads
from saqsam.ptq.log import QuantizationLog
from saqsam.ptq.reconstruction import reconstruct
from saqsam.ptq.result import QuantizationResult
from saqsam.ptq.resume import FinishedSteps, identify_run
from saqsam.ptq.tensor_store import MemoryBudget, TensorStore
from saqsam.recipes.catalog import DEFAULT_CALIBRATION, DEFAULT_MEMORY, DEFAULT_METHOD
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Calibration
from saqsam.utils import ranks
from saqsam.utils.arithmetic import float32_arithmetic
from saqsam.utils.progress import Progress
from saqsam.utils.sizes import parse_size


@float32_arithmetic()
def quantize(
    model: SamModel,
    processor: SamProcessor | None = None,
    recipe: Recipe | str = DEFAULT_METHOD,
    calibration: DatasetSource = DEFAULT_CALIBRATION,
    *,
    detections: Detections | None = None,
    memory: int | str = DEFAULT_MEMORY,
    resume_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> QuantizationResult:
    """Quantize a float SAM to packed low-bit integers by post-training quantization.

    In a process group of torch.distributed the processes share the images, and each returns the same result: that of a
    single process, bit for bit, with the same number of threads in each. Save it on rank 0.

    With the model alone, the result is that of `saqsam quantize` with its defaults: `saq-sam-plus` at w4a4, calibrated
    on 32 bundled scenes. Calibrate on images like those that the model will see.

    Args:
        model: Float model; left unchanged.
        processor: Processor of the model; None builds the one that fits its configuration.
        recipe: Recipe, or the name of a method, which gives `saqsam.recipe_for(name)`.
        calibration: Calibration data: a name, a path, a list of images, or a dataset. The boxes of annotated objects
            are the prompts; images without annotations are prompted by the model's own confident masks. `"scenes"` are
            bundled scenes other than those for evaluation. Recipes that quantize weights alone use no data.
        detections: Detected boxes on these images, to use as prompts instead.
        memory: Memory for captured activations, for methods that compensate or learn, in bytes or as text such as
            `"4GiB"`. What exceeds it is spilled to disk.
        resume_dir: Folder for finished steps. If a run with the same arguments was interrupted, it resumes from the
            steps in this folder and gives the same result, bit for bit. `QuantizationResult.save` removes the steps.
        progress: Progress callback; its phases are the steps of the pipeline and the units of the reconstruction.

    Returns:
        The quantized model with its processor, recipe and log. A checkpoint of it computes the same masks, bit for bit.

    Raises:
        ValueError: The model is quantized already or holds NaN, infinity, or float parameters outside float16; the
            recipe, the calibration data or `memory` cannot be used; no calibration image gives a prompt; a loss is not
            finite; or `resume_dir` holds a run with other arguments.
        CheckpointError: `resume_dir` holds a damaged step.
        PeerError: Another process of the group has failed.
    """
    progress = progress if ranks.rank() == 0 else None
    if quantization_config_of(model) is not None:
        raise ValueError("this model is quantized already; quantize the float model")
    recipe = _resolve_recipe(recipe)
    memory = parse_size(memory)
    processor = build_processor(model.config) if processor is None else processor
    # Rank 0 alone reads and writes finished steps, and sends the others what it has read.
    folder = None if resume_dir is None or ranks.rank() > 0 else Path(resume_dir)
    if not recipe.needs_calibration:
        return _quantize_weights(model, processor, recipe, folder, progress)
    dataset = open_calibration(calibration, recipe.calibration)
    plan = plan_quantization(model.config, recipe)
    plan.structure.check(model)
    quantized, images = prepare_run(
        model, processor, plan, dataset, recipe.calibration, detections=detections, progress=progress
    )
    log = QuantizationLog(
        skipped=images.skipped, notes=images.notes, images=len(images), prompts=images.prompts
    )
    run = {} if folder is None else identify_run(quantized, processor, recipe, images)
    with ranks.agreement():
        steps = FinishedSteps(folder, run)

    # Range setting: bimodal integration (BIG), adaptive granularity (AGQ), perceptual-consistency clipping (PCC).
    prepare_equalized(quantized, plan, images, progress)
    with MemoryBudget(memory) as budget:
        # The float encoder does not change from here on, so one pass gives ranges and the targets of learning.
        keeps_features = needs_float_embeddings(recipe, len(images))
        features = TensorStore(budget, "the image embedding") if keeps_features else None
        reference = _set_ranges(quantized, plan, images, steps, log, features, progress)
        pack_embeddings(quantized, plan)

        # Compensation in closed form, then prompt-aware reconstruction (PAR): learned rounding and scales.
        if reference is not None:
            _adapt_weights(quantized, reference, plan, images, budget, steps, log, features, progress)

    # Packing: integer codes take the place of float weights.
    pack(quantized, plan, progress)
    attach_quantizer(quantized, SaqsamConfig(recipe, processor_sha256=processor_hash(processor)))
    # Packing has made new modules, which start in training mode.
    return QuantizationResult(quantized.eval(), processor, recipe, log, folder)


def prepare_run(
    model: SamModel,
    processor: SamProcessor,
    plan: QuantizationPlan,
    dataset: Dataset,
    spec: Calibration,
    *,
    detections: Detections | None = None,
    progress: Progress | None = None,
) -> tuple[SamModel, CalibrationImages]:
    """Return the model that a run changes, and its calibration images with their prompts.

    Args:
        model: Float model; left unchanged.
        processor: Processor of the model.
        plan: Quantization plan of the run.
        dataset: Calibration data.
        spec: How many of its images and prompts, and which.
        detections: Detected boxes on these images, to use as prompts instead.
        progress: Progress callback.

    Returns:
        A working copy of the model, whose float parameters are rounded as a checkpoint stores them, and the images.
    """
    working = working_copy(model, plan.recipe)
    round_float_parameters(working, plan)
    images = choose_calibration_images(
        prepared_copy(working, plan), processor, dataset, spec, detections=detections, progress=progress
    )
    return working, images


def working_copy(model: SamModel, recipe: Recipe) -> SamModel:
    """Return a copy of a float model to quantize, float32 and in eval mode.

    It shares the parameters of the model where no step of the recipe changes weights in place: a second SAM-H would
    take 2.6 GB.
    """
    working = (copy.deepcopy(model) if recipe.changes_weights else shared_copy(model)).eval().float()
    family_of(model.config).simplify(working)
    return working


def _quantize_weights(
    model: SamModel, processor: SamProcessor, recipe: Recipe, folder: Path | None, progress: Progress | None
) -> QuantizationResult:
    """Pack the weights of a copy of a model and keep its activations float."""
    quantized = working_copy(model, recipe)
    pack_without_calibration(quantized, recipe, progress)
    attach_quantizer(quantized, SaqsamConfig(recipe, processor_sha256=processor_hash(processor)))
    return QuantizationResult(quantized.eval(), processor, recipe, QuantizationLog(), folder)


def prepare_equalized(
    model: SamModel,
    plan: QuantizationPlan,
    images: CalibrationImages,
    progress: Progress | None = None,
) -> None:
    """Balance heads and equalize channels of a float model as the recipe says, and give it empty slots, in place.

    The model computes the same masks as before, up to rounding of its float parameters to float16.

    Args:
        model: Float model.
        plan: Quantization plan of the run.
        images: Calibration images.
        progress: Progress callback.
    """
    recipe, structure = plan.recipe, plan.structure
    ranges: dict[str, ChannelRange] = {}
    features: dict[int, Features] = {}
    if recipe.equalized or recipe.input_scales:
        ranges = observe_channels(prepared_copy(model, plan), structure, images, progress, features=features)
    if recipe.balanced_heads:
        moments = observe_heads(prepared_copy(model, plan), structure, images, progress, features=features)
        balance_heads(model, structure, moments)
        if ranges:
            # Only the decoder has changed.
            ranges |= observe_channels(prepared_copy(model, plan), structure, images, features=features)
    if recipe.equalized:
        equalize(model, structure, ranges, recipe.equalization)
    prepare(model, plan)
    if recipe.input_scales:
        scale_inputs(model, structure, ranges)
    if ranges or recipe.balanced_heads:
        round_float_parameters(model, plan)


def _set_ranges(
    quantized: SamModel,
    plan: QuantizationPlan,
    images: CalibrationImages,
    steps: FinishedSteps,
    log: QuantizationLog,
    features: TensorStore | None,
    progress: Progress | None,
) -> SamModel | None:
    """Set the ranges of all activations of a prepared model in place, and log it.

    `features` gets the float features of the images, unless the ranges are those of an earlier run.

    Returns:
        The float reference: the model after bimodal integration, with empty slots. None if no step compares with it.
    """
    saved = ranks.on_first(lambda: steps.load_ranges(quantized, plan.structure))
    if saved is None:
        observers = calibrate(quantized, plan, images, progress, features=features)
        signs = find_signs(plan.structure, observers)
    else:
        signs = saved.signs
    integrate_bimodal(quantized, plan.structure, signs)
    log.signs = {name: int((signs[name] < 0).sum()) for name in sorted(signs)}
    reference = copy.deepcopy(quantized) if plan.recipe.needs_reference else None
    if saved is None:
        fill_slots(quantized, plan, merged_observers(observers, signs), progress)
        if plan.recipe.clipping is not None:
            log.clipping = clip_attentions(quantized, plan, images, progress)
        ranks.on_first(lambda: steps.save_ranges(signs, log.clipping, quantized, plan))
    else:
        steps.restore_ranges(saved, quantized, plan)
        log.clipping = saved.clipping
    return reference


def _adapt_weights(
    quantized: SamModel,
    reference: SamModel,
    plan: QuantizationPlan,
    images: CalibrationImages,
    budget: MemoryBudget,
    steps: FinishedSteps,
    log: QuantizationLog,
    features: TensorStore | None,
    progress: Progress | None,
) -> None:
    """Compensate and learn the weights of a calibrated model in place, as the recipe says, and log it."""
    embeddings = None
    if plan.recipe.compensation is not None:
        embeddings = compensate(quantized, reference, plan, images, budget, progress, floats=features)
    if plan.recipe.reconstruction is not None:
        log.units = reconstruct(
            quantized,
            reference,
            plan,
            images,
            budget,
            embeddings=embeddings,
            steps=steps,
            progress=progress,
        )


def _resolve_recipe(recipe: Recipe | str) -> Recipe:
    """Return a recipe, made from its method's name if need be."""
    if isinstance(recipe, str):
        return recipe_for(recipe)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe: expected a Recipe or the name of a method, got {type(recipe).__name__}")
    return recipe
