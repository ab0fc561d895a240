"""Units of reconstruction: what is learned together, what it is compared by, and what comes after it.

Encoder units are stages (the blocks up to and including a global-attention block; SAQ-SAM, arXiv 2503.06515) or single
blocks (BRECQ, arXiv 2102.05426). Then come the neck, each two-way layer of the decoder, and its final attention.

A unit sees one image at a time, as a `State`. `run` takes it to the state that the next unit starts from; `response` is
what the loss compares between the unit under quantization and its float counterpart; both are given the model to
run in, so that the same lines compute learned output and float target.

Losses are squared differences, summed over channels and averaged over the rest. Of an encoder unit it is taken, with
`loss = prompt`, over the image tokens after the float two-way decoder has read, with real prompts, the unit's output:
past all later blocks if layers are skipped, else through the float later blocks. With `loss = mask` (not of the paper)
the response of every unit is what a user gets: the masks and predicted IoUs that the float rest of the model makes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from transformers import SamModel

from saqsam.models.family import ModelStructure
from saqsam.models.sam.forward import (
    flatten_image,
    run_blocks,
    run_decoder_layer,
    run_final_attention,
    run_mask_head,
    run_neck,
    run_transformer,
)
from saqsam.recipes.specs import Reconstruction, ReconstructionLoss

State = tuple[Tensor, ...]
"""Within the encoder (hidden [1, h, w, C],); after the neck (image tokens [1, 1, h * w, C],); after decoder layers
(tokens [P, 1, T, C], image tokens [P, 1, h * w, C])."""


@dataclass(frozen=True)
class PromptTokens:
    """Prompts of one image as the decoder takes them.

    Attributes:
        tokens: [P, 1, T, C].
        dense: Image tokens of the dense embedding, [1, 1, h * w, C]; added to the image embedding.
        positions: [1, 1, h * w, C].
    """

    tokens: Tensor
    dense: Tensor
    positions: Tensor

    def __getitem__(self, chosen: Tensor) -> PromptTokens:
        """Some of the prompts."""
        return PromptTokens(self.tokens[chosen], self.dense, self.positions)


class Unit(ABC):
    """A part of the model that is learned at once.

    Attributes:
        name: For people.
        modules: Names of the modules that it consists of.
        steps: Optimizer steps, as a multiple of the recipe's.
    """

    name: str
    modules: tuple[str, ...]
    steps: int = 1

    @abstractmethod
    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """State after the unit."""

    @abstractmethod
    def response(self, model: SamModel, reference: SamModel, state: State, prompts: PromptTokens) -> State:
        """What is compared, of the unit as it is in `model`; whatever comes after it is run in `reference`."""

    @abstractmethod
    def loss(self, found: State, target: State) -> Tensor:
        """Loss [] of a response."""


def squared_error(found: Tensor, target: Tensor, channel_axis: int = -1) -> Tensor:
    """Squared difference, summed over channels, averaged over the rest."""
    return (found - target).square().sum(channel_axis).mean()


def mask_error(found: State, target: State) -> Tensor:
    """How far masks (logits, first) and predicted IoUs (second) are from their targets; 0 where they are equal.

    Kullback-Leibler divergence of each pixel's probability, averaged: a logit matters where the mask could go either
    way, not far inside or outside of it. One minus the Dice coefficient of the probabilities (arXiv 1606.04797), mean
    over masks: of a small object as much as of a large one. Squared difference of the IoUs.
    """
    wanted = target[0].sigmoid()
    cross = F.binary_cross_entropy_with_logits(found[0], wanted)
    divergence = cross - F.binary_cross_entropy_with_logits(target[0], wanted)
    given = found[0].sigmoid()
    common, both = (given * wanted).sum((-2, -1)), (given.square() + wanted.square()).sum((-2, -1))
    dice = 1 - (2 * common / both.clamp_min(1e-6)).mean()
    return divergence + dice + F.mse_loss(found[1], target[1])


def _masks(
    reference: SamModel, first: int, tokens: Tensor, image: Tensor, prompts: PromptTokens
) -> tuple[Tensor, Tensor]:
    """Masks and predicted IoUs from the tokens and image tokens that layer `first` is given."""
    tokens, image = run_transformer(
        reference, first, tokens, image, prompts.tokens, prompts.positions, with_final=True
    )
    return run_mask_head(reference, tokens, image)


class EncoderUnit(Unit):
    """Encoder blocks.

    Args:
        name: For people.
        blocks: The blocks.
        later: Blocks between the unit and the neck that its response runs through, in float.
        loss: What is compared: the blocks' `output`, the decoder's image tokens (`prompt`), or its masks (`mask`).
    """

    def __init__(
        self, name: str, blocks: Sequence[int], later: Sequence[int], *, loss: ReconstructionLoss
    ) -> None:
        self.name, self.blocks, self.later, self.compared = name, blocks, later, loss
        self.modules = tuple(f"vision_encoder.layers.{index}" for index in blocks)

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """See `Unit.run`."""
        return (run_blocks(model, self.blocks, state[0]),)

    def response(self, model: SamModel, reference: SamModel, state: State, prompts: PromptTokens) -> State:
        """The blocks' output [1, h, w, C], the decoder's image tokens [P, 1, h * w, C], or its masks and IoUs."""
        hidden = run_blocks(model, self.blocks, state[0])
        if self.compared == "output":
            return (hidden,)
        embedding = flatten_image(run_neck(reference, run_blocks(reference, self.later, hidden)))
        image = embedding + prompts.dense
        if self.compared == "mask":
            return _masks(reference, 0, prompts.tokens, image, prompts)
        _, image = run_transformer(
            reference, 0, prompts.tokens, image, prompts.tokens, prompts.positions, with_final=False
        )
        return (image,)

    def loss(self, found: State, target: State) -> Tensor:
        """See `Unit.loss`."""
        return mask_error(found, target) if self.compared == "mask" else squared_error(found[0], target[0])


class NeckUnit(Unit):
    """The neck, by its own output, or by the masks."""

    name, modules = "neck", ("vision_encoder.neck",)

    def __init__(self, *, loss: ReconstructionLoss) -> None:
        self.compared = loss

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """See `Unit.run`."""
        return (flatten_image(run_neck(model, state[0])),)

    def response(self, model: SamModel, reference: SamModel, state: State, prompts: PromptTokens) -> State:
        """Image tokens [1, 1, h * w, C], or masks and IoUs."""
        (embedding,) = self.run(model, state, prompts)
        if self.compared == "mask":
            return _masks(reference, 0, prompts.tokens, embedding + prompts.dense, prompts)
        return (embedding,)

    def loss(self, found: State, target: State) -> Tensor:
        """See `Unit.loss`."""
        return mask_error(found, target) if self.compared == "mask" else squared_error(found[0], target[0])


class DecoderUnit(Unit):
    """A two-way layer, by its own tokens and image tokens and, with `prompt`, the whole transformer's tokens too."""

    def __init__(self, index: int, *, loss: ReconstructionLoss, token_weight: float) -> None:
        self.index, self.compared, self.token_weight = index, loss, token_weight
        self.name = f"decoder layer {index + 1}"
        self.modules = (f"mask_decoder.transformer.layers.{index}",)

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """See `Unit.run`."""
        tokens, image = self._start(state, prompts)
        return run_decoder_layer(model, self.index, tokens, image, prompts.tokens, prompts.positions)

    def response(self, model: SamModel, reference: SamModel, state: State, prompts: PromptTokens) -> State:
        """Tokens, image tokens and, with `prompt`, the transformer's tokens [P, 1, T, C]; or masks and IoUs."""
        tokens, image = self.run(model, state, prompts)
        if self.compared == "output":
            return tokens, image
        if self.compared == "mask":
            return _masks(reference, self.index + 1, tokens, image, prompts)
        output, _ = run_transformer(
            reference, self.index + 1, tokens, image, prompts.tokens, prompts.positions, with_final=True
        )
        return tokens, image, output

    def loss(self, found: State, target: State) -> Tensor:
        """See `Unit.loss`."""
        if self.compared == "mask":
            return mask_error(found, target)
        loss = self.token_weight * squared_error(found[0], target[0]) + squared_error(found[1], target[1])
        return loss + squared_error(found[2], target[2]) if self.compared == "prompt" else loss

    def _start(self, state: State, prompts: PromptTokens) -> tuple[Tensor, Tensor]:
        if self.index == 0:
            return prompts.tokens, state[0] + prompts.dense
        return state[0], state[1]


class FinalAttentionUnit(Unit):
    """The decoder's final attention of tokens to the image, by its own output, or by the masks."""

    name = "final attention"
    modules = ("mask_decoder.transformer.final_attn_token_to_image",)

    def __init__(self, steps: int, *, loss: ReconstructionLoss) -> None:
        self.steps, self.compared = steps, loss

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """See `Unit.run`."""
        return (run_final_attention(model, state[0], state[1], prompts.tokens, prompts.positions),)

    def response(self, model: SamModel, reference: SamModel, state: State, prompts: PromptTokens) -> State:
        """Output [P, 1, T, C], or masks and IoUs."""
        (attended,) = self.run(model, state, prompts)
        if self.compared == "mask":
            tokens = reference.mask_decoder.transformer.layer_norm_final_attn(state[0] + attended)
            return run_mask_head(reference, tokens, state[1])
        return (attended,)

    def loss(self, found: State, target: State) -> Tensor:
        """See `Unit.loss`."""
        return mask_error(found, target) if self.compared == "mask" else squared_error(found[0], target[0])


class JointUnit(Unit):
    """The two-way transformer as a whole, by the masks: what is left of the encoder's error and of its own.

    Other units have learned and packed its layers before; it is learned with every quantizer on, as it will be used.
    """

    name = "whole decoder"
    modules = ("mask_decoder.transformer",)

    def __init__(self, blocks: int, steps: int) -> None:
        self.blocks, self.steps = range(blocks), steps

    def enter(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """The image embedding [1, 1, h * w, C] of a patch embedding [1, h, w, C]."""
        return (flatten_image(run_neck(model, run_blocks(model, self.blocks, state[0]))),)

    def run(self, model: SamModel, state: State, prompts: PromptTokens) -> State:
        """Masks and predicted IoUs."""
        return _masks(model, 0, prompts.tokens, state[0] + prompts.dense, prompts)

    def response(self, model: SamModel, reference: SamModel, state: State, prompts: PromptTokens) -> State:
        """The same; nothing comes after it."""
        return self.run(model, state, prompts)

    def loss(self, found: State, target: State) -> Tensor:
        """See `Unit.loss`."""
        return mask_error(found, target)


def reconstruction_units(structure: ModelStructure, decoder_layers: int, spec: Reconstruction) -> list[Unit]:
    """The units of a model in the order of computation.

    Args:
        structure: The model's structure.
        decoder_layers: Number of its two-way layers.
        spec: Stages or blocks, and the losses.
    """
    last = structure.stages[-1].stop
    if spec.unit == "stage":
        named = [(f"encoder stage {i + 1}", blocks) for i, blocks in enumerate(structure.stages)]
    else:
        named = [(f"encoder block {i + 1}", range(i, i + 1)) for i in range(last)]
    units: list[Unit] = []
    for name, blocks in named:
        later = range(0) if spec.skip_layers else range(blocks.stop, last)
        units.append(EncoderUnit(name, blocks, later, loss=spec.loss))
    units.append(NeckUnit(loss=spec.loss))
    for index in range(decoder_layers):
        units.append(DecoderUnit(index, loss=spec.loss, token_weight=spec.token_weight))
    units.append(FinalAttentionUnit(spec.final_steps, loss=spec.loss))
    if spec.joint_steps:
        units.append(JointUnit(last, spec.joint_steps))
    return units
