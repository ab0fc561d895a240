"""Captured tensors of a reconstruction: the state before each unit, and the float responses that it is learned from.

Everything is computed once, for the images and prompts of the schedule alone. The float states after a unit come from
the same run as its targets.

On CPUs several ranks share the images: each runs its own, and sends the states and targets to rank 0, which learns.
Float states never leave their rank. For SAM-B on one core, an encoder stage takes 4 s an image and sending its state
takes 0.02 s; a decoder layer takes 0.5 s for 16 prompts and sending them takes 0.07 s. On other devices rank 0 runs all
images: by estimate, sending what a unit reads through main memory takes no less than computing it there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import SamModel

from saqsam.convert.plan import QuantizationPlan
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.ptq.compensation_sums import Embeddings
from saqsam.ptq.schedule import Draw, used_prompts
from saqsam.ptq.states import PromptTokens, State
from saqsam.ptq.tensor_store import MemoryBudget, TensorStore, select
from saqsam.ptq.units import Unit
from saqsam.utils import ranks


@dataclass
class LearningData:
    """Inputs and targets of a unit, by step.

    Attributes:
        schedule: Image and prompts of each step.
        states: States before the unit, by image.
        state_prompts: Prompts that the states hold, by image, as ascending indices, int64 [p].
        targets: Responses of the float unit, by image; None if they are not needed.
        target_prompts: Prompts that the targets hold, by image.
        prompts: All prompts, by image that the schedule uses.
    """

    schedule: Sequence[Draw]
    states: TensorStore
    state_prompts: Sequence[Tensor]
    targets: TensorStore | None
    target_prompts: Sequence[Tensor]
    prompts: Mapping[int, PromptTokens]

    def __getitem__(self, step: int) -> tuple[State, State, PromptTokens]:
        """Return the state before the unit, the target, and the prompts of a step."""
        assert self.targets is not None
        draw = self.schedule[step]
        prompts = self.prompts[draw.image][draw.prompts]
        device = prompts.tokens.device
        in_state = torch.searchsorted(self.state_prompts[draw.image], draw.prompts)
        in_target = torch.searchsorted(self.target_prompts[draw.image], draw.prompts)
        state = self.states.get(draw.image, device, in_state)
        return state, self.targets.get(draw.image, device, in_target), prompts


class UnitInputs:
    """The states before the next unit, for all images of the schedules, by the quantized and by the float model.

    Of several ranks, rank 0 holds the states of all images, and the others those of the images that they run.

    Args:
        model: Model to quantize, with packed embeddings.
        reference: Float model.
        plan: Quantization plan of the run.
        images: Calibration images.
        schedules: Units in the order of computation, and the schedule of each.
        budget: Memory for the captured tensors.
        embeddings: Image embeddings that are known already; they are used if no unit of the encoder is learned.
    """

    def __init__(
        self,
        model: SamModel,
        reference: SamModel,
        plan: QuantizationPlan,
        images: CalibrationImages,
        schedules: Mapping[Unit, Sequence[Draw]],
        budget: MemoryBudget,
        embeddings: Embeddings | None = None,
    ) -> None:
        spec = plan.recipe.reconstruction
        assert spec is not None
        self._model, self._reference, self._family = model, reference, plan.family
        self._schedules, self._budget, self._count = schedules, budget, len(images)
        used = sorted({draw.image for schedule in schedules.values() for draw in schedule})
        is_shared = model.device.type == "cpu"
        self._runner = {
            image: place % ranks.world_size() if is_shared else 0 for place, image in enumerate(used)
        }
        self._own = {image for image, runner in self._runner.items() if runner == ranks.rank()}
        # The states between units hold prompts, so units after one another share theirs.
        chain = [schedule for unit, schedule in schedules.items() if not unit.reads_embedding]
        self._chain_prompts = used_prompts(max(chain, key=len), self._count)
        self._keeps_embedding = len(chain) < len(schedules)
        self._targets_from_float = spec.target == "float"
        held = set(used) if ranks.rank() == 0 else self._own
        is_learned = any(schedule for unit, schedule in schedules.items() if not unit.sees_prompts)
        # Each rank has made the embeddings of the images that it runs here, too.
        is_alike = ranks.world_size() == 1 or (is_shared and len(used) == len(images))
        self._known = embeddings if is_alike and not is_learned else None
        self._prompts, self._states = self._first_states(model, images, held)
        # Without float targets, float states are needed up to the embedding at most.
        self._floats: TensorStore | None = None
        if self._targets_from_float or self._keeps_embedding:
            _, self._floats = self._first_states(reference, images, self._own)
        self._embedding: tuple[TensorStore, TensorStore | None] | None = None

    @contextmanager
    def captured(self, unit: Unit, *, needs_targets: bool) -> Iterator[LearningData]:
        """Yield the inputs and targets of a unit, and free the targets when the block ends.

        The float states are those after the unit from then on.

        Args:
            unit: The next unit.
            needs_targets: Whether to capture targets, or just the states after the unit.
        """
        if unit.reads_embedding:
            assert self._embedding is not None
            self._states, self._floats = self._embedding
        own = used_prompts(self._schedules[unit], self._count)
        held = own if unit.reads_embedding else self._chain_prompts
        targets = TensorStore(self._budget, f"the targets of {unit.name}") if needs_targets else None
        outputs = None
        if self._floats is not None:
            if self._is_read(unit):
                outputs = TensorStore(self._budget, f"the output of {unit.name}")
            from_float = targets if self._targets_from_float or unit.reads_embedding else None
            self._run(unit, self._reference, self._floats, held, outputs, from_float, own)
        if targets is not None and not len(targets):
            self._run(unit, self._reference, self._states, held, None, targets, own)
        if targets is not None:
            self._collect(targets)
        self._discard(self._floats)
        self._floats = outputs
        data = LearningData(self._schedules[unit], self._states, held, targets, own, self._prompts)
        yield data
        self._discard(targets)

    def is_run(self, unit: Unit) -> bool:
        """Return whether `skip` runs a unit: its output is read, and not known already."""
        return self._is_read(unit) and (self._known is None or unit.sees_prompts)

    def skip(self, unit: Unit) -> None:
        """Replace the states before a packed unit that is not learned by those after it."""
        if self._known is not None and not unit.sees_prompts:
            if unit.gives_embedding:
                self._discard(self._states)
                self._discard(self._floats)
                self._collect(self._known.quantized)
                self._states, self._floats = self._known.quantized, self._known.floats
                self._embedding = self._states, self._floats
            return
        if self._floats is not None:
            outputs = TensorStore(self._budget, f"the output of {unit.name}")
            if self._is_read(unit):
                self._run(unit, self._reference, self._floats, self._chain_prompts, outputs)
            self._discard(self._floats)
            self._floats = outputs
        self.advance(unit)

    def advance(self, unit: Unit) -> None:
        """Replace the states before a packed unit by those after it."""
        outputs = TensorStore(self._budget, f"the output of {unit.name}")
        if self._is_read(unit):
            self._run(unit, self._model, self._states, self._chain_prompts, outputs)
            self._collect(outputs)
        self._discard(self._states)
        self._states = outputs
        if unit.gives_embedding and self._keeps_embedding:
            self._embedding = self._states, self._floats

    def _is_read(self, unit: Unit) -> bool:
        """Return whether a later unit is learned from the output of a unit."""
        units = list(self._schedules)
        after = [later for later in units[units.index(unit) + 1 :] if self._schedules[later]]
        makes_embedding = any(one.gives_embedding for one in units[units.index(unit) :])
        return any(makes_embedding or not later.reads_embedding for later in after)

    def _run(
        self,
        unit: Unit,
        model: SamModel,
        states: TensorStore,
        held: Sequence[Tensor],
        outputs: TensorStore | None = None,
        targets: TensorStore | None = None,
        own: Sequence[Tensor] = (),
    ) -> None:
        """Run a unit on the states of this rank's images; the items of other images are empty.

        Args:
            unit: The unit.
            model: Model whose version of the unit runs.
            states: States before the unit, by image.
            held: Prompts that they hold, by image.
            outputs: Store for the states after the unit.
            targets: Store for the float responses.
            own: Prompts to compute responses for, by image.
        """
        if outputs is None and targets is None:
            return
        with ranks.agreement():
            self._run_images(unit, model, states, held, outputs, targets, own)

    def _run_images(
        self,
        unit: Unit,
        model: SamModel,
        states: TensorStore,
        held: Sequence[Tensor],
        outputs: TensorStore | None,
        targets: TensorStore | None,
        own: Sequence[Tensor],
    ) -> None:
        for image in range(self._count):
            is_used = image in self._own and (not unit.sees_prompts or len(held[image]))
            output: State = ()
            if is_used and (outputs is not None or len(own[image])):
                state = states.get(image, self._model.device)
                prompts = self._prompts[image]
                output = unit.run(model, state, prompts[held[image]])
            if outputs is not None:
                outputs.append(output)
            if targets is not None:
                response: State = ()
                if is_used and len(own[image]):
                    chosen = torch.searchsorted(held[image], own[image])
                    response = unit.loss.response(
                        unit,
                        self._reference,
                        select(state, chosen),
                        select(output, chosen),
                        prompts[own[image]],
                    )
                targets.append(response)

    def _collect(self, store: TensorStore) -> None:
        """Send rank 0 the items of the images that other ranks have run."""
        error: Exception | None = None
        for image, runner in self._runner.items():
            if runner == ranks.rank() != 0:
                ranks.send_to_first(store.get(image, torch.device("cpu")))
            elif runner != ranks.rank() == 0:
                tensors = ranks.receive(runner)
                # After an error the rest is received, too: the other ranks wait to be rid of it.
                if error is None:
                    try:
                        store.fill(image, tensors)
                    except (ValueError, OSError) as raised:
                        error = raised
        with ranks.agreement():
            if error is not None:
                raise error

    def _discard(self, store: TensorStore | None) -> None:
        """Free a store, unless a later unit reads it as the embedding."""
        if store is not None and (self._embedding is None or store not in self._embedding):
            store.clear()

    def _first_states(
        self, model: SamModel, images: CalibrationImages, held: set[int]
    ) -> tuple[dict[int, PromptTokens], TensorStore]:
        """Return prompts and patch embeddings ([1, h, w, C],) of some images; the items of the others are empty."""
        prompts: dict[int, PromptTokens] = {}
        states = TensorStore(self._budget, "the patch embedding")
        with ranks.agreement():
            for index in range(len(images)):
                if index not in held:
                    states.append(())
                    continue
                pixel_values, image_prompts = images[index]
                assert image_prompts.boxes is not None
                prompts[index] = PromptTokens.embed(self._family, model, image_prompts.boxes)
                states.append(self._family.embed_patches(model, pixel_values.to(model.device)))
        return prompts, states
