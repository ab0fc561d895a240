"""Reconstruction: rounding and activation scales are learned unit by unit, so that each answers as in float.

BRECQ's units (arXiv 2102.05426) or SAQ-SAM's stages with the decoder's reading of prompts as the measure (prompt-aware
reconstruction, arXiv 2503.06515); which is a matter of the recipe. `units.py` has the units and their losses,
`learn.py` how one is learned. Inputs and targets of a unit are captured once, and kept within a memory budget; no step
runs the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import SamModel

from saqsam.models.family import ModelStructure
from saqsam.models.sam.forward import embed_boxes, embed_patches, flatten_image, image_positions
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.ptq.learning import Captured, UnitLog, UnitParts, learn_unit, unit_parts
from saqsam.ptq.tensor_store import MemoryBudget, TensorStore
from saqsam.ptq.units import JointUnit, PromptTokens, State, Unit, reconstruction_units
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Reconstruction

StepProgress = Callable[[str, int, int, str], None]
"""Called with unit, steps done, steps in all, and what is to be said of them."""

UnitSaver = Callable[[int, Unit, UnitLog], None]
UnitLoader = Callable[[int, Unit], UnitLog | None]


def reconstruct(
    model: SamModel,
    reference: SamModel,
    structure: ModelStructure,
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
    with MemoryBudget(memory) as budget, torch.no_grad():
        inputs = _Inputs(model, reference, images, budget, spec)
        for number, unit in enumerate(units):
            log = None if load_unit is None else load_unit(number, unit)
            if log is None:
                if isinstance(unit, JointUnit):
                    inputs.enter(unit)
                parts = unit_parts(unit, model, structure, recipe)
                seed = recipe.calibration.seed * 1000 + 2 * number
                report = _reporter(progress, f"{number + 1}/{len(units)} {unit.name}")
                with inputs.captured(unit) as captured, torch.enable_grad():
                    log = learn_unit(model, reference, unit, parts, recipe, captured, seed, report)
                if save_unit is not None:
                    save_unit(number, unit, log)
            logs.append(log)
            if number + 1 < len(units) and not isinstance(units[number + 1], JointUnit):
                inputs.advance(unit)
    return logs


def _reporter(progress: StepProgress | None, what: str) -> Callable[[int, int, str], None] | None:
    if progress is None:
        return None
    return lambda done, total, note: progress(what, done, total, note)


class _Inputs:
    """What the next unit is given, for all images.

    Attributes:
        quantized: By the units before it as they have been learned.
        float: By those of the float model; the same store where the recipe's target is of the `quantized` prefix.
    """

    def __init__(
        self,
        model: SamModel,
        reference: SamModel,
        images: CalibrationImages,
        budget: MemoryBudget,
        spec: Reconstruction,
    ) -> None:
        self._model, self._reference, self._images, self._budget = model, reference, images, budget
        self._with_float = spec.target == "float"
        self._prompts, self.quantized = _first_states(model, images, budget)
        # Only where targets are computed from them.
        self.float = _first_states(reference, images, budget)[1] if self._with_float else self.quantized

    @contextmanager
    def captured(self, unit: Unit) -> Iterator[Captured]:
        """Inputs and targets of a unit, the targets for as long as the block runs."""
        reference = self._reference

        def answer(state: State, prompts: PromptTokens) -> State:
            return unit.response(reference, reference, state, prompts)

        targets = self._capture(f"the targets of {unit.name}", self.float, answer)
        yield Captured(self.quantized, targets, self._prompts, self._model.device)
        targets.clear()

    def advance(self, unit: Unit) -> None:
        """Go past a unit."""
        what = f"the output of {unit.name}"
        after = self._capture(what, self.quantized, lambda *given: unit.run(self._model, *given))
        if self._with_float:
            floats = self._capture(what, self.float, lambda *given: unit.run(self._reference, *given))
            self.float.clear()
        else:
            floats = after
        self.quantized.clear()
        self.quantized, self.float = after, floats

    def enter(self, unit: JointUnit) -> None:
        """Go to where a joint unit begins: what the quantized encoder gives, and what the float one does."""
        self.quantized.clear()
        self.float.clear()
        _, first = _first_states(self._model, self._images, self._budget)
        what = f"the input of {unit.name}"
        self.quantized = self._capture(what, first, lambda *given: unit.enter(self._model, *given))
        self.float = self._capture(what, first, lambda *given: unit.enter(self._reference, *given))
        first.clear()

    def _capture(
        self, what: str, states: TensorStore, compute: Callable[[State, PromptTokens], State]
    ) -> TensorStore:
        store = TensorStore(self._budget, what)
        for index, prompts in enumerate(self._prompts):
            store.append(compute(states.get(index, prompts.tokens.device), prompts))
        return store


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
