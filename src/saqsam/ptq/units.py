"""Units of reconstruction: the parts of the model that are learned together, in the order of computation.

Encoder units are stages (the blocks up to and including a global-attention block; SAQ-SAM, arXiv 2503.06515) or single
blocks (BRECQ, arXiv 2102.05426). They are followed by the neck, each two-way layer of the decoder, and its final
attention.

A unit sees one image at a time, as a `State`. `run` computes the next unit's state. `read_prompts` and `decode_masks`
continue from the unit's output through the float rest of the model, for the losses that look further than the unit
itself (`losses.py`). All take the model to run in, so the same lines compute quantized responses and float targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor
from transformers import SamModel

from saqsam.convert.plan import QuantizationPlan
from saqsam.models.family import ModelFamily, unflatten_image
from saqsam.ptq.losses import LOSSES, Loss, MaskLoss
from saqsam.ptq.states import PromptTokens, State, image_state
from saqsam.recipes.specs import Reconstruction


class Unit(ABC):
    """A part of the model whose rounding and scales are learned together.

    Attributes:
        family: Family of the model, which runs its parts.
        name: Display name.
        modules: Names of the modules that it consists of.
        loss: Loss that it is learned by.
        relative_steps: Optimizer steps, as a multiple of the recipe's.
        error_weight: Weight of the squared error of the first tensor of a response; other tensors have weight 1.
        learns_codes: Whether the rounding of its weights is learned. If not, earlier units have packed them, and the
            scales of the packed weights are learned.
        drops_quantization: Whether activations randomly stay float while it is learned (QDrop).
        gives_embedding: Whether its output is the image embedding.
        reads_embedding: Whether its input is the image embedding, kept since the neck, not the output of the unit
            before it.
        sees_prompts: Whether it runs on each prompt; if not, its output is the image's.
        passed_slots: Activation slots outside of it that `run` passes through: of the mask head, or of layers that fuse
            features after the neck.
    """

    family: ModelFamily
    name: str
    modules: tuple[str, ...]
    loss: Loss
    relative_steps: float = 1
    error_weight: float = 1.0
    learns_codes: bool = True
    drops_quantization: bool = True
    gives_embedding: bool = False
    reads_embedding: bool = False
    sees_prompts: bool = True
    passed_slots: tuple[str, ...] = ()

    def steps(self, spec: Reconstruction) -> int:
        """Return the number of optimizer steps; 0 if the unit is not learned."""
        return max(1, round(spec.steps * self.relative_steps)) if self.relative_steps else 0

    @abstractmethod
    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return the state after the unit.

        Args:
            model: Model whose version of the unit runs.
            state: State before the unit.
            prompts: Prompts of the same image.
        """

    def read_prompts(self, reference: SamModel, output: State, prompts: PromptTokens) -> State:
        """Return the output as the float two-way decoder reads it, together with real prompts.

        By default that is the output itself, for units that the paper reconstructs by their own output.

        Args:
            reference: Float model.
            output: State after the unit.
            prompts: Prompts of the same image.
        """
        return output

    @abstractmethod
    def decode_masks(
        self, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> tuple[Tensor, Tensor]:
        """Return mask logits [P, M, 4 h, 4 w] and predicted IoUs [P, M], computed by the float rest of the model.

        Args:
            reference: Float model.
            state: State before the unit.
            output: State after the unit.
            prompts: Prompts of the same image.
        """

    def _finish_decoder(
        self,
        model: SamModel,
        first: int,
        tokens: Tensor,
        image: Tensor,
        prompts: PromptTokens,
        extras: State,
    ) -> tuple[Tensor, Tensor]:
        """Return masks and IoUs from tokens, image tokens and extra features before decoder layer `first`."""
        tokens, image = self.family.run_transformer(
            model, first, tokens, image, prompts.tokens, prompts.positions, with_final=True
        )
        return self._run_mask_head(model, tokens, image, extras)

    def _run_mask_head(
        self, model: SamModel, tokens: Tensor, image: Tensor, extras: State
    ) -> tuple[Tensor, Tensor]:
        return self.family.run_mask_head(model, tokens, image, tuple(map(unflatten_image, extras)))

    def own_output(self, output: State) -> State:
        """Return the tensors of the state after the unit that the unit computes."""
        return output

    def response(self, model: SamModel, reference: SamModel, state: State, prompts: PromptTokens) -> State:
        """Run the unit in `model` and return the tensors that its loss compares.

        Args:
            model: Model whose version of the unit runs.
            reference: Float model that runs everything after the unit.
            state: State before the unit.
            prompts: Prompts of the same image.
        """
        return self.loss.response(self, reference, state, self.run(model, state, prompts), prompts)

    def error(self, response: State, target: State) -> Tensor:
        """Return the loss, float32 [], of a response against its target."""
        return self.loss(self, response, target)


class EncoderUnit(Unit):
    """Consecutive encoder blocks.

    Args:
        plan: Quantization plan of the run.
        name: Display name.
        blocks: Indices of the blocks.
        later: Indices of the blocks between the unit and the neck that its output passes through on the way to the
            decoder; none with layer skipping.
        loss: Loss that it is learned by.
        relative_steps: Optimizer steps, as a multiple of the recipe's.
    """

    sees_prompts = False

    def __init__(
        self,
        plan: QuantizationPlan,
        name: str,
        blocks: Sequence[int],
        later: Sequence[int],
        loss: Loss,
        *,
        relative_steps: float,
    ) -> None:
        self.relative_steps = relative_steps
        self.family, self.name, self.blocks, self.later, self.loss = plan.family, name, blocks, later, loss
        self.modules = tuple(plan.structure.blocks[index] for index in blocks)

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return the state after the blocks."""
        return self.family.run_blocks(model, self.blocks, state)

    def read_prompts(self, reference: SamModel, output: State, prompts: PromptTokens) -> State:
        """Return the decoder's image tokens after all two-way layers, [P, 1, h * w, C], and the extra features."""
        image, *extras = self._image_state(reference, output)
        _, image = self.family.run_transformer(
            reference,
            0,
            prompts.tokens,
            image + prompts.dense,
            prompts.tokens,
            prompts.positions,
            with_final=False,
        )
        return (image, *extras)

    def decode_masks(
        self, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> tuple[Tensor, Tensor]:
        """Return masks and IoUs by way of the later blocks, the neck and the decoder."""
        image, *extras = self._image_state(reference, output)
        return self._finish_decoder(
            reference, 0, prompts.tokens, image + prompts.dense, prompts, tuple(extras)
        )

    def _image_state(self, reference: SamModel, output: State) -> State:
        state = self.family.run_blocks(reference, self.later, output)
        return image_state(self.family.run_neck(reference, state))


class NeckUnit(Unit):
    """The neck, from the state after the last block to image tokens [1, 1, h * w, C'] and extra features.

    Args:
        plan: Quantization plan of the run.
        loss: Loss that it is learned by.
        relative_steps: Optimizer steps, as a multiple of the recipe's.
    """

    name = "neck"
    gives_embedding = True
    sees_prompts = False

    def __init__(self, plan: QuantizationPlan, loss: Loss, *, relative_steps: float) -> None:
        self.family, self.loss, self.modules = plan.family, loss, (plan.structure.neck,)
        self.relative_steps = relative_steps
        self.passed_slots = tuple(s.name for s in plan.slots if s.owner in plan.structure.encoding_layers)

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return image tokens [1, 1, h * w, C'] and the extra features."""
        return image_state(self.family.run_neck(model, state))

    def decode_masks(
        self, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> tuple[Tensor, Tensor]:
        """Return masks and IoUs by way of the decoder."""
        image = output[0] + prompts.dense
        return self._finish_decoder(reference, 0, prompts.tokens, image, prompts, output[1:])


class DecoderUnit(Unit):
    """A two-way layer of the decoder.

    Args:
        plan: Quantization plan of the run.
        index: Index of the layer.
        loss: Loss that it is learned by.
        token_weight: Weight of the error of the layer's own tokens.
        relative_steps: Optimizer steps, as a multiple of the recipe's.
    """

    def __init__(
        self, plan: QuantizationPlan, index: int, loss: Loss, *, token_weight: float, relative_steps: float
    ) -> None:
        self.family, self.index, self.loss, self.error_weight = plan.family, index, loss, token_weight
        self.relative_steps = relative_steps
        self.name = f"decoder layer {index + 1}"
        self.modules = (plan.structure.decoder_layers[index],)

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return tokens [P, 1, T, C], image tokens [P, 1, h * w, C] and the extra features.

        The state is the same; before the first layer, it is the neck's.
        """
        if self.index:
            tokens, image, *extras = state
        else:
            tokens, (image, *extras) = prompts.tokens, state
            image = image + prompts.dense
        tokens, image = self.family.run_decoder_layer(
            model, self.index, tokens, image, prompts.tokens, prompts.positions
        )
        return (tokens, image, *extras)

    def own_output(self, output: State) -> State:
        """Return tokens and image tokens."""
        return output[:2]

    def read_prompts(self, reference: SamModel, output: State, prompts: PromptTokens) -> State:
        """Return tokens, image tokens, and the whole transformer's output tokens [P, 1, T, C]."""
        tokens, image = self.own_output(output)
        final_tokens, _ = self.family.run_transformer(
            reference, self.index + 1, tokens, image, prompts.tokens, prompts.positions, with_final=True
        )
        return tokens, image, final_tokens

    def decode_masks(
        self, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> tuple[Tensor, Tensor]:
        """Return masks and IoUs by way of the later layers."""
        tokens, image, *extras = output
        return self._finish_decoder(reference, self.index + 1, tokens, image, prompts, tuple(extras))


class FinalAttentionUnit(Unit):
    """The decoder's final token-to-image attention.

    Args:
        plan: Quantization plan of the run.
        loss: Loss that it is learned by.
        relative_steps: Optimizer steps, as a multiple of the recipe's.
    """

    name = "final attention"

    def __init__(self, plan: QuantizationPlan, loss: Loss, *, relative_steps: float) -> None:
        self.family, self.loss, self.relative_steps = plan.family, loss, relative_steps
        self.modules = (plan.structure.final_attention,)

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return its output ([P, 1, T, C],) from the state after the last layer."""
        attended = self.family.run_final_attention(
            model, state[0], state[1], prompts.tokens, prompts.positions
        )
        return (attended,)

    def decode_masks(
        self, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> tuple[Tensor, Tensor]:
        """Return masks and IoUs by way of the last normalization and the mask head."""
        tokens = self.family.finish_tokens(reference, state[0], output[0])
        return self._run_mask_head(reference, tokens, state[1], state[2:])


class JointUnit(Unit):
    """The whole two-way transformer, learned by the masks once its layers have been learned one by one.

    It corrects what the quantized encoder and the layers themselves have left of the error, so it reads the image
    embedding of the quantized encoder and is learned with every quantizer on.

    Args:
        plan: Quantization plan of the run.
        relative_steps: Optimizer steps, as a multiple of the recipe's.
    """

    name = "whole decoder"
    learns_codes = drops_quantization = False
    reads_embedding = True

    def __init__(self, plan: QuantizationPlan, *, relative_steps: float) -> None:
        self.family, self.relative_steps, self.loss = plan.family, relative_steps, MaskLoss()
        self.modules = (plan.structure.decoder,)
        self.passed_slots = tuple(
            slot.name
            for slot in plan.slots
            if not plan.structure.is_encoder(slot.owner)
            and not slot.name.startswith(f"{plan.structure.decoder}.")
        )

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return mask logits [P, M, 4 h, 4 w] and predicted IoUs [P, M] from the state after the neck."""
        image = state[0] + prompts.dense
        return self._finish_decoder(model, 0, prompts.tokens, image, prompts, state[1:])

    def decode_masks(
        self, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> tuple[Tensor, Tensor]:
        """Return the output, which holds the masks and IoUs already."""
        masks, ious = output
        return masks, ious


def unit_phase(number: int, count: int, unit: Unit) -> str:
    """Return the name of a unit's phase in progress reports, such as `3/9 encoder stage 3`; `number` is from 0."""
    return f"{number + 1}/{count} {unit.name}"


def reconstruction_units(plan: QuantizationPlan, spec: Reconstruction | None = None) -> list[Unit]:
    """Return the units of a model in the order of computation; those without steps are rounded to nearest.

    Args:
        plan: Quantization plan.
        spec: Stages or blocks, the loss, layer skipping, and numbers of steps; None takes the `reconstruction` of the
            plan's recipe, which must have one.
    """
    structure, spec = plan.structure, spec or plan.recipe.reconstruction
    assert spec is not None
    count = len(structure.blocks)
    if spec.unit == "stage":
        named = [(f"encoder stage {i + 1}", blocks) for i, blocks in enumerate(structure.stages)]
    else:
        named = [(f"encoder block {i + 1}", range(i, i + 1)) for i in range(count)]
    loss = LOSSES[spec.loss]()
    units: list[Unit] = []
    for name, blocks in named:
        first = structure.skip_targets[blocks[-1]] if spec.skip_layers else blocks[-1] + 1
        later = range(first, count)
        units.append(EncoderUnit(plan, name, blocks, later, loss, relative_steps=spec.encoder_steps))
    units.append(NeckUnit(plan, loss, relative_steps=spec.encoder_steps))
    for index in range(len(structure.decoder_layers)):
        units.append(
            DecoderUnit(plan, index, loss, token_weight=spec.token_weight, relative_steps=spec.decoder_steps)
        )
    units.append(FinalAttentionUnit(plan, loss, relative_steps=spec.decoder_steps * spec.final_steps))
    if spec.joint_steps:
        units.append(JointUnit(plan, relative_steps=spec.joint_steps))
    return units
