"""Prompt encoder and mask decoder of SAM 2 as a torch module to be traced, up to the low-resolution masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saqsam.export.executorch.layers import normalize
from saqsam.export.executorch.sam.decoder import HeadMlp, Heads, TracedDecoder, take_mask
from saqsam.models.family import StabilityRule
from saqsam.models.registry import family_of
from saqsam.models.sam2.family import Sam2Family
from saqsam.models.two_way import SAM2_NAMES

_OBJECT_TOKEN = 0


class TracedSam2Decoder(TracedDecoder):
    """Prompt encoder and mask decoder: feature maps and prompts to masks, predicted IoUs and object scores.

    Args:
        model: The quantized model.
        single_mask: Return one mask per prompt, chosen by its stability if the model says so, instead of all.
    """

    layer_names = SAM2_NAMES

    def __init__(self, model: Any, *, single_mask: bool = False) -> None:
        super().__init__(model, single_mask=single_mask)
        self.rule = family_of(model.config).stability_rule(model.config)
        where = "mask_decoder.pred_obj_score_head"
        self.object_score = HeadMlp(model.mask_decoder.pred_obj_score_head, where)

    def make_heads(self, decoder: Any) -> nn.Module:
        """Return the module that turns tokens, image tokens and high-resolution features into masks and IoUs."""
        return _Sam2Heads(decoder, self.side)

    def forward(  # type: ignore[override]
        self,
        image_embeddings: Tensor,
        high_res_features_0: Tensor,
        high_res_features_1: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, ...]:
        """Predict the masks of P prompts.

        Args:
            image_embeddings: [1, C, h, w].
            high_res_features_0: [1, C / 8, 4h, 4w].
            high_res_features_1: [1, C / 4, 2h, 2w].
            point_coords: As for `TracedDecoder`.
            point_labels: As for `TracedDecoder`; a padding point follows every prompt, boxes included.
            mask_input: As for `TracedDecoder`.
            has_mask_input: As for `TracedDecoder`.

        Returns:
            Predicted IoUs [P, M], logits [P, M, 4h, 4w] and logits of the object scores [P, 1].
        """
        tokens, image = self.attend(image_embeddings, point_coords, point_labels, mask_input, has_mask_input)
        masks, ious = self.heads(tokens, image, high_res_features_0, high_res_features_1)
        score = self.object_score(tokens[:, _OBJECT_TOKEN : _OBJECT_TOKEN + 1]).reshape(-1, 1)
        if self.single_mask:
            masks, ious = _select(masks, ious, self.rule)
        return ious, masks, score


class _Sam2Heads(Heads):
    """Prediction heads that add high-resolution features while upscaling."""

    iou_token, mask_token = Sam2Family.iou_token, Sam2Family.mask_token

    def forward(  # type: ignore[override]
        self, tokens: Tensor, image: Tensor, finest: Tensor, fine: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict masks [P, M, 4h, 4w] and IoUs [P, M] from tokens, image tokens and feature maps."""
        rows = self.upscale1(image) + _in_cells(fine, self.side, 2)
        rows = self.upscale2(self.activation(normalize(self.norm, rows)))
        rows = rows + _in_quarters(_in_cells(finest, self.side, 4))
        return self.multiply(tokens, self.activation(rows))


def _in_cells(features: Tensor, side: int, factor: int) -> Tensor:
    """Sort a map [1, C, f * h, f * w] by cells of the embedding: [1, h * w * f * f, C], by rows within a cell."""
    channels = features.shape[1]
    grid = features.permute(0, 2, 3, 1).reshape(side, factor, side, factor * channels)
    return grid.transpose(1, 2).reshape(1, side * side * factor * factor, channels)


def _in_quarters(rows: Tensor) -> Tensor:
    """Sort the 4 x 4 pixels of each cell, [1, R * 16, C], by quarters of the cell, as two 2 x 2 upscalings do."""
    channels = rows.shape[-1]
    grid = rows.reshape(-1, 2, 2, 2, 2 * channels)  # row of the quarter, row in it, column of the quarter
    return grid.transpose(2, 3).reshape(1, -1, channels)


def _select(masks: Tensor, ious: Tensor, rule: StabilityRule | None) -> tuple[Tensor, Tensor]:
    """Select the single mask or, where a rule finds it unstable, the one of the others with the best predicted IoU."""
    if rule is None:
        return masks[:, :1], ious[:, :1]
    single = masks[:, 0].flatten(1)
    inner, outer = ((single > threshold).float().sum(1) for threshold in (rule.delta, -rule.delta))
    # An empty mask counts as stable.
    is_stable = (inner >= rule.threshold * outer).to(torch.int64)
    best = 1 + ious[:, 1:].argmax(1)
    return take_mask(masks, ious, (best * (1 - is_stable)).reshape(-1, 1))
