"""`quantize`: the pipeline from a float SAM to a SAM of packed integers."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import SamModel, SamProcessor

from saqsam._version import __version__
from saqsam.checkpoint import attach_quantizer, processor_hash, quantization_config_of
from saqsam.convert.pack import pack, pack_embeddings, place_empty_weight, round_float_parameters
from saqsam.convert.plan import activation_slots
from saqsam.convert.prepare import fill_slots, place_empty_quantizers, prepare
from saqsam.data.detections import Detections
from saqsam.data.types import Dataset
from saqsam.models.configuration import config_fields
from saqsam.models.family import ModelStructure
from saqsam.models.registry import structure_of
from saqsam.ptq.bimodal import find_signs, integrate_bimodal, merged_observers
from saqsam.ptq.calibration import calibrate
from saqsam.ptq.calibration_images import CalibrationImages, choose_calibration_images
from saqsam.ptq.clipping import clip_attentions
from saqsam.ptq.equalization import equalize, scale_inputs
from saqsam.ptq.finished_steps import check_signs, place_tensors
from saqsam.ptq.journal import Journal, damaged_step
from saqsam.ptq.log import AttentionClipping, QuantizationLog, UnitLog, read_clipping, read_unit_log
from saqsam.ptq.reconstruction import reconstruct
from saqsam.ptq.unit_parameters import unit_parameters, unit_tensors
from saqsam.ptq.units import Unit
from saqsam.recipes.recipe import Recipe
from saqsam.utils.arithmetic import float32_arithmetic
from saqsam.utils.progress import Progress

DEFAULT_MEMORY = 4 * 2**30
_SIGNS = "signs."


@float32_arithmetic()
def quantize(
    model: SamModel,
    processor: SamProcessor,
    recipe: Recipe,
    calibration: Dataset,
    *,
    detections: Detections | None = None,
    memory: int = DEFAULT_MEMORY,
    unfinished: str | Path | None = None,
    log: QuantizationLog | None = None,
    progress: Progress | None = None,
) -> SamModel:
    """Quantize a SAM after training.

    Args:
        model: Float model; it stays as it is.
        processor: Its processor.
        recipe: How; see `saqsam.recipe_for` for the named methods.
        calibration: Images to set ranges and learn on, with objects (their boxes are the prompts) or without.
        detections: A detector's boxes for these images, to be the prompts instead.
        memory: For methods that learn: bytes of captured activations to hold in memory; the rest goes to disk.
        unfinished: Folder for finished steps. If a run with the same arguments left some there, it goes on from
            them, to the very same result. Remove it when the result is saved.
        log: Is filled with what happened.
        progress: Progress callback.

    Returns:
        A `SamModel` on the same device whose weights are packed codes; `saqsam.save_checkpoint` writes it. It computes
        the same masks, bit for bit, as the model that a checkpoint of it gives.

    Raises:
        ValueError: If the model is quantized already or holds NaN, infinity, or float parameters outside float16; if
            the calibration data gives no prompt; if a loss is not finite, `memory` too little for one image, or
            `unfinished` holds a run with other arguments.
    """
    if quantization_config_of(model) is not None:
        raise ValueError("this model is quantized already; quantize the float model")
    log = QuantizationLog() if log is None else log
    structure = structure_of(model.config)
    structure.check(model)
    quantized = copy.deepcopy(model).eval().float()
    round_float_parameters(quantized, structure, recipe)
    images = choose_calibration_images(
        quantized,
        processor,
        calibration,
        recipe.calibration,
        detections=detections,
        progress=progress,
    )
    log.skipped, log.notes = images.skipped, images.notes
    log.images, log.prompts = len(images), images.prompts
    journal = None
    if unfinished is not None:
        journal = Journal(Path(unfinished), _arguments(quantized, processor, recipe, images))

    prepare_equalized(quantized, structure, recipe, images, progress)
    reference = _set_ranges(quantized, structure, recipe, images, log, journal, progress)
    if recipe.reconstruction is not None:
        log.units = _learn(quantized, reference, structure, recipe, images, memory, journal, progress)
    pack(quantized, structure, recipe, progress)
    attach_quantizer(quantized, recipe.to_dict(), processor_sha256=processor_hash(processor))
    return quantized.eval()  # the new modules too


def prepare_equalized(
    model: SamModel,
    structure: ModelStructure,
    recipe: Recipe,
    images: CalibrationImages,
    progress: Progress | None = None,
) -> None:
    """Equalize a float model as the recipe says and give it empty slots, in place; it computes what it did."""
    if recipe.equalized:
        equalize(model, structure, images, progress)
    prepare(model, structure, recipe)
    if recipe.input_scales:
        scale_inputs(model, structure, images, progress)
    if recipe.equalized or recipe.input_scales:
        round_float_parameters(model, structure, recipe)


def _set_ranges(
    quantized: SamModel,
    structure: ModelStructure,
    recipe: Recipe,
    images: CalibrationImages,
    log: QuantizationLog,
    journal: Journal | None,
    progress: Progress | None,
) -> SamModel:
    """Merge bimodal channels, set and clip ranges in place; returns the same model with empty slots."""
    done = None if journal is None else journal.load("ranges")
    if journal is not None and done is not None:
        tensors, notes = done
        path = journal.path("ranges")
        log.clipping = _read_clippings(notes, path)
        signs = {n.removeprefix(_SIGNS): t for n, t in tensors.items() if n.startswith(_SIGNS)}
        check_signs(signs, quantized, structure, path)
        signs = {name: sign.float() for name, sign in signs.items()}
        integrate_bimodal(quantized, signs)
        reference = copy.deepcopy(quantized)
        place_empty_quantizers(quantized, structure, recipe)
        ranges = {n: t for n, t in tensors.items() if not n.startswith(_SIGNS)}
        place_tensors(quantized, ranges, _slot_tensors(quantized, structure, recipe), path)
    else:
        observers = calibrate(quantized, structure, recipe, images, progress)
        signs = find_signs(structure, observers)
        integrate_bimodal(quantized, signs)
        reference = copy.deepcopy(quantized)
        fill_slots(quantized, structure, recipe, merged_observers(observers, signs), progress)
        if recipe.clipping is not None:
            log.clipping = clip_attentions(quantized, structure, recipe, images, progress)
        if journal is not None:
            tensors = {f"{_SIGNS}{name}": sign.to(torch.int8) for name, sign in signs.items()}
            slots = _slot_tensors(quantized, structure, recipe)
            tensors.update({name: tensor.cpu().clone() for name, tensor in slots.items()})
            journal.save("ranges", tensors, {"clipping": [asdict(entry) for entry in log.clipping]})
    log.signs = {name: int((signs[name] < 0).sum()) for name in sorted(signs)}
    return reference


def _slot_tensors(model: SamModel, structure: ModelStructure, recipe: Recipe) -> dict[str, Tensor]:
    """Return the tensors of all activation quantizers by name."""
    return {
        f"{slot.name}.{name}": tensor
        for slot in activation_slots(structure, recipe)
        for name, tensor in model.get_submodule(slot.name).state_dict().items()
    }


def _read_clippings(notes: Mapping[str, Any], path: Path) -> list[AttentionClipping]:
    entries = notes.get("clipping")
    if notes.keys() != {"clipping"} or not isinstance(entries, list):
        raise damaged_step(path, "its notes are not those of this step")
    try:
        return [read_clipping(entry) for entry in entries]
    except ValueError as error:
        raise damaged_step(path, str(error)) from error


def _learn(
    quantized: SamModel,
    reference: SamModel,
    structure: ModelStructure,
    recipe: Recipe,
    images: CalibrationImages,
    memory: int,
    journal: Journal | None,
    progress: Progress | None,
) -> list[UnitLog]:
    """Reconstruct all units in place, from where the journal ends, and keep each in it."""
    pack_embeddings(quantized, recipe)

    def load_unit(number: int, unit: Unit) -> UnitLog | None:
        return _load_unit(journal, quantized, structure, recipe, number, unit)

    def save_unit(number: int, unit: Unit, unit_log: UnitLog) -> None:
        if journal is not None:
            tensors = unit_tensors(quantized, unit_parameters(unit, quantized, structure, recipe))
            journal.save(f"unit-{number:02}", tensors, asdict(unit_log))

    return reconstruct(
        quantized,
        reference,
        structure,
        recipe,
        images,
        memory=memory,
        load_unit=load_unit,
        save_unit=save_unit,
        progress=progress,
    )


def _load_unit(
    journal: Journal | None,
    model: SamModel,
    structure: ModelStructure,
    recipe: Recipe,
    number: int,
    unit: Unit,
) -> UnitLog | None:
    """Put a unit in place that an earlier run finished."""
    step = f"unit-{number:02}"
    done = None if journal is None else journal.load(step)
    if journal is None or done is None:
        return None
    tensors, notes = done
    try:
        log = read_unit_log(notes)
    except ValueError as error:
        raise damaged_step(journal.path(step), str(error)) from error
    parts = unit_parameters(unit, model, structure, recipe)
    for site, bits in parts.layers:
        place_empty_weight(model, site, bits)
    place_tensors(model, tensors, unit_tensors(model, parts), journal.path(step))
    return log


def _arguments(
    model: SamModel, processor: SamProcessor, recipe: Recipe, images: CalibrationImages
) -> dict[str, str]:
    """Return everything that decides the result, by the name that a message gives it."""
    digest = hashlib.sha256(json.dumps(config_fields(model.config), sort_keys=True).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().numpy().tobytes())
    on_cpu = model.device.type == "cpu"
    return {
        "model": digest.hexdigest(),
        "processor": processor_hash(processor),
        "recipe": recipe.to_json(),
        "calibration data": images.fingerprint(),
        "device": str(model.device) if on_cpu else torch.cuda.get_device_name(model.device),
        "number of threads": str(torch.get_num_threads()) if on_cpu else "",
        "version of saqsam, torch or transformers": f"{__version__} {torch.__version__} {transformers.__version__}",
    }
