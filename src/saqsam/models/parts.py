"""Names of the parts of a SAM, the same for every family.

A *part* is a dotted name for all tensors that play the same role. Recipes address parts, or whole groups of them by
their prefix: `decoder` covers `decoder.mlp`.
"""

from __future__ import annotations

from collections.abc import Iterable

ENCODER_ATTENTION = "encoder.attention"
POINTWISE = "encoder.pointwise"
"""Pointwise convolutions of a convolutional stage, or between two stages; SAM v1 has none."""
ENCODER_PARTS = (
    *("encoder.qkv", "encoder.proj", "encoder.lin1", "encoder.lin2"),
    *(ENCODER_ATTENTION, POINTWISE, "neck"),
)
DECODER_PARTS = (
    "decoder.self_attention",
    "decoder.token_to_image",
    "decoder.image_to_token",
    "decoder.final_attention",
    "decoder.mlp",
)
PAPER_PARTS = ENCODER_PARTS + DECODER_PARTS
"""Tensors that SAQ-SAM (arXiv 2503.06515) and PTQ4SAM (arXiv 2405.03144) quantize: linear layers of the encoder and of
the decoder's two-way transformer, the neck, and the operands of every attention product. Pointwise convolutions, which
are linear layers applied to every pixel, belong to the set in families that have them."""
IMAGE_TO_TOKEN = "decoder.image_to_token"
"""Attention of image tokens to the tokens, which writes the prompt into the image."""
TOKEN_TO_IMAGE_PARTS = ("decoder.token_to_image", "decoder.final_attention")
"""Attention of tokens to the image, whose keys have two peaks in SAM (PTQ4SAM)."""
POST_GELU_PARTS = ("encoder.lin2",)
"""Layers whose input is the output of a GELU."""
PATCH_EMBEDDING = "patch_embedding"
EMBEDDING_PARTS = (PATCH_EMBEDDING, "position_embedding")
"""Parts whose weights alone can be quantized."""
UPSCALING_HIDDEN = "upscaling.hidden"
"""Convolutions that upscale features, below the resolution of the masks."""
UPSCALING_OUTPUT = "upscaling.output"
"""Convolutions at the resolution of the masks: an error that all their pixels share shifts all mask logits."""
UPSCALING_PARTS = (UPSCALING_HIDDEN, UPSCALING_OUTPUT)
FLOAT_PARTS = (*EMBEDDING_PARTS, *UPSCALING_PARTS, "hypernetworks", "iou_head")
"""Parts with weights that the papers leave in floating point."""
PARTS = PAPER_PARTS + FLOAT_PARTS
CONVOLUTIONS = (POINTWISE, "neck", PATCH_EMBEDDING, *UPSCALING_PARTS)
"""Parts whose layers are convolutions."""
DEPTHWISE = "depthwise"
"""Depthwise convolutions of the encoder, with one input per output channel; they always stay in floating point."""
RELATIVE_POSITIONS = "relative_positions"
"""Products of the encoder's queries and relative positions, or biases by relative position; they have no quantized
weights."""
MASK_PRODUCT = "mask_product"
"""Product of the decoder's hypernetworks and the upscaled embedding: the masks."""
OTHER = "other"
"""Tensors that belong to no part, such as layer norms."""

PART_LABELS = {
    "encoder.qkv": "encoder: queries, keys, values",
    "encoder.proj": "encoder: attention output",
    "encoder.lin1": "encoder: MLP, first layer",
    "encoder.lin2": "encoder: MLP, second layer",
    "encoder.attention": "encoder: attention products",
    POINTWISE: "encoder: pointwise convolutions",
    "neck": "neck",
    "decoder.self_attention": "decoder: self-attention",
    "decoder.token_to_image": "decoder: token-to-image attention",
    "decoder.image_to_token": "decoder: image-to-token attention",
    "decoder.final_attention": "decoder: final attention",
    "decoder.mlp": "decoder: MLP",
    PATCH_EMBEDDING: "patch embedding",
    "position_embedding": "position embedding",
    UPSCALING_HIDDEN: "mask upscaling, hidden layers",
    UPSCALING_OUTPUT: "mask upscaling, output layers",
    "hypernetworks": "mask hypernetworks",
    "iou_head": "IoU head",
    DEPTHWISE: "depthwise convolutions",
    RELATIVE_POSITIONS: "relative positions",
    MASK_PRODUCT: "mask product",
}
"""Display names of parts."""


def covers(name: str, part: str) -> bool:
    """Return whether a name addresses a part: it is the part, or its prefix."""
    return part == name or part.startswith(name + ".")


def names_of(parts: Iterable[str]) -> list[str]:
    """Return every name that addresses one of the parts, sorted: the parts and their prefixes."""
    parts = tuple(parts)
    return sorted({*parts, *(part.split(".")[0] for part in parts)})
