"""The prompt encoder and mask decoder of a SAM as a torch module to be traced, up to the masks of low resolution.

The number of prompts P is free in the trace. The number of points N is not: lists of points are filled up with places
of the label `EMPTY`, which attention does not see, so that what a prompt gives does not depend on how many there are.
(The label -1 is another thing: a point that SAM was trained to see where a list of points ends without a box.)

What all prompts share is computed once: while keys come from the image alone, their projections are those of one image,
and the prompts' queries lie beside each other in one product.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamModel

from saqsam.export.executorch.layers import RowProduct, check_products, linear_of, normalize

EMPTY = -2
"""Label of a place without a point."""
_HIDDEN = 1e9
"""What is taken from the logits of a key that is not there; exp() of it is 0 beside any other."""
_FEW_POINTS = 2.5
"""With more points than this, `single_mask` takes the mask for unambiguous prompts."""


class TracedDecoder(nn.Module):
    """From an embedding and prompts to masks and predicted IoUs.

    Args:
        model: The model.
        single_mask: Return one mask a prompt, chosen as the official export does, instead of four.
    """

    def __init__(self, model: SamModel, *, single_mask: bool = False) -> None:
        super().__init__()
        size = model.config.vision_config.image_size
        self.side, self.single_mask = size // model.config.vision_config.patch_size, single_mask
        decoder = model.mask_decoder
        self.points = _Points(model.prompt_encoder, size)
        self.mask_embed = _MaskEmbedding(model.prompt_encoder, self.side)
        self.positions = _GridPositions(model.prompt_encoder, self.side)
        self.iou_token, self.mask_tokens = decoder.iou_token.weight, decoder.mask_tokens.weight
        self.transformer = _Transformer(decoder.transformer)
        self.heads = _Heads(decoder, self.side)

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Segment.

        Args:
            image_embeddings: [1, C, h, w].
            point_coords: [P, N, 2], x, y in pixels of the S x S input.
            point_labels: [P, N] float32: 1 on the object, 0 beside it, 2 and 3 corners of a box, -1 padding, -2 empty.
            mask_input: [1, 1, 4 h, 4 w], one for all prompts.
            has_mask_input: [1], 0 or 1.

        Returns:
            Predicted IoUs [P, M] and logits [P, M, 4 h, 4 w].
        """
        points = self.points(point_coords, point_labels)
        output = torch.cat([self.iou_token, self.mask_tokens])
        count = points.shape[0]
        tokens = torch.cat(
            [output.reshape(1, *output.shape).expand(count, -1, -1), points], dim=1
        )  # [P, T, C]
        # 0 where a key is there; a label of -2 makes it -_HIDDEN.
        hidden = (point_labels + 1.0).clamp(max=0.0) * _HIDDEN
        hidden = F.pad(hidden, (len(output), 0)).reshape(count, 1, 1, -1)
        image = image_embeddings.reshape(1, image_embeddings.shape[1], -1).transpose(1, 2)
        image = image + self.mask_embed(mask_input, has_mask_input)  # [1, h * w, C]
        tokens, image = self.transformer(tokens, image, self.positions(), hidden)
        masks, ious = self.heads(tokens, image)
        if self.single_mask:
            masks, ious = _select(masks, ious, point_labels)
        return ious, masks


class _Points(nn.Module):
    """Embeddings [P, N, C] of points by their labels.

    Attributes:
        labels: Buffer, float32 [6, C]: empty, padding, beside, on, first and second corner.
        frequencies: Buffer, float32 [2, C / 2].
    """

    labels: Tensor
    frequencies: Tensor

    def __init__(self, encoder: Any, size: int) -> None:
        super().__init__()
        self.size = size
        kinds = [encoder.not_a_point_embed.weight, *(embed.weight for embed in encoder.point_embed)]
        self.register_buffer("labels", torch.cat([torch.zeros_like(kinds[0]), *kinds]).detach())
        self.register_buffer("frequencies", encoder.shared_embedding.positional_embedding.detach().clone())

    def forward(self, coords: Tensor, labels: Tensor) -> Tensor:
        count, points, channels = coords.shape[0], coords.shape[1], self.labels.shape[1]
        # 2 * (x + 0.5) / S - 1
        places = coords * (2 / self.size) + (1 / self.size - 1)
        wave = _waves(places.reshape(1, -1, 2), self.frequencies).reshape(count, points, channels)
        is_point = (labels + 1.0).clamp(0.0, 1.0)  # labels are whole numbers
        index = (labels - EMPTY).reshape(-1).to(torch.int64)
        kinds = F.embedding(index, self.labels).reshape(count, points, channels)
        return wave * is_point.reshape(count, points, 1) + kinds


def _waves(places: Tensor, frequencies: Tensor) -> Tensor:
    """Positional embedding [1, R, C] of places [1, R, 2] in [-1, 1]."""
    angles = torch.bmm(places, frequencies.reshape(1, *frequencies.shape)) * (2 * math.pi)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class _GridPositions(nn.Module):
    """Positions of the image tokens, [1, h * w, C]; stored are places and frequencies.

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
    """Rows [1, h * w, C] of a mask [1, 1, 4 h, 4 w], or of there being none."""

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
        # A mask that is not meant may hold anything, so it is not multiplied by 0.
        return torch.where(has_mask_input.reshape(1, 1, 1) > 0.5, rows, self.none.reshape(1, 1, -1))


class _Transformer(nn.Module):
    """The two-way transformer on rows: tokens [P, T, C], image tokens [1, h * w, C] and then [P, h * w, C]."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        where = "mask_decoder.transformer"
        self.layers = nn.ModuleList(
            _Layer(layer, f"{where}.layers.{index}") for index, layer in enumerate(transformer.layers)
        )
        name = "final_attn_token_to_image"
        self.final = _Attention(transformer.final_attn_token_to_image, f"{where}.{name}")
        self.norm = transformer.layer_norm_final_attn

    def forward(
        self, tokens: Tensor, image: Tensor, positions: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        points = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, points, positions, hidden)
        found = self.final(tokens + points, image + positions, image)
        return normalize(self.norm, tokens + found), image


class _Layer(nn.Module):
    """One layer: self-attention, to the image, MLP, and back to the tokens."""

    def __init__(self, layer: Any, where: str) -> None:
        super().__init__()
        self.is_first = layer.skip_first_layer_pe
        self.self_attn = _Attention(layer.self_attn, f"{where}.self_attn")
        self.to_image = _Attention(layer.cross_attn_token_to_image, f"{where}.cross_attn_token_to_image")
        self.to_tokens = _Attention(layer.cross_attn_image_to_token, f"{where}.cross_attn_image_to_token")
        self.lin1 = linear_of(layer.mlp.lin1, f"{where}.mlp.lin1")
        self.lin2 = linear_of(layer.mlp.lin2, f"{where}.mlp.lin2")
        self.activation = layer.mlp.act
        self.norms = nn.ModuleList(getattr(layer, f"layer_norm{number}") for number in (1, 2, 3, 4))

    def forward(
        self, tokens: Tensor, image: Tensor, points: Tensor, positions: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.is_first:
            tokens = self.self_attn(tokens, tokens, tokens, hidden)
        else:
            query = tokens + points
            tokens = tokens + self.self_attn(query, query, tokens, hidden)
        tokens = normalize(self.norms[0], tokens)
        placed = image + positions
        found = self.to_image(tokens + points, placed, image)
        tokens = normalize(self.norms[1], tokens + found)
        tokens = normalize(self.norms[2], tokens + self.lin2(self.activation(self.lin1(tokens))))
        found = self.to_tokens(placed, tokens + points, tokens, hidden)
        return tokens, normalize(self.norms[3], image + found)


class _Attention(nn.Module):
    """Attention of queries [B, Q, C] to keys and values [B', K, C], one of B and B' being 1 or both P: [P, Q, C]."""

    def __init__(self, attention: Any, where: str) -> None:
        super().__init__()
        check_products(attention, where, "decoder")
        self.heads, self.scaling = attention.num_attention_heads, float(attention.scaling)
        self.q_proj = linear_of(attention.q_proj, f"{where}.q_proj")
        self.k_proj = linear_of(attention.k_proj, f"{where}.k_proj")
        self.v_proj = linear_of(attention.v_proj, f"{where}.v_proj")
        self.out_proj = linear_of(attention.out_proj, f"{where}.out_proj")

    def forward(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None = None) -> Tensor:
        q, k, v = self.q_proj(query) * self.scaling, self.k_proj(key), self.v_proj(value)
        shares_keys = query.shape[0] != key.shape[0] and key.shape[0] == 1
        shares_queries = query.shape[0] != key.shape[0] and not shares_keys
        if shares_keys:
            mean = self._of_shared_keys(q, k, v)
        else:
            logits = self._logits_of_shared_query(q, k) if shares_queries else self._logits(q, k)
            if hidden is not None:
                logits = logits + hidden
            prompts, heads, queries, keys = logits.shape
            weights = logits.softmax(-1).reshape(prompts * heads, queries, keys)
            mean = torch.bmm(weights, self._apart(v).reshape(prompts * heads, keys, -1))
            mean = mean.reshape(prompts, heads, queries, -1).transpose(1, 2)
        found: Tensor = self.out_proj(mean.reshape(mean.shape[0], mean.shape[1], -1))
        return found

    def _apart(self, rows: Tensor) -> Tensor:
        """[B, R, N * D] to [B, N, R, D]."""
        return rows.reshape(rows.shape[0], rows.shape[1], self.heads, -1).transpose(1, 2)

    def _logits(self, q: Tensor, k: Tensor) -> Tensor:
        """[P, N, Q, K] of queries and keys that are both P."""
        prompts, queries, keys = q.shape[0], q.shape[1], k.shape[1]
        query = self._apart(q).reshape(prompts * self.heads, queries, -1)
        key = self._apart(k).reshape(prompts * self.heads, keys, -1)
        return torch.bmm(query, key.transpose(1, 2)).reshape(prompts, self.heads, queries, keys)

    def _logits_of_shared_query(self, q: Tensor, k: Tensor) -> Tensor:
        """[P, N, Q, K] of queries [1, Q, N * D]: the keys of all prompts in one product."""
        prompts, queries, keys = k.shape[0], q.shape[1], k.shape[1]
        query = self._apart(q).reshape(self.heads, queries, -1)
        key = self._apart(k).permute(1, 3, 0, 2).reshape(self.heads, -1, prompts * keys)
        logits = torch.bmm(query, key).reshape(self.heads, queries, prompts, keys)
        return logits.permute(2, 0, 1, 3)

    def _of_shared_keys(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[P, Q, N, D] of keys and values [1, K, N * D]: the queries of all prompts in one product."""
        prompts, queries, keys = q.shape[0], q.shape[1], k.shape[1]
        query = self._apart(q).transpose(0, 1).reshape(self.heads, prompts * queries, -1)
        key, value = (self._apart(rows).reshape(self.heads, keys, -1) for rows in (k, v))
        mean = torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(-1), value)
        return mean.reshape(self.heads, prompts, queries, -1).permute(1, 2, 0, 3)


class _Heads(nn.Module):
    """Masks [P, M, 4 h, 4 w] and predicted IoUs [P, M]."""

    def __init__(self, decoder: Any, side: int) -> None:
        super().__init__()
        self.side, self.count = side, decoder.num_mask_tokens
        self.upscale1 = _Upscale(decoder.upscale_conv1, "mask_decoder.upscale_conv1")
        self.upscale2 = _Upscale(decoder.upscale_conv2, "mask_decoder.upscale_conv2")
        self.norm, self.activation = decoder.upscale_layer_norm, decoder.activation
        self.hypernetworks = nn.ModuleList(
            _Mlp(mlp, f"mask_decoder.output_hypernetworks_mlps.{index}")
            for index, mlp in enumerate(decoder.output_hypernetworks_mlps)
        )
        self.iou_head = _Mlp(decoder.iou_prediction_head, "mask_decoder.iou_prediction_head")

    def forward(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        side, prompts = self.side, tokens.shape[0]
        fine = self.activation(normalize(self.norm, self.upscale1(image)))
        fine = self.activation(self.upscale2(fine))  # [P, 16 * h * w, C / 8]
        weights = [
            mlp(tokens[:, 1 + index : 2 + index]) for index, mlp in enumerate(self.hypernetworks)
        ]  # each [P, 1, C / 8]
        masks = torch.bmm(torch.cat(weights, dim=1), fine.transpose(1, 2))
        # Each place with its 2 x 2 pixels with their 2 x 2 pixels, into the order of pixels.
        masks = masks.reshape(prompts * self.count * side, side, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5)
        masks = masks.reshape(prompts, self.count, 4 * side, 4 * side)
        return masks, self.iou_head(tokens[:, :1]).reshape(prompts, self.count)


class _Upscale(nn.Module):
    """A transposed convolution, 2 x 2 with stride 2, of rows [P, R, K]: rows [P, 4 R, C], one input's together."""

    def __init__(self, layer: Any, where: str) -> None:
        super().__init__()
        inputs, self.channels = layer.weight.shape[:2]
        bias = layer.bias.detach().repeat(4)
        self.product = RowProduct(layer, where, lambda w: w.permute(2, 3, 1, 0).reshape(-1, inputs), bias)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.product(rows)
        return found.reshape(found.shape[0], 4 * found.shape[1], self.channels)


class _Mlp(nn.Module):
    """A small network on rows [P, 1, C]."""

    def __init__(self, mlp: Any, where: str) -> None:
        super().__init__()
        self.inner = nn.ModuleList(
            linear_of(layer, f"{where}.{name}")
            for name, layer in [
                ("proj_in", mlp.proj_in),
                *((f"layers.{i}", x) for i, x in enumerate(mlp.layers)),
            ]
        )
        self.last = linear_of(mlp.proj_out, f"{where}.proj_out")
        self.activation, self.is_share = mlp.activation, mlp.sigmoid_output

    def forward(self, rows: Tensor) -> Tensor:
        for layer in self.inner:
            rows = self.activation(layer(rows))
        rows = self.last(rows)
        return rows.sigmoid() if self.is_share else rows


def _select(masks: Tensor, ious: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One mask a prompt: the first if there are several points, else that of the best predicted IoU of the others."""
    points = (labels - EMPTY).clamp(0.0, 1.0).sum(1, keepdim=True)  # empty places do not count
    first = torch.tensor([[1000.0] + [0.0] * (ious.shape[1] - 1)])
    best = (ious + (points - _FEW_POINTS) * first).argmax(1, keepdim=True)
    high, wide = masks.shape[2:]
    index = best.reshape(-1, 1, 1, 1).expand(-1, 1, high, wide)
    return masks.gather(1, index), ious.gather(1, best)
