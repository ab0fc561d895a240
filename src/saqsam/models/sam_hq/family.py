"""SAM-HQ (arXiv 2306.01567): the `ModelFamily` of transformers' `SamHQModel`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SamHQConfig, SamHQModel
from transformers.models.sam_hq.modeling_sam_hq import SamHQPositionalEmbedding

from saqsam.models.family import Features, ModelFamily, State, unflatten_image
from saqsam.models.sam.attention import QuantAttention
from saqsam.models.sam.family import SamFamily
from saqsam.models.sam_hq import mask_head
from saqsam.models.sam_hq.attention import to_quant_attention
from saqsam.models.sam_hq.format import SamHQFormat
from saqsam.models.sam_hq.structure import FUSION, sam_hq_structure, tap_block
from saqsam.models.structure import InputSpec, ModelStructure


class SamHQFamily(SamFamily):
    """SAM-HQ: a SAM v1 with one more mask token, whose mask is added to every other mask.

    The mask of this token reads features that are fused from the image embedding and the output of the first block with
    global attention, the *tap*. They do not depend on prompts, so they are made with the embedding.
    """

    name = "sam_hq"
    label = "SAM-HQ"
    format = SamHQFormat()
    coordinate_encoding = SamHQPositionalEmbedding

    def build(self, config: SamHQConfig) -> SamHQModel:
        """Return an untrained `SamHQModel` that computes the masks of the official code."""
        model = SamHQModel(config)
        mask_head.correct(model)
        return model

    def structure(self, config: SamHQConfig) -> ModelStructure:
        """Return the module names of a `SamHQModel`."""
        return sam_hq_structure(config)

    def input_spec(self, config: SamHQConfig) -> InputSpec:
        """Return the sizes of inputs and outputs; the extra features are those of the high-quality mask."""
        spec = super().input_spec(config)
        shape = (1, config.mask_decoder_config.hidden_size // 8, spec.mask_size, spec.mask_size)
        return replace(spec, extras={"hq_features": shape})

    def encoder(self, model: SamHQModel) -> nn.Module:
        """Return the vision encoder and the layers that fuse its outputs."""
        return nn.ModuleList([model.vision_encoder, *(getattr(model.mask_decoder, name) for name in FUSION)])

    def simplify(self, model: SamHQModel) -> None:
        """Let the model compute the masks of the official code."""
        mask_head.correct(model)

    def quantizable_attention(
        self, attention: nn.Module, *, quantized_rel_pos_query: bool, row_scaled: bool
    ) -> QuantAttention:
        """Return a `QuantHQVisionAttention` or `QuantHQDecoderAttention` with empty slots."""
        return to_quant_attention(
            attention, quantized_rel_pos_query=quantized_rel_pos_query, row_scaled=row_scaled
        )

    def run_blocks(self, model: SamHQModel, blocks: Iterable[int], state: State) -> State:
        """Run encoder blocks one after another, and keep the tap."""
        hidden, *tap = state
        tapped = tap_block(model.config)
        for index in blocks:
            hidden = model.vision_encoder.layers[index](hidden)
            if index == tapped:
                tap = [hidden]
        return (hidden, *tap)

    def run_neck(self, model: SamHQModel, state: State) -> Features:
        """Run the neck and the fusion; a state that skipped the tapped block is its own tap."""
        embedding = model.vision_encoder.neck(state[0])
        return Features(embedding, (mask_head.fuse(model.mask_decoder, embedding, state[-1]),))

    def encode(self, model: SamHQModel, pixel_values: Tensor) -> Features:
        """Run the encoder block by block."""
        return ModelFamily.encode(self, model, pixel_values)

    def output_tokens(self, model: SamHQModel) -> Tensor:
        """Return the tokens of the IoU, the masks and the high-quality mask."""
        return mask_head.output_tokens(model.mask_decoder)

    def decode(
        self,
        model: SamHQModel,
        features: Features,
        *,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        mask_inputs: Tensor | None,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Run the mask decoder in parts, which is right for any `SamHQModel`."""
        sparse, dense = self.embed_prompts(model, points, labels, boxes, mask_inputs)
        tokens = self.output_tokens(model).expand(len(dense), 1, -1, -1)
        if sparse is not None:
            tokens = torch.cat([tokens, sparse], 2)
        image = features.embedding + dense
        tokens, image = model.mask_decoder.transformer(
            point_embeddings=tokens,
            image_embeddings=image,
            image_positional_embeddings=model.get_image_wide_positional_embeddings().expand_as(image),
            attention_similarity=None,
        )
        logits, ious = self.run_mask_head(model, tokens, image, features.extras)
        return self.select_masks(model.config, logits, ious, multimask_output)

    def run_mask_head(
        self, model: SamHQModel, tokens: Tensor, image: Tensor, extras: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Predict SAM's masks, and add the high-quality mask to each."""
        decoder = model.mask_decoder
        upscaled = mask_head.upscale(decoder, unflatten_image(image))
        masks, ious = self.multiply_masks(model, tokens, upscaled)
        token = tokens[:, 0, self.mask_token + masks.shape[1]]
        return masks + mask_head.high_quality_mask(decoder, token, upscaled, *extras), ious

    def select_masks(
        self, config: SamHQConfig, logits: Tensor, ious: Tensor, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """Select the single mask, or the others by descending predicted IoU, as transformers does."""
        return mask_head.select(logits, ious, multimask_output)

    def mask_macs(self, config: Any, prompts: int) -> int:
        """Count the MACs of hypernetworks times upscaled embedding, of the high-quality mask too."""
        masks = self.input_spec(config).masks
        return super().mask_macs(config, prompts) * (masks + 1) // masks
