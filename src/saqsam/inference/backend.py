"""The interface of runtimes, `encode` and `decode`, and its implementation in torch."""

from typing import Protocol, cast

import torch
from transformers import SamModel

from saqsam.inference.prompts import Prompts


class Backend(Protocol):
    """A runtime of the network. Tensors may live on any one device; `encode` decides which.

    Threads may share a backend: concurrent calls do not affect each other's results. A backend whose runtime is not
    thread-safe runs them one after the other.
    """

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed an image.

        Args:
            pixel_values: [1, 3, S, S] float32, normalized and padded by the processor.

        Returns:
            [1, C, h, w], the image embedding after the neck.
        """
        ...

    def decode(
        self, embedding: torch.Tensor, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the low-resolution masks of P prompts in one image.

        Args:
            embedding: [1, C, h, w] from `encode`.
            prompts: P prompts in the pixels of the S x S input.
            multimask_output: Return three masks a prompt if true, else one.

        Returns:
            Logits [P, C, 4h, 4w] float32 and predicted IoUs [P, C] float32, with C = 3 or 1.
        """
        ...


class TorchBackend:
    """Runs a `SamModel` on its own device and in its own dtype."""

    def __init__(self, model: SamModel) -> None:
        self.model = model

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed an image, as `Backend.encode`."""
        embedding = self.model.get_image_embeddings(pixel_values.to(self.model.device, self.model.dtype))
        return cast(torch.Tensor, embedding)

    def decode(
        self, embedding: torch.Tensor, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict masks, as `Backend.decode`."""
        # The prompts form the batch, because the prompt encoder takes one mask input per batch entry. The decoder
        # repeats the embedding for each prompt anyway, so this costs nothing.
        count = len(prompts)
        prompts = prompts.to(embedding.device)
        masks = prompts.mask_inputs
        sparse, dense = self.model.prompt_encoder(
            input_points=None if prompts.points is None else prompts.points[:, None],  # [P, 1, N, 2]
            input_labels=None if prompts.labels is None else prompts.labels[:, None],  # [P, 1, N]
            input_boxes=None if prompts.boxes is None else prompts.boxes[:, None],  # [P, 1, 4]
            input_masks=None if masks is None else masks[:, None].to(embedding.dtype),  # [P, 1, 4h, 4w]
        )
        positions = self.model.get_image_wide_positional_embeddings()
        logits, ious = self.model.mask_decoder(
            image_embeddings=embedding.expand(count, -1, -1, -1),
            image_positional_embeddings=positions.expand(count, -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
        )
        return logits[:, 0].float(), ious[:, 0].float()
