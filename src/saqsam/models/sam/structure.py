"""The structure of a `SamModel`: which tensors there are to quantize, what they belong to, where stages end.

Nothing else in saqsam walks a model's modules by name. A *part* is a dotted name for all tensors that play
the same role; recipes address parts, or whole groups of them by their prefix (`decoder` covers
`decoder.mlp`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import SamConfig, SamModel

# The papers' tensor set (method of SAQ-SAM, arXiv 2503.06515, and PTQ4SAM, arXiv 2405.03144): linear layers
# of the encoder and of the decoder's two-way transformer, the neck, and the operands of every attention
# product.
ENCODER_PARTS = ("encoder.qkv", "encoder.proj", "encoder.lin1", "encoder.lin2", "encoder.attention", "neck")
DECODER_PARTS = (
    "decoder.self_attention",
    "decoder.token_to_image",
    "decoder.image_to_token",
    "decoder.final_attention",
    "decoder.mlp",
)
PAPER_PARTS = ENCODER_PARTS + DECODER_PARTS
# Attention of tokens to the image: the keys of these have two peaks in SAM (PTQ4SAM).
TOKEN_TO_IMAGE_PARTS = ("decoder.token_to_image", "decoder.final_attention")
# What the papers leave float although it has weights that can be packed.
FLOAT_PARTS = ("patch_embedding", "position_embedding", "upscaling", "hypernetworks", "iou_head")
PARTS = PAPER_PARTS + FLOAT_PARTS
# Parts whose layers are convolutions.
CONVOLUTIONS = ("neck", "patch_embedding", "upscaling")
PATCH_EMBEDDING = "vision_encoder.patch_embed.projection"


@dataclass(frozen=True)
class Site:
    """A module of the model and the part it belongs to."""

    name: str
    part: str


class SamStructure:
    """Names of the modules of a `SamModel` by role; it holds no reference to the model.

    Attributes:
        layers: Linear layers and convolutions of the papers' tensor set, in the order of computation.
        float_layers: Those that the papers leave float.
        attentions: Attention modules whose products are quantized, encoder first.
        residual_readers: Names of the decoder's layers whose input is a residual stream, alone or with positions.
        stages: Encoder blocks of each stage as ranges; a stage ends with a global-attention block, and what
            follows the last global block, if anything, is a stage of its own.
        position_embedding: Name of the encoder's absolute position embedding.
    """

    def __init__(self, config: SamConfig) -> None:
        vision, decoder = config.vision_config, config.mask_decoder_config
        self.position_embedding = "vision_encoder.pos_embed"
        self.stages = _stages(vision.num_hidden_layers, vision.global_attn_indexes)
        self.layers = [
            *_encoder_layers(vision.num_hidden_layers),
            *_decoder_layers(decoder.num_hidden_layers),
        ]
        readers = ("q_proj", "k_proj", "v_proj", "lin1")
        self.residual_readers = [
            site.name
            for site in self.layers
            if site.part in DECODER_PARTS and site.name.rpartition(".")[2] in readers
        ]
        self.float_layers = list(_float_layers(decoder.num_multimask_outputs + 1, decoder.iou_head_depth))
        self.attentions = [
            *(
                Site(f"vision_encoder.layers.{i}.attn", "encoder.attention")
                for i in range(vision.num_hidden_layers)
            ),
            *_decoder_attentions(decoder.num_hidden_layers),
        ]

    def check(self, model: SamModel) -> None:
        """Raise ValueError if the model lacks one of the modules."""
        names = {name for name, _ in model.named_modules()}
        for site in [*self.layers, *self.float_layers, *self.attentions]:
            if site.name not in names:
                raise ValueError(
                    f"this {type(model).__name__} has no module {site.name}: not a SAM of transformers"
                )


def _stages(blocks: int, global_indexes: list[int]) -> list[range]:
    # As the model itself does, pass over indexes of blocks that a shallower model does not have.
    ends = sorted({*(i for i in global_indexes if 0 <= i < blocks), blocks - 1})
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [range(start, end + 1) for start, end in zip(starts, ends, strict=True)]


def _encoder_layers(blocks: int) -> Iterator[Site]:
    for i in range(blocks):
        block = f"vision_encoder.layers.{i}"
        yield Site(f"{block}.attn.qkv", "encoder.qkv")
        yield Site(f"{block}.attn.proj", "encoder.proj")
        yield Site(f"{block}.mlp.lin1", "encoder.lin1")
        yield Site(f"{block}.mlp.lin2", "encoder.lin2")
    yield Site("vision_encoder.neck.conv1", "neck")
    yield Site("vision_encoder.neck.conv2", "neck")


def _decoder_attentions(layers: int) -> Iterator[Site]:
    transformer = "mask_decoder.transformer"
    for i in range(layers):
        yield Site(f"{transformer}.layers.{i}.self_attn", "decoder.self_attention")
        yield Site(f"{transformer}.layers.{i}.cross_attn_token_to_image", "decoder.token_to_image")
        yield Site(f"{transformer}.layers.{i}.cross_attn_image_to_token", "decoder.image_to_token")
    yield Site(f"{transformer}.final_attn_token_to_image", "decoder.final_attention")


def _decoder_layers(layers: int) -> Iterator[Site]:
    for attention in _decoder_attentions(layers):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield Site(f"{attention.name}.{projection}", attention.part)
        if attention.part == "decoder.token_to_image":
            layer = attention.name.rpartition(".")[0]
            yield Site(f"{layer}.mlp.lin1", "decoder.mlp")
            yield Site(f"{layer}.mlp.lin2", "decoder.mlp")


def _float_layers(mask_tokens: int, iou_depth: int) -> Iterator[Site]:
    yield Site(PATCH_EMBEDDING, "patch_embedding")
    yield Site("mask_decoder.upscale_conv1", "upscaling")
    yield Site("mask_decoder.upscale_conv2", "upscaling")
    for i in range(mask_tokens):
        for layer in ("proj_in", "layers.0", "proj_out"):
            yield Site(f"mask_decoder.output_hypernetworks_mlps.{i}.{layer}", "hypernetworks")
    hidden = [f"layers.{i}" for i in range(iou_depth - 2)]
    for layer in ("proj_in", *hidden, "proj_out"):
        yield Site(f"mask_decoder.iou_prediction_head.{layer}", "iou_head")


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in the place of the module called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
