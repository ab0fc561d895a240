"""Inputs of exported encoders and decoders, and checks of their interface."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saqsam.export.manifest import LOW_RES_OUTPUTS, Manifest
from saqsam.inference.prompts import Prompts
from saqsam.models.registry import family_of
from saqsam.utils.errors import CheckpointError, shorten

BOX_LABELS = (2, 3)
PADDING_LABEL = -1


def decoder_inputs(embedding: NDArray[np.float32], prompts: Prompts) -> dict[str, NDArray[Any]]:
    """Return the inputs of an exported decoder for P prompts.

    Args:
        embedding: float32 [1, C, h, w].
        prompts: In the pixels of the model's input.

    Returns:
        By name, all float32. A box is two points; without one, a padding point closes the list, as SAM was trained.
    """
    count = len(prompts)
    coords, labels = [], []
    if prompts.points is not None and prompts.labels is not None:
        coords.append(prompts.points)
        labels.append(prompts.labels)
    if prompts.boxes is not None:
        coords.append(prompts.boxes.reshape(count, 2, 2))
        labels.append(torch.tensor(BOX_LABELS).expand(count, 2))
    else:
        coords.append(torch.zeros(count, 1, 2))
        labels.append(torch.full((count, 1), PADDING_LABEL))
    side = 4 * embedding.shape[-1]
    masks = prompts.mask_inputs
    given = np.zeros((1, 1, side, side), np.float32) if masks is None else as_array(masks[:, None])
    return {
        "image_embeddings": embedding,
        "point_coords": as_array(torch.cat([part.float() for part in coords], 1)),
        "point_labels": as_array(torch.cat([part.float() for part in labels], 1)),
        "mask_input": given,
        "has_mask_input": np.array([masks is not None], dtype=np.float32),
    }


def check_pixels(manifest: Manifest, pixel_values: torch.Tensor) -> None:
    """Raise ValueError if pixels are not of the size that an encoder was exported for."""
    wanted = family_of(manifest.sam_config).input_spec(manifest.sam_config).pixels
    if tuple(pixel_values.shape) != wanted:
        raise ValueError(f"pixel_values: this encoder takes {wanted}, got {tuple(pixel_values.shape)}")


def check_interface(
    path: Path,
    manifest: Manifest,
    part: str,
    inputs: Mapping[str, tuple[int | None, ...]],
    outputs: Collection[str],
) -> None:
    """Check that a model file takes and returns what the manifest's configuration says.

    Args:
        path: The file.
        manifest: The manifest.
        part: `encoder` or `decoder`.
        inputs: Shapes of the file's inputs by name, None for a dimension that is not constant.
        outputs: Names of the file's outputs.

    Raises:
        CheckpointError: An input or output is missing, or an input has another shape.
    """
    spec = family_of(manifest.sam_config).input_spec(manifest.sam_config)
    wanted: dict[str, tuple[int | None, ...]]
    if part == "encoder":
        wanted = {"pixel_values": spec.pixels}
        names: tuple[str, ...] = ("image_embeddings",)
    else:
        wanted = {
            "image_embeddings": spec.embedding,
            "point_coords": (None, None, 2),
            "point_labels": (None, None),
            "mask_input": (None, 1, spec.mask_size, spec.mask_size),
            "has_mask_input": (1,),
        }
        names = LOW_RES_OUTPUTS
    for name, shape in wanted.items():
        if inputs.get(name) != shape:
            found = shorten(inputs[name]) if name in inputs else "none"
            raise CheckpointError(f"{path}: expected the input {name} of shape {shape}, got {found}")
    missing = [name for name in names if name not in outputs]
    if missing:
        raise CheckpointError(f"{path}: expected the output {missing[0]}, got {shorten(sorted(outputs))}")


def as_array(tensor: torch.Tensor) -> NDArray[np.float32]:
    """Return a tensor as a contiguous float32 array."""
    return np.ascontiguousarray(tensor.detach().cpu().float().numpy())


def choose_masks(
    logits: NDArray[np.float32], ious: NDArray[np.float32], multimask_output: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a prompt's four masks the first, or the three others, with their predicted IoUs.

    Raises:
        ValueError: If three are wanted of a decoder that was exported to return one.
    """
    if logits.shape[1] == 1:
        if multimask_output:
            raise ValueError(
                "this decoder was exported with --single-mask: it has no three masks for a point"
            )
        chosen = slice(0, 1)
    else:
        chosen = slice(1, None) if multimask_output else slice(0, 1)
    return torch.from_numpy(logits[:, chosen].copy()), torch.from_numpy(ious[:, chosen].copy())
