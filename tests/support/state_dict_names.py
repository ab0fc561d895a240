"""A `SamModel`'s tensors under the names of the official code."""

import re

from torch import Tensor
from transformers import SamModel

_COPY = "prompt_encoder.shared_embedding.positional_embedding"
_RENAMING = (
    (r"^(mask_decoder\.(?:output_h|iou_p)\w+(?:\.\d)?)\.layers\.(\d)\.", r"\1.hidden.\2."),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"projection", "proj"),
    (r"neck\.conv1", "neck.0"),
    (r"neck\.layer_norm1", "neck.1"),
    (r"neck\.conv2", "neck.2"),
    (r"neck\.layer_norm2", "neck.3"),
    (
        r"^shared_image_embedding\.positional_embedding",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"layer_norm", "norm"),
)


def official_names(model: SamModel) -> dict[str, Tensor]:
    """The state dict that the official `Sam` of the same shapes has; the IoU head has three layers."""
    renamed = {}
    for name, value in model.state_dict().items():
        if name == _COPY:
            continue
        for pattern, replacement in _RENAMING:
            name = re.sub(pattern, replacement, name)
        name = name.replace(".proj_in.", ".layers.0.").replace(".hidden.0.", ".layers.1.")
        renamed[name.replace(".proj_out.", ".layers.2.")] = value.clone()
    return renamed
