"""Prompt encoder and mask decoder of SAM v1 as a torch module to be traced, up to the low-resolution masks.

The number of prompts P is dynamic in the trace, the number of points N is fixed. Prompts are padded with points of the
label `EMPTY_LABEL`, which attention masks out, so that masks do not depend on the padding. (The label -1 is different:
a padding point that SAM was trained with, at the end of a list of points without a box.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saqsam.export.executorch.layers import RowLinear, normalize, traced_linear
from saqsam.export.executorch.sam.two_way_transformer import TwoWayTransformer
from saqsam.models.registry import family_of
from saqsam.models.sam.family import SamFamily
from saqsam.models.two_way import SAM_NAMES
from saqsam.models.two_way_family import TwoWayFamily

EMPTY_LABEL = -2
"""Label of padding points that attention masks out."""
_MASKED_LOGIT = 1e9
"""Subtracted from the logits of masked keys, so that their probabilities are 0."""
_MAX_AMBIGUOUS_POINTS = 2.5
"""Number of points, label -1 included, above which `single_mask` returns the mask for unambiguous prompts."""


class TracedDecoder(nn.Module):
    """Prompt encoder and mask decoder: an image embedding and prompts to masks and predicted IoUs.

    Args:
        model: The quantized model.
        single_mask: Return one mask per prompt, chosen as in the official export, instead of all.

    Attributes:
        layer_names: Names of the decoder's layers.
        output_tokens: Buffer, float32 [T', C]: tokens that precede those of the points.
    """

    output_tokens: Tensor
    layer_names = SAM_NAMES

    def __init__(self, model: Any, *, single_mask: bool = False) -> None:
        super().__init__()
        family = family_of(model.config)
        assert isinstance(family, TwoWayFamily)
        spec = family.input_spec(model.config)
        self.side, self.single_mask = spec.grid, single_mask
        decoder = model.mask_decoder
        self.points = _Points(model.prompt_encoder, spec.image_size)
        self.mask_embed = _MaskEmbedding(model.prompt_encoder, self.side)
        self.positions = _GridPositions(model.prompt_encoder, self.side)
        self.register_buffer("output_tokens", family.output_tokens(model).detach().clone())
        self.transformer = TwoWayTransformer(decoder.transformer, self.layer_names)
        self.heads = self.make_heads(decoder)

    def make_heads(self, decoder: Any) -> nn.Module:
        """Return the module that turns tokens and image tokens into masks and predicted IoUs."""
        return Heads(decoder, self.side)

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, ...]:
        """Predict the masks of P prompts.

        Args:
            image_embeddings: [1, C, h, w].
            point_coords: [P, N, 2] as x, y in pixels of the S x S input.
            point_labels: [P, N] float32: 1 foreground, 0 background, 2 and 3 corners of a box, -1 padding,
                `EMPTY_LABEL` masked out.
            mask_input: Logits [1, 1, 4h, 4w], one mask for all prompts.
            has_mask_input: [1], 0 or 1.

        Returns:
            Predicted IoUs [P, M] and logits [P, M, 4h, 4w].
        """
        tokens, image = self.attend(image_embeddings, point_coords, point_labels, mask_input, has_mask_input)
        masks, ious = self.heads(tokens, image)
        return self.choose(masks, ious, point_labels)

    def choose(self, masks: Tensor, ious: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return predicted IoUs [P, M] and masks [P, M, 4h, 4w]: one of each prompt if `single_mask`, else all."""
        if self.single_mask:
            masks, ious = _select(masks, ious, point_labels)
        return ious, masks

    def attend(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return tokens [P, T, C] and image tokens [P, h * w, C] after the two-way transformer.

        The arguments are those of `forward`.
        """
        points = self.points(point_coords, point_labels)
        output, count = self.output_tokens, points.shape[0]
        tokens = torch.cat(
            [output.reshape(1, *output.shape).expand(count, -1, -1), points], dim=1
        )  # [P, T, C]
        # 0 for keys that attention sees, and -_MASKED_LOGIT for the label -2.
        key_mask = (point_labels + 1.0).clamp(max=0.0) * _MASKED_LOGIT
        key_mask = F.pad(key_mask, (len(output), 0)).reshape(count, 1, 1, -1)
        image = image_embeddings.reshape(1, image_embeddings.shape[1], -1).transpose(1, 2)
        image = image + self.mask_embed(mask_input, has_mask_input)  # [1, h * w, C]
        found: tuple[Tensor, Tensor] = self.transformer(tokens, image, self.positions(), key_mask)
        return found


class _Points(nn.Module):
    """Embedding of points by coordinates and labels: [P, N, C].

    Attributes:
        labels: Buffer, float32 [6, C]: empty, padding, background, foreground, first and second corner.
        frequencies: Buffer, float32 [2, C / 2].
    """

    labels: Tensor
    frequencies: Tensor

    def __init__(self, encoder: Any, size: int) -> None:
        super().__init__()
        self.size = size
        embed = encoder.point_embed
        points = [embed.weight] if isinstance(embed, nn.Embedding) else [kind.weight for kind in embed]
        kinds = [encoder.not_a_point_embed.weight, *points]
        self.register_buffer("labels", torch.cat([torch.zeros_like(kinds[0]), *kinds]).detach())
        self.register_buffer("frequencies", encoder.shared_embedding.positional_embedding.detach().clone())

    def forward(self, coords: Tensor, labels: Tensor) -> Tensor:
        count, points, channels = coords.shape[0], coords.shape[1], self.labels.shape[1]
        # 2 * (x + 0.5) / S - 1
        places = coords * (2 / self.size) + (1 / self.size - 1)
        wave = _waves(places.reshape(1, -1, 2), self.frequencies).reshape(count, points, channels)
        is_point = (labels + 1.0).clamp(0.0, 1.0)  # labels are whole numbers
        index = (labels - EMPTY_LABEL).reshape(-1).to(torch.int64)
        kinds = F.embedding(index, self.labels).reshape(count, points, channels)
        return wave * is_point.reshape(count, points, 1) + kinds


def _waves(places: Tensor, frequencies: Tensor) -> Tensor:
    """Return the positional embedding [1, R, C] of places [1, R, 2] in [-1, 1]."""
    angles = torch.bmm(places, frequencies.reshape(1, *frequencies.shape)) * (2 * math.pi)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class _GridPositions(nn.Module):
    """Positional embedding of the image tokens [1, h * w, C], computed in each call to keep the file small.

    Attributes:
        places: Buffer, float32 [1, h * w, 2].
        frequencies: Buffer, float32 [2, C / 2].
    """

    places: Tensor
    frequencies: Tensor

    def __init__(self, encoder: Any, side: int) -> None:
        super().__init__()
        middles = (torch.arange(side) + 0.5) * 2 / side - 1
        y, x = torch.meshgrid(middles, middles, indexing="ij")
        self.register_buffer("places", torch.stack([x, y], dim=-1).reshape(1, -1, 2).contiguous())
        self.register_buffer("frequencies", encoder.shared_embedding.positional_embedding.detach().clone())

    def forward(self) -> Tensor:
        return _waves(self.places, self.frequencies)


class _MaskEmbedding(nn.Module):
    """Embedding of a mask [1, 1, 4h, 4w] as rows [1, h * w, C], or the "no mask" embedding."""

    def __init__(self, encoder: Any, side: int) -> None:
        super().__init__()
        embed = encoder.mask_embed
        self.rows, self.activation = side * side, embed.activation
        self.conv1, self.conv2, self.conv3 = embed.conv1, embed.conv2, embed.conv3
        self.norm1, self.norm2 = embed.layer_norm1, embed.layer_norm2
        self.none = encoder.no_mask_embed.weight

    def forward(self, mask_input: Tensor, has_mask_input: Tensor) -> Tensor:
        image = mask_input
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            hidden = normalize(norm, conv(image).permute(0, 2, 3, 1))
            image = self.activation(hidden).permute(0, 3, 1, 2)
        rows = self.conv3(image).permute(0, 2, 3, 1).reshape(1, self.rows, -1)
        # where, not a product with 0: an unused mask input may hold NaN.
        return torch.where(has_mask_input.reshape(1, 1, 1) > 0.5, rows, self.none.reshape(1, 1, -1))


class Heads(nn.Module):
    """Prediction heads: masks [P, M, 4h, 4w] and IoUs [P, M].

    Args:
        decoder: The mask decoder.
        side: Side of the embedding's grid.

    Attributes:
        iou_token: Index of the token of the predicted IoU.
        mask_token: Index of the single mask's token.
    """

    iou_token, mask_token = SamFamily.iou_token, SamFamily.mask_token

    def __init__(self, decoder: Any, side: int) -> None:
        super().__init__()
        self.side, self.count = side, len(decoder.output_hypernetworks_mlps)
        self.upscale1 = Upscale(decoder.upscale_conv1, "mask_decoder.upscale_conv1")
        self.upscale2 = Upscale(decoder.upscale_conv2, "mask_decoder.upscale_conv2")
        self.norm, self.activation = decoder.upscale_layer_norm, decoder.activation
        self.hypernetworks = nn.ModuleList(
            HeadMlp(mlp, f"mask_decoder.output_hypernetworks_mlps.{index}")
            for index, mlp in enumerate(decoder.output_hypernetworks_mlps)
        )
        self.iou_head = HeadMlp(decoder.iou_prediction_head, "mask_decoder.iou_prediction_head")

    def forward(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Predict masks and IoUs from tokens [P, T, C] and image tokens [P, h * w, C]."""
        return self.multiply(tokens, self.upscale(image))

    def upscale(self, image: Tensor) -> Tensor:
        """Upscale image tokens [P, h * w, C] to [P, 16 * h * w, C / 8]."""
        fine = self.activation(normalize(self.norm, self.upscale1(image)))
        upscaled: Tensor = self.activation(self.upscale2(fine))
        return upscaled

    def multiply(self, tokens: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply upscaled rows [P, 16 * h * w, C / 8] by the hypernetworks' outputs; predict the IoUs."""
        side, prompts = self.side, tokens.shape[0]
        weights = [
            mlp(self.token(tokens, self.mask_token + index)) for index, mlp in enumerate(self.hypernetworks)
        ]  # each [P, 1, C / 8]
        masks = torch.bmm(torch.cat(weights, dim=1), fine.transpose(1, 2))
        # Sort the 2 x 2 pixels of the 2 x 2 pixels of each token by rows and columns.
        masks = masks.reshape(prompts * self.count * side, side, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5)
        masks = masks.reshape(prompts, self.count, 4 * side, 4 * side)
        return masks, self.iou_head(self.token(tokens, self.iou_token)).reshape(prompts, self.count)

    @staticmethod
    def token(tokens: Tensor, index: int) -> Tensor:
        """Return one token of each prompt, [P, 1, C]."""
        return tokens[:, index : index + 1]


class Upscale(nn.Module):
    """Transposed 2 x 2 convolution with stride 2 of rows [P, R, K]: rows [P, 4R, C], in groups of 4 per input."""

    def __init__(self, layer: Any, where: str) -> None:
        super().__init__()
        inputs, self.channels = layer.weight.shape[:2]
        bias = layer.bias.detach().repeat(4)
        self.linear = RowLinear(layer, where, lambda w: w.permute(2, 3, 1, 0).reshape(-1, inputs), bias)

    def forward(self, rows: Tensor) -> Tensor:
        """Upscale rows [P, R, K] to [P, 4R, C]."""
        pixels: Tensor = self.linear(rows)
        return pixels.reshape(pixels.shape[0], 4 * pixels.shape[1], self.channels)


def pixels_in_order(rows: Tensor, side: int) -> Tensor:
    """Sort twice upscaled rows [P, 16 * h * w, C] into a map [P, C, 4h, 4w]."""
    count, _, channels = rows.shape
    # By cell, row of the 2 x 2 quarter, its column, row in it, column in it.
    cells = rows.reshape(-1, 2, 2, 2, 2 * channels).transpose(2, 3)
    grid = cells.reshape(count * side, side, 4, 4 * channels).transpose(1, 2)
    return grid.reshape(count, 4 * side, 4 * side, channels).permute(0, 3, 1, 2)


class HeadMlp(nn.Module):
    """MLP of a head, on one token of each prompt."""

    def __init__(self, mlp: Any, where: str) -> None:
        super().__init__()
        self.inner = nn.ModuleList(
            traced_linear(layer, f"{where}.{name}")
            for name, layer in [
                ("proj_in", mlp.proj_in),
                *((f"layers.{i}", x) for i, x in enumerate(mlp.layers)),
            ]
        )
        self.last = traced_linear(mlp.proj_out, f"{where}.proj_out")
        self.activation, self.has_sigmoid = mlp.activation, mlp.sigmoid_output

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows [P, 1, C] to [P, 1, K]."""
        for layer in self.inner:
            rows = self.activation(layer(rows))
        rows = self.last(rows)
        return rows.sigmoid() if self.has_sigmoid else rows


def _select(masks: Tensor, ious: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Select one mask per prompt: the first for several points, else the one of the others with the best IoU."""
    points = (labels - EMPTY_LABEL).clamp(0.0, 1.0).sum(1, keepdim=True)  # without masked points
    first = torch.tensor([[1000.0] + [0.0] * (ious.shape[1] - 1)])
    best = (ious + (points - _MAX_AMBIGUOUS_POINTS) * first).argmax(1, keepdim=True)
    return take_mask(masks, ious, best)


def take_mask(masks: Tensor, ious: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return one of the masks [P, M, 4h, 4w] and IoUs [P, M] of each prompt, by its index [P, 1]."""
    by_pixel = index.reshape(-1, 1, 1, 1).expand(-1, 1, *masks.shape[2:])
    return masks.gather(1, by_pixel), ious.gather(1, index)
