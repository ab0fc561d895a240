"""Prompt encoder and mask decoder of SAM-HQ as a torch module to be traced, up to the low-resolution masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saqsam.export.executorch.layers import FloatConvolution, normalize
from saqsam.export.executorch.sam.decoder import HeadMlp, Heads, TracedDecoder, pixels_in_order
from saqsam.export.packed import ExportError, slot_module


class TracedSamHQDecoder(TracedDecoder):
    """Prompt encoder and mask decoder: feature maps and prompts to masks and predicted IoUs.

    Args:
        model: The quantized model.
        single_mask: As for `TracedDecoder`.
    """

    def make_heads(self, decoder: Any) -> nn.Module:
        """Return the module that turns tokens, image tokens and features into masks and predicted IoUs."""
        return _SamHQHeads(decoder, self.side)

    def forward(  # type: ignore[override]
        self,
        image_embeddings: Tensor,
        hq_features: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, ...]:
        """Predict the masks of P prompts.

        Args:
            image_embeddings: [1, C, h, w].
            hq_features: [1, C / 8, 4h, 4w].
            point_coords: As for `TracedDecoder`.
            point_labels: As for `TracedDecoder`.
            mask_input: As for `TracedDecoder`.
            has_mask_input: As for `TracedDecoder`.

        Returns:
            Predicted IoUs [P, M] and logits [P, M, 4h, 4w].
        """
        tokens, image = self.attend(image_embeddings, point_coords, point_labels, mask_input, has_mask_input)
        masks, ious = self.heads(tokens, image, hq_features)
        return self.choose(masks, ious, point_labels)


class _SamHQHeads(Heads):
    """Prediction heads that add the high-quality mask to every other mask."""

    def __init__(self, decoder: Any, side: int) -> None:
        super().__init__(decoder, side)
        self.conv1, self.conv2 = (_float_convolution(decoder, name) for name in ("mask_conv1", "mask_conv2"))
        self.mask_norm = decoder.mask_norm
        self.hq_mlp = HeadMlp(decoder.hq_mask_mlp, "mask_decoder.hq_mask_mlp")

    def forward(  # type: ignore[override]
        self, tokens: Tensor, image: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict masks [P, M, 4h, 4w] and IoUs [P, M] from tokens, image tokens and features [1, C / 8, 4h, 4w]."""
        fine = self.upscale(image)
        masks, ious = self.multiply(tokens, fine)
        hidden = self.conv1(pixels_in_order(fine, self.side)).permute(0, 2, 3, 1)
        hidden = self.activation(normalize(self.mask_norm, hidden)).permute(0, 3, 1, 2)
        refined = (self.conv2(hidden) + features).flatten(2)  # [P, C / 8, 16 * h * w]
        weight = self.hq_mlp(self.token(tokens, self.mask_token + self.count))
        return masks + torch.bmm(weight, refined).reshape(-1, 1, *masks.shape[2:]), ious


def _float_convolution(decoder: Any, name: str) -> FloatConvolution:
    """Return a convolution of upscaled maps: its inputs as rows for an integer product would take 75 MB per prompt."""
    layer = getattr(decoder, name)
    if not isinstance(slot_module(layer, "input_quantizer"), nn.Identity):
        raise ExportError(
            f"mask_decoder.{name}: XNNPACK has no integer kernel for 3 x 3 convolutions of rows this long; quantize "
            "with --set extra.upscaling.output=none"
        )
    return FloatConvolution(layer)
