"""Reconstruction losses: which response of a unit is compared with the float model's, and how.

All squared errors are summed over channels and averaged over the remaining axes, as in BRECQ (arXiv 2102.05426).

- `OutputLoss` compares the unit's own output (BRECQ; QDrop, arXiv 2203.05740).
- `PromptLoss` is prompt-aware reconstruction (SAQ-SAM, arXiv 2503.06515): it compares what the two-way decoder computes
  from the output together with real prompts.
- `MaskLoss` compares the predicted masks and IoUs (not in the paper).

`LOSSES` maps the names that a recipe uses to these classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor
from transformers import SamModel

from saqsam.ptq.states import PromptTokens, State
from saqsam.recipes.specs import ReconstructionLoss

if TYPE_CHECKING:
    from saqsam.ptq.units import Unit


class Loss(ABC):
    """The response by which a unit is compared with its float counterpart, and the distance between two responses."""

    @abstractmethod
    def response(
        self, unit: Unit, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> State:
        """Return the tensors to compare.

        Args:
            unit: The unit.
            reference: Float model that runs everything after the unit.
            state: State before the unit.
            output: State after the unit, by the quantized model or, for the target, by the float model.
            prompts: Prompts of the same image.
        """

    @abstractmethod
    def __call__(self, unit: Unit, response: State, target: State) -> Tensor:
        """Return the loss, float32 [], of a response of a unit against its target of the same shapes."""


class OutputLoss(Loss):
    """Squared error of the unit's own output."""

    def response(
        self, unit: Unit, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> State:
        """Return the unit's own part of the state after it."""
        return unit.own_output(output)

    def __call__(self, unit: Unit, response: State, target: State) -> Tensor:
        """Return the weighted sum of the squared errors of all tensors of a response."""
        loss = unit.error_weight * squared_error(response[0], target[0])
        for tensor, target_tensor in zip(response[1:], target[1:], strict=True):
            loss = loss + squared_error(tensor, target_tensor)
        return loss


class PromptLoss(OutputLoss):
    """Squared error of what the float two-way decoder computes from the unit's output with real prompts."""

    def response(
        self, unit: Unit, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> State:
        """Return the unit's output as the decoder reads it; see each unit's `read_prompts` for the tensors."""
        return unit.read_prompts(reference, output, prompts)


class MaskLoss(Loss):
    """Divergence of the masks and predicted IoUs that the float rest of the model computes from the unit's output."""

    def response(
        self, unit: Unit, reference: SamModel, state: State, output: State, prompts: PromptTokens
    ) -> State:
        """Return mask logits [P, M, 4 h, 4 w] and predicted IoUs [P, M]."""
        return unit.decode_masks(reference, state, output, prompts)

    def __call__(self, unit: Unit, response: State, target: State) -> Tensor:
        """Return `mask_error` of a response."""
        return mask_error(response, target)


LOSSES: dict[ReconstructionLoss, type[Loss]] = {"output": OutputLoss, "prompt": PromptLoss, "mask": MaskLoss}
"""Loss class of each value of the recipe field `reconstruction.loss`."""


def squared_error(values: Tensor, target: Tensor, channel_axis: int = -1) -> Tensor:
    """Return the squared error, summed over channels and averaged over the remaining axes, float32 []."""
    return (values - target).square().sum(channel_axis).mean()


def mask_error(response: State, target: State) -> Tensor:
    """Return the distance, float32 [], of masks and predicted IoUs from their targets; 0 where they are equal.

    The sum of three terms, each a mean:

    - The Kullback-Leibler divergence of each pixel's probability. A logit matters where the mask could go either way,
      not far inside or outside of it.
    - One minus the Dice coefficient of each mask's probabilities (arXiv 1606.04797), which weighs small objects as
      much as large ones.
    - The squared error of the predicted IoUs.

    Args:
        response: Mask logits [P, M, 4 h, 4 w] and predicted IoUs [P, M].
        target: Those of the float model, same shapes.
    """
    target_probability = target[0].sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(response[0], target_probability)
    divergence = cross_entropy - F.binary_cross_entropy_with_logits(target[0], target_probability)
    probability = response[0].sigmoid()
    intersection = (probability * target_probability).sum((-2, -1))
    total = (probability.square() + target_probability.square()).sum((-2, -1))
    dice = 1 - (2 * intersection / total.clamp_min(1e-6)).mean()
    return divergence + dice + F.mse_loss(response[1], target[1])
