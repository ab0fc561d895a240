"""Convert MobileSAM's official checkpoint, ``mobile_sam.pt``, to `MobileSamModel`.

`ChaoningZhang/MobileSAM` publishes the state dict of its own `Sam` class, without a configuration. Prompt encoder and
mask decoder have the names and shapes of SAM v1's official checkpoints. The image encoder is converted:

=======================  ==============================================================================================
``X.c``, ``X.bn``        a convolution and its batch normalization (eps 1e-5), folded into one convolution in float64
``attn.qkv``             output rows go from [head, (q, k, v)] to [(q, k, v), head], the order of SAM v1
everything else          renamed
=======================  ==============================================================================================

Sizes are inferred from the shapes of the tensors, except for three facts of the official code: the image has 1024 px;
every patch merging halves the grid but the last, which keeps it; and the decoder has 8 attention heads. Layer norms
have `torch.nn.LayerNorm`'s eps of 1e-5, in the image encoder and in the decoder's two-way blocks; those of the neck,
the mask prompt and the mask upscaling have 1e-6.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saqsam.models.limits import MAX_LAYERS
from saqsam.models.mobile_sam.configuration import MobileSamConfig, MobileSamVisionConfig, check_sizes
from saqsam.models.mobile_sam.model import MobileSamVisionEncoder
from saqsam.models.mobile_sam.tiny_vit import MobileSamVisionAttention, offset_indexes
from saqsam.models.sam.official import DECODER_LAYER_NORM_EPS, rename_state_dict
from saqsam.models.sam.shape_inference import Shapes, count, decoder_config, dims
from saqsam.utils.errors import CheckpointError, shorten, shorten_names

IMAGE_SIZE = 1024
"""Side of the input of the published model, in pixels. No tensor depends on it."""
BATCH_NORM_EPS = 1e-5
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")

_ENCODER = "image_encoder."
_UNUSED = re.compile(
    # The classifier of TinyViT's pretraining, and counters that only training reads.
    r"image_encoder\.(?:norm_head|head)\.(?:weight|bias)|image_encoder\..+\.bn\.num_batches_tracked"
)
_OFFSET_INDEXES = re.compile(r"image_encoder\.layers\.\d+\.blocks\.\d+\.attn\.attention_bias_idxs")
# Modules of `MobileSamVisionEncoder`, and their names in the official image encoder.
_MODULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"patch_embed\.conv1", r"patch_embed.seq.0"),
        (r"patch_embed\.conv2", r"patch_embed.seq.2"),
        (r"(layers\.\d+\..+)\.pointwise_conv1", r"\1.conv1"),
        (r"(layers\.\d+\..+)\.depthwise_conv", r"\1.conv2"),
        (r"(layers\.\d+\..+)\.pointwise_conv2", r"\1.conv3"),
        (r"(layers\.\d+\..+)\.layer_norm1", r"\1.attn.norm"),
        (r"(layers\.\d+\..+\.(?:attn|attn\.qkv|attn\.proj|local_conv))", r"\1"),
        (r"(layers\.\d+\..+)\.layer_norm2", r"\1.mlp.norm"),
        (r"(layers\.\d+\..+)\.mlp\.lin([12])", r"\1.mlp.fc\2"),
        (r"neck\.conv1", r"neck.0"),
        (r"neck\.layer_norm1", r"neck.1"),
        (r"neck\.conv2", r"neck.2"),
        (r"neck\.layer_norm2", r"neck.3"),
    )
)


def from_official(
    tensors: Mapping[str, object], *, image_size: int = IMAGE_SIZE
) -> tuple[MobileSamConfig, dict[str, Tensor]]:
    """Return the configuration and the converted state dict of an official checkpoint.

    Args:
        tensors: Official state dict: floating-point tensors of any dtype. Those that are only renamed are passed on as
            they are, neither copied nor cast.
        image_size: Side of the input in pixels, a multiple of 16.

    Returns:
        The `MobileSamConfig` inferred from the shapes, and the tensors by their names in `MobileSamModel`, without the
        tied copy of the positional embedding. Names and shapes of the image encoder are checked here; those of prompt
        encoder and mask decoder are left to the function that builds the model.

    Raises:
        CheckpointError: A tensor of the image encoder is missing, unknown or misshapen, another key is unknown, a key
            has no tensor under it, or no MobileSAM has these shapes.
    """
    encoder = {name: value for name, value in tensors.items() if name.startswith(_ENCODER)}
    renamed = rename_state_dict({name: value for name, value in tensors.items() if name not in encoder})
    used = _take_used(encoder)
    config = _infer_config(_shapes(used), _shapes(renamed), image_size)
    return config, _convert_encoder(config.vision_config, used) | renamed


def infer_config(shapes: Shapes) -> MobileSamConfig:
    """Return the configuration of the MobileSAM whose tensors have these shapes, for images of `IMAGE_SIZE` pixels.

    Args:
        shapes: Shape of each tensor by its name in `MobileSamModel`.

    Raises:
        CheckpointError: A needed tensor is missing, a tensor of the image encoder is unknown, or no MobileSAM has these
            shapes.
    """
    encoder: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name.startswith("vision_encoder."):
            module, _, key = name.removeprefix("vision_encoder.").rpartition(".")
            is_folded = len(shape) == 4 and not module.startswith("neck.")
            encoder[
                f"{_official_module(module)}.c.{key}" if is_folded else f"{_official_module(module)}.{key}"
            ] = shape
    return _infer_config(encoder, shapes, IMAGE_SIZE)


def fold_batch_norm(
    weight: Tensor,
    gain: Tensor,
    offset: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    eps: float = BATCH_NORM_EPS,
) -> tuple[Tensor, Tensor]:
    """Fold a batch normalization into the convolution before it, which has no bias. Computed in float64.

    Args:
        weight: Weight of the convolution, [out, in / groups, k, k].
        gain: Weight of the normalization, [out].
        offset: Bias of the normalization, [out].
        mean: Running mean, [out].
        variance: Running variance, [out].
        eps: eps of the normalization.

    Returns:
        Weight and bias of the folded convolution, float32.
    """
    factor = gain.double() / (variance.double() + eps).sqrt()
    bias = offset.double() - mean.double() * factor
    return (weight.double() * factor[:, None, None, None]).float(), bias.float()


def group_by_operand(rows: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a `qkv` layer from [head, (q, k, v)] to [(q, k, v), head].

    Args:
        rows: Weight [3 * C, C] or bias [3 * C].
        heads: Number of heads.
    """
    return rows.reshape(heads, 3, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


def _take_used(encoder: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the tensors of the image encoder without the unused ones."""
    used: dict[str, Tensor] = {}
    for name, value in encoder.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"expected a tensor under {shorten(name)}, got {type(value).__name__}")
        if _OFFSET_INDEXES.fullmatch(name):
            _check_offset_indexes(name, value)
        elif not _UNUSED.fullmatch(name):
            used[name] = value
    others = [name for name, value in used.items() if not value.is_floating_point()]
    if others:
        raise CheckpointError(f"expected floating-point tensors, got others: {shorten_names(others)}")
    return used


def _check_offset_indexes(name: str, indexes: Tensor) -> None:
    """Check that attention biases are in the order that `offset_indexes` assumes."""
    window = math.isqrt(indexes.shape[0]) if indexes.dim() else 0
    if indexes.shape != (window**2, window**2) or not torch.equal(indexes.long(), offset_indexes(window)):
        raise CheckpointError(
            f"{shorten(name)}: expected the relative offsets of a square window, row by row"
        )


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _infer_config(encoder: Shapes, rest: Shapes, image_size: int) -> MobileSamConfig:
    """Return the configuration.

    Args:
        encoder: Shapes of the image encoder, by official name.
        rest: Shapes of prompt encoder and mask decoder, by their names in `MobileSamModel`.
        image_size: Side of the input in pixels.
    """
    frequencies = dims(rest, "shared_image_embedding.positional_embedding", 2)[1]
    fields = _vision_fields(encoder)
    vision = MobileSamVisionConfig(**fields, image_size=image_size, num_pos_feats=frequencies)
    config = MobileSamConfig(
        vision_config=vision,
        prompt_encoder_config={
            "hidden_size": dims(rest, "prompt_encoder.no_mask_embed.weight", 2)[1],
            "image_size": image_size,
            "patch_size": vision.patch_size,
            "mask_input_channels": dims(rest, "prompt_encoder.mask_embed.conv2.weight", 4)[0],
            "num_point_embeddings": count(rest, r"prompt_encoder\.point_embed\.(\d+)\."),
        },
        mask_decoder_config=decoder_config(rest, DECODER_LAYER_NORM_EPS),
    )
    try:
        check_sizes(config)
    except ValueError as error:
        raise CheckpointError(f"the shapes of the tensors: {error}") from error
    return config


def _vision_fields(shapes: Shapes) -> dict[str, Any]:
    """Return the fields of the image encoder's configuration that follow from its shapes."""
    layers = f"{_ENCODER}layers"
    stages = count(shapes, r"image_encoder\.layers\.(\d+)\.")
    first, channels, _, _ = dims(shapes, f"{_ENCODER}patch_embed.seq.0.c.weight", 4)
    widths = [dims(shapes, f"{_ENCODER}patch_embed.seq.2.c.weight", 4)[0]]
    widths += [dims(shapes, f"{layers}.{s}.downsample.conv3.c.weight", 4)[0] for s in range(stages - 1)]
    if min(first, channels, *widths) < 1:
        raise CheckpointError(f"expected stages of at least one channel, got {shorten(widths)}")
    depths = [count(shapes, rf"image_encoder\.layers\.{s}\.blocks\.(\d+)\.") for s in range(stages)]
    if max(depths, default=0) > MAX_LAYERS:
        raise CheckpointError(f"expected at most {MAX_LAYERS} blocks in a stage, got {shorten(depths)}")
    block = f"{layers}.1.blocks.0"
    biases = [dims(shapes, f"{layers}.{s}.blocks.0.attn.attention_biases", 2) for s in range(1, stages)]
    hidden = dims(shapes, f"{layers}.0.blocks.0.conv1.c.weight", 4)[0]
    mlp = dims(shapes, f"{block}.mlp.fc1.weight", 2)[0]
    default = MobileSamVisionConfig()
    return {
        "hidden_sizes": widths,
        "depths": depths,
        "num_attention_heads": [default.num_attention_heads[0], *(heads for heads, _ in biases)],
        "window_sizes": [default.window_sizes[0], *(math.isqrt(offsets) for _, offsets in biases)],
        "merge_strides": [*[2] * (stages - 2), 1],
        "expand_ratio": hidden / widths[0],
        "mlp_ratio": mlp / widths[1],
        "local_conv_size": dims(shapes, f"{block}.local_conv.c.weight", 4)[2],
        "output_channels": dims(shapes, f"{_ENCODER}neck.0.weight", 4)[0],
        "num_channels": channels,
    }


def _convert_encoder(config: MobileSamVisionConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the image encoder's state dict from exactly its official tensors."""
    with torch.device("meta"):
        encoder = MobileSamVisionEncoder(config)
    modules = {name: module for name, module in encoder.named_modules() if _own_parameters(module)}
    expected: dict[str, tuple[int, ...]] = {}
    for name, module in modules.items():
        expected |= _official_shapes(_official_module(name), module)
    _check_names_and_shapes(_shapes(tensors), expected)
    heads = {
        f"{name}.qkv": module.num_attention_heads
        for name, module in modules.items()
        if isinstance(module, MobileSamVisionAttention)
    }
    converted: dict[str, Tensor] = {}
    for name, module in modules.items():
        official = _official_module(name)
        if _is_folded(module):
            norm = [tensors[f"{official}.bn.{part}"] for part in _BATCH_NORM]
            weight, bias = fold_batch_norm(tensors[f"{official}.c.weight"], *norm)
            values = {"weight": weight, "bias": bias}
        else:
            values = {key: tensors[f"{official}.{key}"] for key in _own_parameters(module)}
        if name in heads:
            values = {key: group_by_operand(rows, heads[name]) for key, rows in values.items()}
        converted |= {f"vision_encoder.{name}.{key}": value for key, value in values.items()}
    return converted


def _official_module(name: str) -> str:
    """Return the official name of a module of the image encoder."""
    matches = ((pattern.fullmatch(name), official) for pattern, official in _MODULES)
    found = next((match.expand(official) for match, official in matches if match), None)
    if found is None:
        raise CheckpointError(f"not a module of a MobileSAM image encoder: {shorten(name)}")
    return _ENCODER + found


def _own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False))


def _is_folded(module: nn.Module) -> bool:
    """Return whether a module is a convolution that had a batch normalization; those of the neck had none."""
    return isinstance(module, nn.Conv2d) and module.bias is not None


def _official_shapes(official: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the official tensors that a module is made from."""
    own = _own_parameters(module)
    if _is_folded(module):
        norm = {f"{official}.bn.{part}": tuple(own["bias"].shape) for part in _BATCH_NORM}
        return {f"{official}.c.weight": tuple(own["weight"].shape), **norm}
    return {f"{official}.{key}": tuple(value.shape) for key, value in own.items()}


def _check_names_and_shapes(shapes: Shapes, expected: Shapes) -> None:
    wrong = [
        f"{name} of shape {shapes[name]} instead of {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    problems = [
        ("missing", expected.keys() - shapes.keys()),
        ("unknown", shapes.keys() - expected.keys()),
        ("misshapen", wrong),
    ]
    named = "; ".join(f"{len(some)} {problem}: {shorten_names(some)}" for problem, some in problems if some)
    if named:
        raise CheckpointError(f"not the tensors of an official MobileSAM image encoder: {named}")
