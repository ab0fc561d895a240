"""Reconstruction: rounding and activation scales are learned unit by unit, so that each answers as in float.

BRECQ's units (arXiv 2102.05426) or SAQ-SAM's stages with the decoder's reading of prompts as the measure (prompt-aware
reconstruction, arXiv 2503.06515); which is a matter of the recipe. `units.py` has the units and their losses,
`learn.py` how one is learned. Inputs and targets of a unit are captured once, and kept within a memory budget; no step
runs the whole model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import SamModel

from saqsam.calibration_images import CalibrationImages
from saqsam.learn import Captured, UnitLog, UnitParts, learn_unit, unit_parts
from saqsam.models.path import embed_boxes, embed_patches, flatten_image, image_positions
from saqsam.models.structure import SamStructure
from saqsam.recipe import Recipe
from saqsam.store import MemoryBudget, TensorStore
from saqsam.units import JointUnit, PromptTokens, State, Unit, reconstruction_units

StepProgress = Callable[[str, int, int, str], None]
"""Called with unit, steps done, steps in all, and what is to be said of them."""

UnitSaver = Callable[[int, Unit, UnitLog], None]
UnitLoader = Callable[[int, Unit], UnitLog | None]


def reconstruct(
    model: SamModel,
    reference: SamModel,
    structure: SamStructure,
    recipe: Recipe,
    images: CalibrationImages,
    *,
    memory: int,
    load_unit: UnitLoader | None = None,
    save_unit: UnitSaver | None = None,
    progress: StepProgress | None = None,
) -> list[UnitLog]:
    """Learn all units of a calibrated model, in place, and leave them packed.

    Args:
        model: Calibrated model: quantizers in all slots, float weights.
        reference: The same model with empty slots.
        structure: Their structure.
        recipe: With `reconstruction`.
        images: Calibration images.
        memory: Bytes of captured tensors to hold at once; the rest goes to disk.
        load_unit: Puts a unit that was learned earlier in place and returns its log, or None.
        save_unit: Called after each unit that was learned.
        progress: See `StepProgress`.

    Returns:
        The log of each unit.

    Raises:
        ValueError: If `memory` is too little for one image, or a loss is not finite.
    """
    spec = recipe.reconstruction
    assert spec is not None
    units = reconstruction_units(structure, model.config.mask_decoder_config.num_hidden_layers, spec)
    model.requires_grad_(False)
    reference.requires_grad_(False)
    logs = []
    with tempfile.TemporaryDirectory(prefix="saqsam-") as folder, torch.no_grad():
        budget = MemoryBudget(memory, Path(folder))
        prompts, states = _first_states(model, images, budget)
        # The float prefix's outputs, only where targets are computed from them.
        floats = _first_states(reference, images, budget)[1] if spec.target == "float" else states
        for number, unit in enumerate(units):
            log = None if load_unit is None else load_unit(number, unit)
            if log is None:
                if isinstance(unit, JointUnit):
                    states.clear()
                    floats.clear()
                    states, floats = _joint_states(unit, model, reference, images, budget, prompts)
                targets = _capture(
                    f"the targets of {unit.name}", budget, floats, prompts, _answer(unit, reference)
                )
                captured = Captured(states, targets, prompts, model.device)
                what = f"{number + 1}/{len(units)} {unit.name}"

                def report(done: int, total: int, note: str, what: str = what) -> None:
                    if progress is not None:
                        progress(what, done, total, note)

                with torch.enable_grad():
                    log = learn_unit(
                        model,
                        reference,
                        unit,
                        unit_parts(unit, model, structure, recipe),
                        recipe,
                        captured,
                        seed=recipe.calibration.seed * 1000 + 2 * number,
                        progress=report,
                    )
                targets.clear()
                if save_unit is not None:
                    save_unit(number, unit, log)
            logs.append(log)
            if number + 1 < len(units) and not isinstance(units[number + 1], JointUnit):
                what = f"the output of {unit.name}"
                after = _capture(what, budget, states, prompts, _step(unit, model))
                if spec.target == "float":
                    float_after = _capture(what, budget, floats, prompts, _step(unit, reference))
                    floats.clear()
                else:
                    float_after = after
                states.clear()
                states, floats = after, float_after
    return logs


def _first_states(
    model: SamModel, images: CalibrationImages, budget: MemoryBudget
) -> tuple[list[PromptTokens], TensorStore]:
    """Prompts of all images, and their patch embeddings."""
    positions = image_positions(model)
    prompts, states = [], TensorStore(budget, "the patch embedding")
    for index in range(len(images)):
        pixel_values, image_prompts = images[index]
        assert image_prompts.boxes is not None
        tokens, dense = embed_boxes(model, image_prompts.boxes)
        prompts.append(PromptTokens(tokens, flatten_image(dense), positions))
        states.append((embed_patches(model, pixel_values.to(model.device)),))
    return prompts, states


_Compute = Callable[[State, PromptTokens], State]


def _answer(unit: Unit, reference: SamModel) -> _Compute:
    return lambda state, prompts: unit.response(reference, reference, state, prompts)


def _step(unit: Unit, model: SamModel) -> _Compute:
    return lambda state, prompts: unit.run(model, state, prompts)


def _joint_states(
    unit: JointUnit,
    model: SamModel,
    reference: SamModel,
    images: CalibrationImages,
    budget: MemoryBudget,
    prompts: list[PromptTokens],
) -> tuple[TensorStore, TensorStore]:
    """What the unit is given by the quantized encoder, and by the float one."""
    _, first = _first_states(model, images, budget)
    what = f"the input of {unit.name}"
    states = _capture(what, budget, first, prompts, lambda *given: unit.enter(model, *given))
    floats = _capture(what, budget, first, prompts, lambda *given: unit.enter(reference, *given))
    first.clear()
    return states, floats


def _capture(
    what: str, budget: MemoryBudget, states: TensorStore, prompts: list[PromptTokens], compute: _Compute
) -> TensorStore:
    store = TensorStore(budget, what)
    for index, image_prompts in enumerate(prompts):
        state = states.get(index, image_prompts.tokens.device)
        store.append(compute(state, image_prompts))
    return store


def unit_tensors(model: SamModel, parts: UnitParts) -> dict[str, Tensor]:
    """All that learning changed in a unit: codes, scales and zero points, by name in the model."""
    modules = [*(f"{site.name}.weight" for site, _ in parts.layers), *parts.packed, *parts.slots]
    found = {
        f"{module}.{name}": tensor
        for module in modules
        for name, tensor in model.get_submodule(module).state_dict().items()
    }
    found.update({name: model.get_parameter(name) for name in parts.affine})
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def place_unit_tensors(model: SamModel, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `unit_tensors` gave, into modules of the same shapes."""
    for name, tensor in tensors.items():
        module, _, buffer = name.rpartition(".")
        getattr(model.get_submodule(module), buffer).copy_(tensor)
