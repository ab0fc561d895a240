"""Reconstruction: learn rounding and activation scales unit by unit, so that each responds as its float counterpart.

The recipe chooses between BRECQ's blocks (arXiv 2102.05426) and SAQ-SAM's stages with prompt-aware reconstruction (PAR,
arXiv 2503.06515). `units.py` defines the units, `losses.py` what they are compared by, `schedule.py` which images
and prompts each step sees, `captured.py` the tensors that are captured for them, within a memory budget, and
`learning.py` how one unit is learned. No learning step runs the whole model.
"""

from __future__ import annotations

from functools import partial

import torch
from transformers import SamModel

from saqsam.convert.pack import pack_layer, round_weight
from saqsam.convert.plan import QuantizationPlan
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.ptq.captured import UnitInputs
from saqsam.ptq.compensation_sums import Embeddings
from saqsam.ptq.learning import learn_unit
from saqsam.ptq.log import UnitLog
from saqsam.ptq.resume import FinishedSteps
from saqsam.ptq.schedule import Draw, draw_schedule
from saqsam.ptq.tensor_store import MemoryBudget
from saqsam.ptq.unit_parameters import UnitParameters, place_unit_tensors, unit_parameters, unit_tensors
from saqsam.ptq.units import Unit, reconstruction_units, unit_phase
from saqsam.utils import ranks
from saqsam.utils.progress import Progress


def reconstruct(
    model: SamModel,
    reference: SamModel,
    plan: QuantizationPlan,
    images: CalibrationImages,
    budget: MemoryBudget,
    *,
    embeddings: Embeddings | None = None,
    steps: FinishedSteps | None = None,
    progress: Progress | None = None,
) -> list[UnitLog]:
    """Learn all units of a calibrated model in place and leave them packed.

    Rank 0 of several learns, since each unit reads what the units before it have learned; the others place its result.

    Args:
        model: Calibrated model: quantizers in all slots, float weights.
        reference: The same model with empty slots.
        plan: Quantization plan of the run.
        images: Calibration images.
        budget: Memory for captured tensors.
        embeddings: Image embeddings of `compensate`, which save a pass through an encoder that is not learned.
        steps: Finished steps: units of an earlier run are restored from it, and units of this run saved to it.
        progress: Progress callback; the phases are the units.

    Returns:
        The log of each unit that is learned.

    Raises:
        ValueError: The budget is too small for one image, or a loss is not finite.
        CheckpointError: A finished step is damaged.
    """
    spec = plan.recipe.reconstruction
    assert spec is not None
    schedules = _schedules(plan, images)
    model.requires_grad_(False)
    reference.requires_grad_(False)
    steps = FinishedSteps() if steps is None else steps
    logs = []
    with torch.no_grad():
        inputs = UnitInputs(model, reference, plan, images, schedules, budget, embeddings)
        learned = [unit for unit, schedule in schedules.items() if schedule]
        for unit in schedules:
            if unit not in learned:
                _round_to_nearest(model, unit, plan)
                _skip(inputs, unit, progress)
                continue
            number = learned.index(unit)
            parameters = unit_parameters(unit, model, plan)
            log = ranks.on_first(partial(steps.load_unit, number, model, parameters))
            if log is not None:
                _share_unit(model, parameters)
            phase = unit_phase(number, len(learned), unit)
            if log is None and progress is not None:
                progress(phase, 0, len(schedules[unit]))
            with inputs.captured(unit, needs_targets=log is None) as data:
                if log is None:
                    seed = plan.recipe.calibration.seed * 1000 + 2 * number
                    learn = partial(
                        learn_unit, model, reference, unit, parameters, plan.recipe, data, seed, progress
                    )
                    with torch.enable_grad():
                        log = ranks.on_first(partial(learn, phase=phase))
                    ranks.on_first(partial(steps.save_unit, number, log, model, parameters))
                    _share_unit(model, parameters)
            logs.append(log)
            inputs.advance(unit)
    return logs


def _round_to_nearest(model: SamModel, unit: Unit, plan: QuantizationPlan) -> None:
    """Pack the layers of a unit that is not learned."""
    for site, bits in unit_parameters(unit, model, plan).layers:
        pack_layer(model, site.name, round_weight(model.get_submodule(site.name), bits, plan.recipe))


def _skip(inputs: UnitInputs, unit: Unit, progress: Progress | None) -> None:
    """Advance the states past a unit that is not learned, with a progress report if that takes a run."""
    if progress is None or not inputs.is_run(unit):
        inputs.skip(unit)
        return
    phase = f"running the {unit.name}"
    progress(phase, 0, 1)
    inputs.skip(unit)
    progress(phase, 1, 1)


def _share_unit(model: SamModel, parameters: UnitParameters) -> None:
    """Place a unit that rank 0 has learned or loaded in the models of all other ranks."""
    if ranks.world_size() == 1:
        return
    tensors = ranks.on_first(partial(unit_tensors, model, parameters))
    if ranks.rank() > 0:
        place_unit_tensors(model, parameters, tensors)


def _schedules(plan: QuantizationPlan, images: CalibrationImages) -> dict[Unit, list[Draw]]:
    """Return the units in the order of computation, with the schedule of each."""
    spec = plan.recipe.reconstruction
    assert spec is not None
    units = reconstruction_units(plan)
    longest = max(unit.steps(spec) for unit in units)
    schedule = draw_schedule(images.prompt_counts, longest, spec.prompts, plan.recipe.calibration.seed)
    return {unit: schedule[: unit.steps(spec)] for unit in units}
