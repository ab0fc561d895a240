"""Tensors that units of reconstruction exchange: the state between two units, and an image's prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from saqsam.models.family import Features, ModelFamily, flatten_image

State = tuple[Tensor, ...]
"""Activations of one image between two units, float32.

- Within the encoder: hidden states [1, h, w, C], and outputs of earlier blocks that the neck reads.
- After the neck: image tokens [1, 1, h * w, C], and the extra features as image tokens.
- After a decoder layer: tokens [P, 1, T, C], image tokens [P, 1, h * w, C], and the extra features.

SAM v1 has no earlier outputs and no extra features.
"""


def image_state(features: Features) -> State:
    """Return the state after the neck."""
    return tuple(flatten_image(part) for part in features.maps)


@dataclass(frozen=True)
class PromptTokens:
    """Embedded prompts of one image, as the decoder takes them.

    Attributes:
        tokens: IoU token, mask tokens and prompt tokens, float32 [P, 1, T, C].
        dense: Image tokens of the dense prompt embedding, float32 [1, 1, h * w, C]; added to the image tokens.
        positions: Positional embedding of the image tokens, float32 [1, 1, h * w, C].
    """

    tokens: Tensor
    dense: Tensor
    positions: Tensor

    @classmethod
    def embed(cls, family: ModelFamily, model: Any, boxes: Tensor) -> PromptTokens:
        """Embed box prompts [P, 4] xyxy, in pixels of the S x S input."""
        tokens, dense = family.embed_boxes(model, boxes)
        return cls(tokens, flatten_image(dense), family.image_positions(model))

    def __getitem__(self, indices: Tensor) -> PromptTokens:
        """Select prompts by index, int64 [p], on any device."""
        return PromptTokens(self.tokens[indices.to(self.tokens.device)], self.dense, self.positions)
