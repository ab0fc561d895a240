"""The interface of runtimes, `encode` and `decode`, and its implementation in torch."""

from typing import Protocol

import torch
from transformers import SamModel

from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.models.registry import family_of


class Backend(Protocol):
    """A runtime of the network. Tensors may live on any one device; `encode` decides which.

    Threads may share a backend: concurrent calls do not affect each other's results. A backend whose runtime is not
    thread-safe runs them one after the other.
    """

    def encode(self, pixel_values: torch.Tensor) -> Features:
        """Encode images.

        Args:
            pixel_values: [B, 3, S, S] float32, normalized and made square by the processor.

        Returns:
            The image embeddings [B, C, h, w] after the neck, and the further feature maps of the family.
        """
        ...

    def decode(
        self, features: Features, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the low-resolution masks of P prompts in one image.

        Args:
            features: Of one image, from `encode`.
            prompts: P prompts in the pixels of the S x S input.
            multimask_output: Return three masks a prompt if true, else one.

        Returns:
            Logits [P, C, 4h, 4w] float32 and predicted IoUs [P, C] float32, with C = 3 or 1.
        """
        ...


class TorchBackend:
    """Runs a model on its own device and in its own dtype."""

    def __init__(self, model: SamModel) -> None:
        self.model = model
        self._family = family_of(model.config)

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> Features:
        """Encode images, as `Backend.encode`."""
        pixel_values = pixel_values.to(self.model.device, self.model.dtype)
        return self._family.encode(self.model, pixel_values)

    def decode(
        self, features: Features, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict masks, as `Backend.decode`."""
        prompts = prompts.to(features.embedding.device)
        logits, ious = self._family.decode(
            self.model,
            features,
            points=prompts.points,
            labels=prompts.labels,
            boxes=prompts.boxes,
            mask_inputs=prompts.mask_inputs,
            multimask_output=multimask_output,
        )
        return logits.float(), ious.float()
