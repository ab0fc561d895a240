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

from saqsam.models.sam.forward import (
    flatten_image,
    run_blocks,
    run_decoder_layer,
    run_final_attention,
    run_mask_head,
    run_neck,
    run_transformer,
)
from saqsam.models.structure import ModelStructure
from saqsam.ptq.losses import LOSSES, Loss, MaskLoss
from saqsam.ptq.states import PromptTokens, State
from saqsam.recipes.specs import Reconstruction


class Unit(ABC):
    """A part of the model whose rounding and scales are learned together.

    Attributes:
        name: Display name.
        modules: Names of the modules that it consists of.
        loss: Loss that it is learned by.
        steps: Optimizer steps, as a multiple of the recipe's.
        error_weight: Weight of the squared error of the first tensor of a response; other tensors have weight 1.
        learns_codes: Whether the rounding of its weights is learned. If not, earlier units have packed them, and the
            scales of the packed weights are learned.
        drops_quantization: Whether activations randomly stay float while it is learned (QDrop).
        restarts: Whether its input is computed from the patch embedding by `enter`, not taken from the unit before it.
    """

    name: str
    modules: tuple[str, ...]
    loss: Loss
    steps: int = 1
    error_weight: float = 1.0
    learns_codes: bool = True
    drops_quantization: bool = True
    restarts: bool = False

    def enter(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return the state before the unit from the patch embedding ([1, h, w, C],); called if it `restarts`."""
        return state

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

    def response(self, model: SamModel, reference: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return the tensors that its loss compares; arguments are those of `Loss.response`."""
        return self.loss.response(self, model, reference, state, prompts)

    def error(self, response: State, target: State) -> Tensor:
        """Return the loss, float32 [], of a response against its target."""
        return self.loss(self, response, target)


class EncoderUnit(Unit):
    """Consecutive encoder blocks, from hidden states [1, h, w, C] to hidden states of the same shape.

    Args:
        name: Display name.
        blocks: Indices of the blocks.
        later: Indices of the blocks between the unit and the neck that its output passes through on the way to the
            decoder; none with layer skipping.
        loss: Loss that it is learned by.
    """

    def __init__(self, name: str, blocks: Sequence[int], later: Sequence[int], loss: Loss) -> None:
        self.name, self.blocks, self.later, self.loss = name, blocks, later, loss
        self.modules = tuple(f"vision_encoder.layers.{index}" for index in blocks)

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return hidden states ([1, h, w, C],) from hidden states ([1, h, w, C],)."""
        return (run_blocks(model, self.blocks, state[0]),)

    def read_prompts(self, reference: SamModel, output: State, prompts: PromptTokens) -> State:
        """Return the decoder's image tokens after all two-way layers, ([P, 1, h * w, C],)."""
        image = self._image_tokens(reference, output) + prompts.dense
        _, image = run_transformer(
            reference, 0, prompts.tokens, image, prompts.tokens, prompts.positions, with_final=False
        )
        return (image,)

    def decode_masks(
        self, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> tuple[Tensor, Tensor]:
        """Return masks and IoUs by way of the later blocks, the neck and the decoder."""
        image = self._image_tokens(reference, output) + prompts.dense
        return _finish_decoder(reference, 0, prompts.tokens, image, prompts)

    def _image_tokens(self, reference: SamModel, output: State) -> Tensor:
        return flatten_image(run_neck(reference, run_blocks(reference, self.later, output[0])))


class NeckUnit(Unit):
    """The neck, from hidden states [1, h, w, C] to image tokens [1, 1, h * w, C']."""

    name, modules = "neck", ("vision_encoder.neck",)

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return image tokens ([1, 1, h * w, C'],) from hidden states ([1, h, w, C],)."""
        return (flatten_image(run_neck(model, state[0])),)

    def decode_masks(
        self, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> tuple[Tensor, Tensor]:
        """Return masks and IoUs by way of the decoder."""
        return _finish_decoder(reference, 0, prompts.tokens, output[0] + prompts.dense, prompts)


class DecoderUnit(Unit):
    """A two-way layer of the decoder.

    Args:
        index: Index of the layer.
        loss: Loss that it is learned by.
        token_weight: Weight of the error of the layer's own tokens.
    """

    def __init__(self, index: int, loss: Loss, *, token_weight: float) -> None:
        self.index, self.loss, self.error_weight = index, loss, token_weight
        self.name = f"decoder layer {index + 1}"
        self.modules = (f"mask_decoder.transformer.layers.{index}",)

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return tokens [P, 1, T, C] and image tokens [P, 1, h * w, C].

        The state is the same two tensors; for the first layer, image tokens ([1, 1, h * w, C],) of the neck.
        """
        tokens, image = state if self.index else (prompts.tokens, state[0] + prompts.dense)
        return run_decoder_layer(model, self.index, tokens, image, prompts.tokens, prompts.positions)

    def read_prompts(self, reference: SamModel, output: State, prompts: PromptTokens) -> State:
        """Return tokens, image tokens, and the whole transformer's output tokens [P, 1, T, C]."""
        tokens, image = output
        final_tokens, _ = run_transformer(
            reference, self.index + 1, tokens, image, prompts.tokens, prompts.positions, with_final=True
        )
        return tokens, image, final_tokens

    def decode_masks(
        self, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> tuple[Tensor, Tensor]:
        """Return masks and IoUs by way of the later layers."""
        tokens, image = output
        return _finish_decoder(reference, self.index + 1, tokens, image, prompts)


class FinalAttentionUnit(Unit):
    """The decoder's final token-to-image attention.

    Args:
        loss: Loss that it is learned by.
        steps: Optimizer steps, as a multiple of the recipe's.
    """

    name = "final attention"
    modules = ("mask_decoder.transformer.final_attn_token_to_image",)

    def __init__(self, loss: Loss, *, steps: int) -> None:
        self.loss, self.steps = loss, steps

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return its output ([P, 1, T, C],) from tokens [P, 1, T, C] and image tokens [P, 1, h * w, C]."""
        return (run_final_attention(model, state[0], state[1], prompts.tokens, prompts.positions),)

    def decode_masks(
        self, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> tuple[Tensor, Tensor]:
        """Return masks and IoUs by way of the last normalization and the mask head."""
        tokens = reference.mask_decoder.transformer.layer_norm_final_attn(state[0] + output[0])
        return run_mask_head(reference, tokens, state[1])


class JointUnit(Unit):
    """The whole two-way transformer, learned by the masks once its layers have been learned one by one.

    It corrects what the quantized encoder and the layers themselves have left of the error, so it starts from the image
    embedding of the quantized encoder and is learned with every quantizer on.

    Args:
        blocks: Number of encoder blocks.
        steps: Optimizer steps, as a multiple of the recipe's.
    """

    name = "whole decoder"
    modules = ("mask_decoder.transformer",)
    learns_codes = drops_quantization = False
    restarts = True

    def __init__(self, blocks: int, *, steps: int) -> None:
        self.blocks, self.steps, self.loss = range(blocks), steps, MaskLoss()

    def enter(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return image tokens ([1, 1, h * w, C'],) from the patch embedding ([1, h, w, C],)."""
        return (flatten_image(run_neck(model, run_blocks(model, self.blocks, state[0]))),)

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Return mask logits [P, M, 4 h, 4 w] and predicted IoUs [P, M] from image tokens ([1, 1, h * w, C'],)."""
        return _finish_decoder(model, 0, prompts.tokens, state[0] + prompts.dense, prompts)

    def decode_masks(
        self, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> tuple[Tensor, Tensor]:
        """Return the output, which holds the masks and IoUs already."""
        masks, ious = output
        return masks, ious


def _finish_decoder(
    model: SamModel, first: int, tokens: Tensor, image: Tensor, prompts: PromptTokens
) -> tuple[Tensor, Tensor]:
    """Return masks and IoUs from tokens and image tokens before layer `first`."""
    tokens, image = run_transformer(
        model, first, tokens, image, prompts.tokens, prompts.positions, with_final=True
    )
    return run_mask_head(model, tokens, image)


def reconstruction_units(structure: ModelStructure, decoder_layers: int, spec: Reconstruction) -> list[Unit]:
    """Return the units of a model in the order of computation.

    Args:
        structure: Structure of the model.
        decoder_layers: Number of its two-way layers.
        spec: Reconstruction of the recipe: stages or blocks, the loss, layer skipping, and numbers of steps.
    """
    last = structure.stages[-1].stop
    if spec.unit == "stage":
        named = [(f"encoder stage {i + 1}", blocks) for i, blocks in enumerate(structure.stages)]
    else:
        named = [(f"encoder block {i + 1}", range(i, i + 1)) for i in range(last)]
    loss = LOSSES[spec.loss]()
    units: list[Unit] = []
    for name, blocks in named:
        later = range(0) if spec.skip_layers else range(blocks.stop, last)
        units.append(EncoderUnit(name, blocks, later, loss))
    units.append(NeckUnit(loss))
    for index in range(decoder_layers):
        units.append(DecoderUnit(index, loss, token_weight=spec.token_weight))
    units.append(FinalAttentionUnit(loss, steps=spec.final_steps))
    if spec.joint_steps:
        units.append(JointUnit(last, steps=spec.joint_steps))
    return units
