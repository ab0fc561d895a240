"""The image encoder of SAM-HQ as a torch module to be traced, with the features of the high-quality mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import SamHQModel

from saqsam.export.executorch.layers import normalize
from saqsam.export.executorch.rows import to_rows
from saqsam.export.executorch.sam.decoder import Upscale, pixels_in_order
from saqsam.export.executorch.sam.encoder import TracedEncoder
from saqsam.export.windows import CACHED_BLOCK_LOGITS
from saqsam.models.sam_hq.structure import tap_block


class TracedSamHQEncoder(TracedEncoder):
    """Image encoder: `pixel_values` [1, 3, S, S] to the image embedding and the features of the high-quality mask.

    Args:
        model: The quantized model.
        max_block_logits: As for `TracedEncoder`.
    """

    def __init__(self, model: SamHQModel, max_block_logits: int | None = CACHED_BLOCK_LOGITS) -> None:
        super().__init__(model, max_block_logits)
        tapped = tap_block(model.config)
        assert tapped is not None  # the configuration was checked
        self.tapped = tapped
        self.late = _TwoUpscalings(model.mask_decoder, "encoder")
        self.early = _TwoUpscalings(model.mask_decoder, "compress_vit")

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Embed pixel values [1, 3, S, S]: [1, C, h, w] and [1, C / 8, 4h, 4w]."""
        rows = self.patches(pixel_values)
        tap = rows
        for index, block in enumerate(self.blocks):
            rows = block(rows)
            if index == self.tapped:
                tap = rows
        embedding = self.neck(rows)
        features = self.late(to_rows(embedding)) + self.early(tap)
        return embedding, pixels_in_order(features, self.neck.side)


class _TwoUpscalings(nn.Module):
    """Two transposed 2 x 2 convolutions with a normalization between them: rows [1, R, K] to [1, 16R, C / 8]."""

    def __init__(self, decoder: Any, name: str) -> None:
        super().__init__()
        where = f"mask_decoder.{name}"
        self.upscale1 = Upscale(getattr(decoder, f"{name}_conv1"), f"{where}_conv1")
        self.upscale2 = Upscale(getattr(decoder, f"{name}_conv2"), f"{where}_conv2")
        self.norm, self.activation = getattr(decoder, f"{name}_norm"), decoder.activation

    def forward(self, rows: Tensor) -> Tensor:
        """Upscale rows [1, R, K] to [1, 16R, C / 8]."""
        upscaled: Tensor = self.upscale2(self.activation(normalize(self.norm, self.upscale1(rows))))
        return upscaled
