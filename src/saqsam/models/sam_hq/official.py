"""Convert official SAM-HQ checkpoints to transformers' `SamHQModel` by renaming their tensors.

`SysCV/sam-hq` publishes ``sam_hq_vit_{b,l,h}.pth``: the state dict of SAM v1 and the layers of the high-quality mask,
without a configuration. It follows from the shapes, as for SAM v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import SamHQConfig

from saqsam.models.sam.configuration import sam_fields
from saqsam.models.sam.official import DECODER_LAYER_NORM_EPS, rename_state_dict
from saqsam.models.sam.shape_inference import infer_sam_config
from saqsam.models.sam_hq.configuration import parse_sam_hq_config
from saqsam.utils.errors import CheckpointError, shorten

_LAYERS = {
    **{"compress_vit_feat.0": "compress_vit_conv1", "compress_vit_feat.1": "compress_vit_norm"},
    **{"compress_vit_feat.3": "compress_vit_conv2", "embedding_encoder.0": "encoder_conv1"},
    **{"embedding_encoder.1": "encoder_norm", "embedding_encoder.3": "encoder_conv2"},
    **{"embedding_maskfeature.0": "mask_conv1", "embedding_maskfeature.1": "mask_norm"},
    **{"embedding_maskfeature.3": "mask_conv2", "hf_mlp.layers.0": "hq_mask_mlp.proj_in"},
    **{"hf_mlp.layers.1": "hq_mask_mlp.layers.0", "hf_mlp.layers.2": "hq_mask_mlp.proj_out"},
}
"""Modules of the mask decoder: official name and name in transformers."""
_NAMES = {
    "mask_decoder.hf_token.weight": "mask_decoder.hq_token.weight",
    **{
        f"mask_decoder.{official}.{kind}": f"mask_decoder.{name}.{kind}"
        for official, name in _LAYERS.items()
        for kind in ("weight", "bias")
    },
}
_COMPRESSION = "mask_decoder.compress_vit_conv1.weight"


def from_official(tensors: Mapping[str, object]) -> tuple[SamHQConfig, dict[str, Tensor]]:
    """Return the configuration and the renamed state dict of an official checkpoint.

    Args:
        tensors: Official state dict: floating-point tensors of any dtype.

    Returns:
        The `SamHQConfig` inferred from the shapes, and the tensors by their names in `SamHQModel`, without the tied
        copy of the positional embedding.

    Raises:
        CheckpointError: A name is unknown or has no tensor under it, two shapes contradict each other, or a tensor
            from which the configuration is inferred is missing.
    """
    renamed = rename_official(tensors)
    return infer_sam_hq_config(renamed, decoder_layer_norm_eps=DECODER_LAYER_NORM_EPS), renamed


def rename_official(tensors: Mapping[str, object]) -> dict[str, Tensor]:
    """Return an official state dict under the names of transformers' `SamHQModel`.

    Raises:
        CheckpointError: A name is unknown, or has no tensor under it.
    """
    own: dict[str, Tensor] = {}
    for name in tensors.keys() & _NAMES.keys():
        value = tensors[name]
        if not isinstance(value, Tensor):
            raise CheckpointError(f"expected a tensor under {shorten(name)}, got {type(value).__name__}")
        own[_NAMES[name]] = value
    rest = {name: value for name, value in tensors.items() if name not in _NAMES}
    return {**rename_state_dict(rest), **own}


def infer_sam_hq_config(
    tensors: Mapping[str, Tensor], *, decoder_layer_norm_eps: float = 1e-6
) -> SamHQConfig:
    """Return the configuration of the SAM-HQ with these tensors, as `infer_sam_config` does for SAM v1.

    Args:
        tensors: Tensors by their names in `SamHQModel`.
        decoder_layer_norm_eps: eps of the decoder's layer norms.

    Raises:
        CheckpointError: As for `infer_sam_config`, or the shape of the tap's convolution is another one.
    """
    if _COMPRESSION not in tensors:
        raise CheckpointError(f"not a complete SAM-HQ: {_COMPRESSION} is missing")
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    fields: dict[str, Any] = sam_fields(
        infer_sam_config(shapes, decoder_layer_norm_eps=decoder_layer_norm_eps)
    )
    fields["mask_decoder_config"]["vit_dim"] = shapes[_COMPRESSION][0] if shapes[_COMPRESSION] else 0
    return parse_sam_hq_config(fields, "the shapes of the tensors")
