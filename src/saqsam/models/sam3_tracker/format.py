"""Files of SAM 3's tracker: folders of transformers and the official `sam3.pt`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Sam3TrackerConfig, Sam3TrackerProcessor

from saqsam.models.format import Canvas, ModelFormat, Value
from saqsam.models.sam3_tracker.configuration import (
    check_sam3_tracker_config,
    count_parameters,
    parse_sam3_tracker_config,
    sam3_tracker_fields,
)
from saqsam.models.sam3_tracker.neck import UNREAD
from saqsam.models.sam3_tracker.official import (
    DETECTOR_ROOTS,
    OFFICIAL_ANCHOR,
    OFFICIAL_ROOTS,
    rename_official,
    without_prefixes,
)
from saqsam.models.sam3_tracker.processor import Sam3StretchImageProcessor
from saqsam.models.sam3_tracker.resizing import resize_sam3_tracker_config
from saqsam.models.sam3_tracker.structure import LEVELS
from saqsam.utils.errors import CheckpointError

_BACKBONE = "vision_encoder.backbone"
_SAVED = (
    (re.compile(r"(?:tracker_model\.)*detector_model\.vision_encoder\.backbone\."), f"{_BACKBONE}."),
    (re.compile(r"(?:tracker_model\.)*tracker_neck\."), "vision_encoder.neck."),
    (re.compile(r"(?:tracker_model\.)+"), ""),
)
"""Names in the files that transformers saves: those of the tracker within the video model, with repeated prefixes."""


class Sam3TrackerFormat(ModelFormat):
    """Files of SAM 3's tracker (arXiv 2511.16719). Of video models, detector and memory are left out."""

    model_types = ("sam3_tracker", "sam3_tracker_video", "sam3_video")
    canvas: Canvas = "stretch"
    image_processor_class = Sam3StretchImageProcessor
    processor_class = Sam3TrackerProcessor
    anchor = f"{_BACKBONE}.embeddings.patch_embeddings.projection.weight"
    official_anchor = OFFICIAL_ANCHOR
    roots = (
        "vision_encoder",
        "prompt_encoder",
        "mask_decoder",
        "shared_image_embedding",
        "no_memory_embedding",
    )
    official_roots = OFFICIAL_ROOTS
    ignored_roots = (
        *DETECTOR_ROOTS,
        *("detector_model", "memory_attention", "memory_encoder", "mask_downsample", "object_pointer_proj"),
        *("memory_temporal_positional_encoding", "no_memory_positional_encoding", "no_object_pointer"),
        *("temporal_positional_encoding_projection_layer", "occlusion_spatial_embedding_parameter"),
    )

    def parse_config(self, raw: Mapping[str, Any], source: str) -> Sam3TrackerConfig:
        """Return the `Sam3TrackerConfig` of a `config.json`, the image part of a video model's."""
        return parse_sam3_tracker_config(raw, source)

    def config_fields(self, config: Sam3TrackerConfig) -> dict[str, Any]:
        """Return the fields that affect a mask; the indexes of global blocks are sorted."""
        return sam3_tracker_fields(config)

    def client_fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields with the number of feature levels, which SAM 2 has in its configuration."""
        return {**fields, "vision_config": {**fields["vision_config"], "num_feature_levels": len(LEVELS)}}

    def check_config(self, config: Sam3TrackerConfig, source: str) -> None:
        """Check a `Sam3TrackerConfig`."""
        check_sam3_tracker_config(config, source)

    def count_parameters(self, config: Sam3TrackerConfig) -> int:
        """Return the approximate number of parameters; biases are not counted."""
        return count_parameters(config)

    def from_official(self, tensors: Mapping[str, object]) -> tuple[Sam3TrackerConfig, dict[str, Tensor]]:
        """Convert the tracker in the state dict of `sam3.pt`."""
        renamed = rename_official(tensors)
        return self.infer_config(renamed), renamed

    def rename_official(self, tensors: Mapping[str, object]) -> dict[str, Tensor]:
        """Return an official state dict under the names of `Sam3TrackerModel`."""
        return rename_official(tensors)

    def infer_config(self, tensors: Mapping[str, Tensor]) -> Sam3TrackerConfig:
        """Return the configuration of the published model, if the tensors have its width and number of blocks.

        Raises:
            CheckpointError: They have not.
        """
        config = parse_sam3_tracker_config({}, "the shapes of the tensors")
        backbone = config.vision_config.backbone_config
        patches = tensors.get(self.anchor)
        width = len(patches) if patches is not None and patches.dim() else 0
        blocks = {name.split(".")[3] for name in tensors if name.startswith(f"{_BACKBONE}.layers.")}
        if (width, len(blocks)) != (backbone.hidden_size, backbone.num_hidden_layers):
            raise CheckpointError(
                f"expected the width and number of blocks of the published SAM 3, {backbone.hidden_size} and "
                f"{backbone.num_hidden_layers}, got {width} and {len(blocks)}"
            )
        return config

    def resize(
        self, config: Sam3TrackerConfig, tensors: Mapping[str, Tensor], image_size: int
    ) -> tuple[Sam3TrackerConfig, Mapping[str, Tensor]]:
        """Return the configuration at another input size, and the tensors, which do not depend on it."""
        return resize_sam3_tracker_config(config, image_size), tensors

    def module_names(self, tensors: dict[str, Value]) -> dict[str, Value]:
        """Return the tensors of a file by the names of modules, and official ones without prefixes."""
        if any(name.endswith(OFFICIAL_ANCHOR) for name in tensors):
            return {without_prefixes(name): value for name, value in tensors.items()}
        if not any("tracker_model." in name for name in tensors):
            return tensors
        renamed = {}
        for name, value in tensors.items():
            for start, replacement in _SAVED:
                name, count = start.subn(replacement, name, count=1)
                if count:
                    break
            renamed[name] = value
        return renamed

    def image_tensors(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors without those of detector and memory, and of the level of the neck that is not read."""
        return {
            name: value
            for name, value in super().image_tensors(tensors).items()
            if not name.startswith(UNREAD)
        }
