"""Inputs and outputs of exported models, whose interface is that of the official SAM export."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saqsam.export.manifest import LOW_RES_OUTPUTS, Manifest
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.models.registry import family_of
from saqsam.utils.errors import CheckpointError, shorten

BOX_LABELS = (2, 3)
PADDING_LABEL = -1


def decoder_inputs(
    features: Mapping[str, NDArray[np.float32]], prompts: Prompts, *, pads_boxes: bool = False
) -> dict[str, NDArray[Any]]:
    """Return the inputs of an exported decoder for P prompts.

    Args:
        features: Feature maps of an image, float32 [1, C, h, w], by name.
        prompts: P prompts in pixels of the S x S input.
        pads_boxes: `InputSpec.pads_boxes`.

    Returns:
        Float32 arrays by name. A box becomes two points; without a box, a padding point is appended, as in SAM's
        training.
    """
    count = len(prompts)
    coords, labels = [], []
    if prompts.points is not None and prompts.labels is not None:
        coords.append(prompts.points)
        labels.append(prompts.labels)
    if prompts.boxes is not None:
        coords.append(prompts.boxes.reshape(count, 2, 2))
        labels.append(torch.tensor(BOX_LABELS).expand(count, 2))
    if prompts.boxes is None or pads_boxes:
        coords.append(torch.zeros(count, 1, 2))
        labels.append(torch.full((count, 1), PADDING_LABEL))
    side = 4 * features["image_embeddings"].shape[-1]
    masks = prompts.mask_inputs
    mask_input = np.zeros((1, 1, side, side), np.float32) if masks is None else as_array(masks[:, None])
    return {
        **features,
        "point_coords": as_array(torch.cat([part.float() for part in coords], 1)),
        "point_labels": as_array(torch.cat([part.float() for part in labels], 1)),
        "mask_input": mask_input,
        "has_mask_input": np.array([masks is not None], dtype=np.float32),
    }


def exported_inputs(manifest: Manifest, features: Features, prompts: Prompts) -> dict[str, NDArray[Any]]:
    """Return the inputs of an export's decoder, as `decoder_inputs`, for the features of an image."""
    config = manifest.sam_config
    spec = family_of(config).input_spec(config)
    maps = {name: as_array(tensor) for name, tensor in zip(spec.features, features.maps, strict=True)}
    return decoder_inputs(maps, prompts, pads_boxes=spec.pads_boxes)


def to_features(maps: Sequence[NDArray[np.float32]]) -> Features:
    """Return the outputs of an exported encoder, in the order of `feature_names`, as features."""
    embedding, *extras = (torch.from_numpy(array) for array in maps)
    return Features(embedding, tuple(extras))


def feature_names(manifest: Manifest) -> tuple[str, ...]:
    """Return the names of an exported encoder's outputs."""
    return tuple(family_of(manifest.sam_config).input_spec(manifest.sam_config).features)


def encode_each(
    manifest: Manifest, pixel_values: torch.Tensor, encode: Callable[[torch.Tensor], Features]
) -> Features:
    """Encode images by an encoder that was exported for one image per call.

    Args:
        manifest: Manifest of the export.
        pixel_values: [B, 3, S, S] float32.
        encode: Takes [1, 3, S, S] and returns the features of that image.

    Raises:
        ValueError: The pixel values have another shape.
    """
    check_pixels(manifest, pixel_values)
    if len(pixel_values) == 1:
        return encode(pixel_values)
    return Features.join([encode(one) for one in torch.split(pixel_values, 1)])


def check_pixels(manifest: Manifest, pixel_values: torch.Tensor) -> None:
    """Raise ValueError unless pixel values have the shape that an encoder was exported for, of at least one image."""
    expected = family_of(manifest.sam_config).input_spec(manifest.sam_config).pixels
    actual = tuple(pixel_values.shape)
    if actual[1:] != tuple(expected[1:]) or not actual[0]:
        raise ValueError(f"pixel_values: this encoder takes {expected}, got {actual}")


def check_interface(
    path: Path,
    manifest: Manifest,
    part: str,
    inputs: Mapping[str, tuple[int | None, ...]],
    outputs: Collection[str],
) -> None:
    """Check that the inputs and outputs of a model file match the configuration in the manifest.

    Args:
        path: The file.
        manifest: The manifest.
        part: `encoder` or `decoder`.
        inputs: Shapes of the file's inputs by name; None for a dynamic dimension.
        outputs: Names of the file's outputs.

    Raises:
        CheckpointError: An input or output is missing, or an input has another shape. The number of images may be free.
    """
    spec = family_of(manifest.sam_config).input_spec(manifest.sam_config)
    expected: dict[str, tuple[int | None, ...]]
    if part == "encoder":
        expected = {"pixel_values": spec.pixels}
        names: tuple[str, ...] = tuple(spec.features)
    else:
        expected = {
            **spec.features,
            "point_coords": (None, None, 2),
            "point_labels": (None, None),
            "mask_input": (None, 1, spec.mask_size, spec.mask_size),
            "has_mask_input": (1,),
        }
        names = LOW_RES_OUTPUTS
    for name, shape in expected.items():
        if inputs.get(name) not in (shape, (None, *shape[1:])):
            actual = shorten(inputs[name]) if name in inputs else "none"
            raise CheckpointError(f"{path}: expected the input {name} of shape {shape}, got {actual}")
    missing = [name for name in names if name not in outputs]
    if missing:
        raise CheckpointError(f"{path}: expected the output {missing[0]}, got {shorten(sorted(outputs))}")


def as_array(tensor: torch.Tensor) -> NDArray[np.float32]:
    """Convert a tensor to a contiguous float32 array."""
    return np.ascontiguousarray(tensor.detach().cpu().float().numpy())


def choose_masks(
    manifest: Manifest, logits: NDArray[np.float32], ious: NDArray[np.float32], multimask_output: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Select each prompt's masks with their predicted IoUs, as the model itself does.

    Args:
        manifest: Manifest of the export.
        logits: [P, M, 4h, 4w] of an exported decoder, with M of 4, or 1 for `--single-mask`.
        ious: Predicted IoUs [P, M].
        multimask_output: Select all masks but the first.

    Returns:
        Logits [P, C, 4h, 4w] and predicted IoUs [P, C], with C of 3 or 1.

    Raises:
        ValueError: `multimask_output` is set for a decoder that was exported with `--single-mask`.
    """
    if logits.shape[1] == 1:
        if multimask_output:
            raise ValueError(
                "multimask_output: this decoder was exported with --single-mask, export it again without the option"
            )
        return torch.from_numpy(logits.copy()), torch.from_numpy(ious.copy())
    config = manifest.sam_config
    masks, predicted = torch.from_numpy(logits), torch.from_numpy(ious)
    masks, predicted = family_of(config).select_masks(config, masks, predicted, multimask_output)
    return masks.clone(), predicted.clone()
