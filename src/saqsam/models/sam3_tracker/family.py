"""The tracker of SAM 3 (arXiv 2511.16719) for images: the `ModelFamily` of transformers' `Sam3TrackerModel`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam3TrackerConfig, Sam3TrackerModel
from transformers.models.sam3.modeling_sam3 import Sam3ViTRoPEAttention, Sam3ViTRotaryEmbedding
from transformers.models.sam3_tracker.modeling_sam3_tracker import Sam3TrackerPositionalEmbedding

from saqsam.models.family import AttentionMacs, Features, State
from saqsam.models.sam2.family import Sam2Family
from saqsam.models.sam2.folding import fold, unfold
from saqsam.models.sam2.structure import TRANSFORMER
from saqsam.models.sam3_tracker.attention import to_quant_attention
from saqsam.models.sam3_tracker.format import Sam3TrackerFormat
from saqsam.models.sam3_tracker.neck import FOLDED, drop_unread_level, without_unread_level
from saqsam.models.sam3_tracker.structure import BACKBONE, NECK, sam3_tracker_structure
from saqsam.models.structure import ModelStructure
from saqsam.models.two_way_family import decoder_label


class Sam3TrackerFamily(Sam2Family):
    """SAM 3's tracker: a ViT with rotary positions, a neck of three levels, and the mask decoder of SAM 2."""

    name = "sam3_tracker"
    label = "SAM 3 tracker"
    format = Sam3TrackerFormat()
    coordinate_encoding = Sam3TrackerPositionalEmbedding
    float32_modules = (Sam3ViTRotaryEmbedding,)

    def build(self, config: Sam3TrackerConfig) -> Sam3TrackerModel:
        """Return an untrained `Sam3TrackerModel` that computes the masks of the official code."""
        return Sam3TrackerModel(without_unread_level(config))

    def structure(self, config: Sam3TrackerConfig) -> ModelStructure:
        """Return the module names of a `Sam3TrackerModel`."""
        return sam3_tracker_structure(config)

    def tie(self, model: Sam3TrackerModel) -> None:
        """Compute the positions of the encoder's blocks, which no file holds."""
        for layer in model.vision_encoder.backbone.layers:
            layer.position_ids = layer.precompute_positions(layer.config, layer.window_size).to(model.device)
            rotary = layer.rotary_emb
            frequencies, rotary.attention_scaling = rotary.compute_axial_rope_parameters(rotary.config)
            rotary.inv_freq = frequencies.to(model.device)
            rotary.original_inv_freq = rotary.inv_freq.clone()

    def simplify(self, model: Sam3TrackerModel) -> None:
        """Remove the level of the neck that nothing reads, and fold the decoder's convolutions into the others."""
        drop_unread_level(model)
        fold(model, FOLDED)

    def plain_tensors(self, config: Sam3TrackerConfig, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Undo the folding of `simplify`."""
        with torch.device("meta"):
            expected = self.build(config).state_dict()
        return unfold(tensors, {name: tensor.shape for name, tensor in expected.items()}, FOLDED)

    def quantizable_attention(
        self, attention: nn.Module, *, quantized_rel_pos_query: bool, row_scaled: bool
    ) -> nn.Module:
        """Return a `QuantRotaryAttention` or `QuantTrackerAttention`; there are no relative positions."""
        return to_quant_attention(attention, row_scaled=row_scaled)

    def embed_patches(self, model: Sam3TrackerModel, pixel_values: Tensor) -> State:
        """Embed patches, add the absolute positions and normalize."""
        backbone = model.vision_encoder.backbone
        rows = pixel_values.shape[-2] // backbone.config.patch_size
        hidden = backbone.embeddings(pixel_values).unflatten(1, (rows, -1))
        return (backbone.layer_norm(hidden),)

    def run_blocks(self, model: Sam3TrackerModel, blocks: Iterable[int], state: State) -> State:
        """Run encoder blocks one after another."""
        (hidden,) = state
        for index in blocks:
            hidden = model.vision_encoder.backbone.layers[index](hidden)
        return (hidden,)

    def run_neck(self, model: Sam3TrackerModel, state: State) -> Features:
        """Run the neck and, where they are not folded into it, the decoder's convolutions after it."""
        hidden = state[0].permute(0, 3, 1, 2)
        finest, fine, same = list(model.vision_encoder.neck.fpn_layers)[:3]
        embedding = same(hidden) + model.no_memory_embedding.reshape(1, -1, 1, 1)
        decoder = model.mask_decoder
        return Features(embedding, (decoder.conv_s0(finest(hidden)), decoder.conv_s1(fine(hidden))))

    def attention_macs(self, attention: nn.Module, inputs: Mapping[str, Any]) -> AttentionMacs:
        """Count the MACs of an encoder attention or a decoder attention; rotations are not counted."""
        if not isinstance(attention, Sam3ViTRoPEAttention):
            return super().attention_macs(attention, inputs)
        batch, height, width, channels = inputs["hidden_states"].shape
        return AttentionMacs(batch * (height * width) ** 2 * channels)

    def module_label(self, name: str) -> str:
        """Return a label such as `encoder block 3, attention.q_proj` or `neck, level 2, proj1`."""
        if name.startswith(f"{BACKBONE}.layers."):
            index, _, module = name.removeprefix(f"{BACKBONE}.layers.").partition(".")
            return f"encoder block {int(index) + 1}, {module}"
        if name.startswith(f"{NECK}.fpn_layers."):
            level, _, module = name.removeprefix(f"{NECK}.fpn_layers.").partition(".")
            return f"neck, level {int(level) + 1}, {module}"
        if name.startswith(f"{BACKBONE}.embeddings."):
            return name.removeprefix(f"{BACKBONE}.embeddings.")
        return decoder_label(name, TRANSFORMER)
