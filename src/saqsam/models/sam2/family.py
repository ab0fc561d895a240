"""SAM 2 and 2.1 (arXiv 2408.00714) for images: the `ModelFamily` of transformers' `Sam2Model`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam2Config, Sam2Model
from transformers.models.sam2.modeling_sam2 import Sam2MultiScaleAttention, Sam2PositionalEmbedding

from saqsam.models.family import AttentionMacs, Features, StabilityRule, State, unflatten_image
from saqsam.models.format import ModelFormat
from saqsam.models.sam2.attention import to_quant_attention
from saqsam.models.sam2.folding import fold, unfold
from saqsam.models.sam2.format import Sam2Format
from saqsam.models.sam2.selection import select_by_stability
from saqsam.models.sam2.structure import BACKBONE, NECK, TRANSFORMER, sam2_structure, stage_starts
from saqsam.models.structure import InputSpec, ModelStructure
from saqsam.models.two_way import TwoWayAttention
from saqsam.models.two_way_family import TwoWayFamily, decoder_label


class Sam2Family(TwoWayFamily):
    """SAM 2: a Hiera encoder of four resolution stages, a feature pyramid, and a two-way mask decoder.

    The mask decoder reads high-resolution features besides the embedding. The token of the object score comes first.
    """

    name = "sam2"
    label = "SAM 2"
    format: ModelFormat = Sam2Format()
    iou_token = 1
    mask_token = 2
    coordinate_encoding: type[nn.Module] = Sam2PositionalEmbedding

    def build(self, config: Sam2Config) -> Sam2Model:
        """Return an untrained `Sam2Model`."""
        return Sam2Model(config)

    def structure(self, config: Sam2Config) -> ModelStructure:
        """Return the module names of a `Sam2Model`."""
        return sam2_structure(config)

    def input_spec(self, config: Sam2Config) -> InputSpec:
        """Return the sizes of inputs and outputs; the extra features are the two finest levels of the pyramid."""
        prompt, width = config.prompt_encoder_config, config.mask_decoder_config.hidden_size
        grid = prompt.image_size // prompt.patch_size
        return InputSpec(
            channels=config.vision_config.backbone_config.num_channels,
            image_size=prompt.image_size,
            patch_size=prompt.patch_size,
            embedding_channels=width,
            masks=config.mask_decoder_config.num_multimask_outputs + 1,
            extras={
                "high_res_features_0": (1, width // 8, 4 * grid, 4 * grid),
                "high_res_features_1": (1, width // 4, 2 * grid, 2 * grid),
            },
            pads_boxes=True,
        )

    def encoder(self, model: Sam2Model) -> nn.Module:
        """Return the vision encoder and what else the features depend on."""
        decoder = model.mask_decoder
        no_memory = nn.ParameterList([model.no_memory_embedding])
        return nn.ModuleList([model.vision_encoder, decoder.conv_s0, decoder.conv_s1, no_memory])

    def tie(self, model: Sam2Model) -> None:
        """Do nothing: no tensors are tied."""

    def simplify(self, model: Sam2Model) -> None:
        """Fold the decoder's convolutions of high-resolution features into the neck's."""
        fold(model)

    def plain_tensors(self, config: Sam2Config, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Undo `simplify`."""
        with torch.device("meta"):
            expected = self.build(config).state_dict()
        return unfold(tensors, {name: tensor.shape for name, tensor in expected.items()})

    def quantizable_attention(
        self, attention: nn.Module, *, quantized_rel_pos_query: bool, row_scaled: bool
    ) -> nn.Module:
        """Return a `QuantMultiScaleAttention` or `QuantTwoWayAttention`; there are no relative positions."""
        return to_quant_attention(attention, row_scaled=row_scaled)

    def embed_patches(self, model: Sam2Model, pixel_values: Tensor) -> State:
        """Embed patches and add the absolute positions."""
        backbone = model.vision_encoder.backbone
        hidden = backbone.patch_embed(pixel_values)
        return (hidden + backbone._get_pos_embed(hidden.shape[1:3]),)

    def run_blocks(self, model: Sam2Model, blocks: Iterable[int], state: State) -> State:
        """Run encoder blocks one after another; a block that begins a stage keeps its input for the neck."""
        hidden, *levels = state
        starts = stage_starts(model.config)
        for index in blocks:
            if index in starts[1:]:
                levels.append(hidden)
            hidden = model.vision_encoder.backbone.blocks[index](hidden)
        return (hidden, *levels)

    def run_neck(self, model: Sam2Model, state: State) -> Features:
        """Run the feature pyramid and, where they are not folded into it, the decoder's convolutions after it."""
        hidden, finest, fine, middle = (level.permute(0, 3, 1, 2) for level in state)
        convs, decoder = model.vision_encoder.neck.convs, model.mask_decoder
        coarse = F.interpolate(convs[0](hidden).float(), scale_factor=2.0, mode="nearest")
        embedding = convs[1](middle) + coarse.to(middle.dtype)
        embedding = embedding + model.no_memory_embedding.reshape(1, -1, 1, 1)
        extras = decoder.conv_s0(convs[3](finest)), decoder.conv_s1(convs[2](fine))
        return Features(embedding, extras)

    def extra_inputs(self, features: Features, count: int) -> Mapping[str, Any]:
        """Return the high-resolution features."""
        return {"high_resolution_features": [extra.expand(count, -1, -1, -1) for extra in features.extras]}

    def select_masks(
        self, config: Sam2Config, logits: Tensor, ious: Tensor, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """Select the single mask, or the best of the others where it is unstable, as the decoder's options say."""
        rule = self.stability_rule(config)
        if multimask_output or rule is None:
            return super().select_masks(config, logits, ious, multimask_output)
        return select_by_stability(logits, ious, rule.delta, rule.threshold)

    def stability_rule(self, config: Sam2Config) -> StabilityRule | None:
        """Return the decoder's options of the dynamic multimask."""
        decoder = config.mask_decoder_config
        if not decoder.dynamic_multimask_via_stability:
            return None
        return StabilityRule(
            decoder.dynamic_multimask_stability_delta, decoder.dynamic_multimask_stability_thresh
        )

    def output_tokens(self, model: Sam2Model) -> Tensor:
        """Return the tokens of the object score, the IoU and the masks."""
        decoder = model.mask_decoder
        return torch.cat(
            [decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight]
        )

    def run_decoder_layer(
        self, model: Sam2Model, index: int, tokens: Tensor, image: Tensor, prompt: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run one two-way block; transformers' attention needs image tokens for every prompt, ours does not."""
        attention = model.mask_decoder.transformer.layers[index].cross_attn_token_to_image
        if not isinstance(attention, TwoWayAttention):
            image = image.expand(len(tokens), -1, -1, -1)
        return super().run_decoder_layer(model, index, tokens, image, prompt, positions)

    def run_mask_head(
        self, model: Sam2Model, tokens: Tensor, image: Tensor, extras: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Upscale the image tokens, add the high-resolution features, and multiply with the hypernetworks' output."""
        decoder = model.mask_decoder
        finest, fine = extras
        features = decoder.upscale_conv1(unflatten_image(image)) + fine
        features = decoder.activation(decoder.upscale_layer_norm(features))
        features = decoder.activation(decoder.upscale_conv2(features) + finest)
        decoder.pred_obj_score_head(
            tokens[:, 0, 0]
        )  # no mask depends on it, but calibration has to observe it
        return self.multiply_masks(model, tokens, features)

    def attention_macs(self, attention: nn.Module, inputs: Mapping[str, Any]) -> AttentionMacs:
        """Count the MACs of an encoder attention or a decoder attention; pooling quarters the queries."""
        if not isinstance(attention, Sam2MultiScaleAttention):
            return super().attention_macs(attention, inputs)
        batch, height, width, _ = inputs["hidden_states"].shape
        tokens, stride = height * width, attention.query_stride
        queries = tokens // (stride[0] * stride[1]) if stride else tokens
        return AttentionMacs(batch * queries * tokens * attention.dim_out)

    def module_label(self, name: str) -> str:
        """Return a label such as `encoder block 3, attn.qkv` or `decoder layer 1, token-to-image attention, q_proj`."""
        if name.startswith(f"{BACKBONE}.blocks."):
            index, _, module = name.removeprefix(f"{BACKBONE}.blocks.").partition(".")
            return f"encoder block {int(index) + 1}, {module}"
        if name.startswith(f"{NECK}.convs."):
            return f"neck, level {int(name.removeprefix(f'{NECK}.convs.').partition('.')[0]) + 1}"
        if name.startswith((f"{BACKBONE}.patch_embed.", f"{BACKBONE}.pos_embed")):
            return name.removeprefix("vision_encoder.")
        return decoder_label(name, TRANSFORMER)
