"""Reconstruction: learn rounding and activation scales unit by unit, so that each responds as its float counterpart.

The recipe chooses between BRECQ's blocks (arXiv 2102.05426) and SAQ-SAM's stages with prompt-aware reconstruction (PAR,
arXiv 2503.06515). `units.py` defines the units, `losses.py` what they are compared by, and `learning.py` how one of
them is learned. Inputs and targets of a unit are captured once and kept within a memory budget; no learning step runs
the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import SamModel

from saqsam.convert.plan import QuantizationPlan
from saqsam.models.family import flatten_image
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.ptq.learning import Captured, learn_unit
from saqsam.ptq.log import UnitLog
from saqsam.ptq.resume import FinishedSteps
from saqsam.ptq.states import PromptTokens, State
from saqsam.ptq.tensor_store import MemoryBudget, TensorStore
from saqsam.ptq.unit_parameters import unit_parameters
from saqsam.ptq.units import Unit, reconstruction_units, unit_phase
from saqsam.utils.progress import Progress


def reconstruct(
    model: SamModel,
    reference: SamModel,
    plan: QuantizationPlan,
    images: CalibrationImages,
    *,
    memory: int,
    steps: FinishedSteps | None = None,
    progress: Progress | None = None,
) -> list[UnitLog]:
    """Learn all units of a calibrated model in place and leave them packed.

    Args:
        model: Calibrated model: quantizers in all slots, float weights.
        reference: The same model with empty slots.
        plan: Quantization plan of the run.
        images: Calibration images.
        memory: Bytes of captured tensors to hold in memory; the rest is spilled to disk.
        steps: Finished steps: units of an earlier run are restored from it, and units of this run saved to it.
        progress: Progress callback; the phases are the units.

    Returns:
        The log of each unit.

    Raises:
        ValueError: `memory` is too little for one image, or a loss is not finite.
        CheckpointError: A finished step is damaged.
    """
    spec = plan.recipe.reconstruction
    assert spec is not None
    units = reconstruction_units(plan)
    model.requires_grad_(False)
    reference.requires_grad_(False)
    steps = FinishedSteps() if steps is None else steps
    logs = []
    with MemoryBudget(memory) as budget, torch.no_grad():
        inputs = _UnitInputs(model, reference, plan, images, budget)
        for number, unit in enumerate(units):
            parameters = unit_parameters(unit, model, plan)
            log = steps.load_unit(number, model, parameters)
            if log is None:
                phase = unit_phase(number, len(units), unit)
                if progress is not None:
                    progress(phase, 0, spec.steps * unit.steps)
                if unit.restarts:
                    inputs.restart(unit)
                seed = plan.recipe.calibration.seed * 1000 + 2 * number
                with inputs.captured(unit) as captured, torch.enable_grad():
                    log = learn_unit(
                        model, reference, unit, parameters, plan.recipe, captured, seed, progress, phase=phase
                    )
                steps.save_unit(number, log, model, parameters)
            logs.append(log)
            if number + 1 < len(units) and not units[number + 1].restarts:
                inputs.advance(unit)
    return logs


class _UnitInputs:
    """States before the next unit, for all calibration images.

    Attributes:
        quantized: States computed by the quantized units before it.
        float: States that targets are computed from: those of the float model, or the same store as `quantized`,
            depending on the recipe field `reconstruction.target`.
    """

    def __init__(
        self,
        model: SamModel,
        reference: SamModel,
        plan: QuantizationPlan,
        images: CalibrationImages,
        budget: MemoryBudget,
    ) -> None:
        self._model, self._reference, self._images, self._budget = model, reference, images, budget
        assert plan.recipe.reconstruction is not None
        self._family = plan.family
        self._has_float_target = plan.recipe.reconstruction.target == "float"
        self._prompts, self.quantized = self._first_states(model)
        self.float = self._first_states(reference)[1] if self._has_float_target else self.quantized

    @contextmanager
    def captured(self, unit: Unit) -> Iterator[Captured]:
        """Capture the targets of a unit and yield them with its inputs; they are freed when the block ends."""
        reference = self._reference

        def respond(state: State, prompts: PromptTokens) -> State:
            return unit.response(reference, reference, state, prompts)

        targets = self._capture(f"the targets of {unit.name}", self.float, respond)
        yield Captured(self.quantized, targets, self._prompts, self._model.device)
        targets.clear()

    def advance(self, unit: Unit) -> None:
        """Replace the states before a unit by those after it."""
        content = f"the output of {unit.name}"
        after = self._capture(content, self.quantized, lambda *inputs: unit.run(self._model, *inputs))
        if self._has_float_target:
            floats = self._capture(content, self.float, lambda *inputs: unit.run(self._reference, *inputs))
            self.float.clear()
        else:
            floats = after
        self.quantized.clear()
        self.quantized, self.float = after, floats

    def restart(self, unit: Unit) -> None:
        """Compute the states before a unit from the patch embedding: by the quantized and by the float model."""
        self.quantized.clear()
        self.float.clear()
        _, first = self._first_states(self._model)
        content = f"the input of {unit.name}"
        self.quantized = self._capture(content, first, lambda *inputs: unit.enter(self._model, *inputs))
        self.float = self._capture(content, first, lambda *inputs: unit.enter(self._reference, *inputs))
        first.clear()

    def _capture(
        self, content: str, states: TensorStore, compute: Callable[[State, PromptTokens], State]
    ) -> TensorStore:
        store = TensorStore(self._budget, content)
        for index, prompts in enumerate(self._prompts):
            store.append(compute(states.get(index, prompts.tokens.device), prompts))
        return store

    def _first_states(self, model: SamModel) -> tuple[list[PromptTokens], TensorStore]:
        """Return the prompts of all images, and their patch embeddings ([1, h, w, C],)."""
        positions = self._family.image_positions(model)
        prompts, states = [], TensorStore(self._budget, "the patch embedding")
        for index in range(len(self._images)):
            pixel_values, image_prompts = self._images[index]
            assert image_prompts.boxes is not None
            tokens, dense = self._family.embed_boxes(model, image_prompts.boxes)
            prompts.append(PromptTokens(tokens, flatten_image(dense), positions))
            states.append((self._family.embed_patches(model, pixel_values.to(model.device)),))
        return prompts, states
