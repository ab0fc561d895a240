"""ExecuTorch as a backend, through its runtime for Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saqsam.export.manifest import Manifest
from saqsam.prompts import Prompts
from saqsam.runtimes.inputs import as_array, check_pixels, choose_masks, decoder_inputs
from saqsam.silence import silent

with silent():
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

_EMPTY = -2.0
"""Label of a place without a point; see `export.torch_decoder`."""


class ExecuTorchBackend:
    """Runs `encoder.pte` and `decoder.pte` on the CPU; see `Backend`.

    Args:
        folder: The exported folder.
        manifest: Its manifest.
        threads: Of XNNPACK, for all programs of the process; None for its own choice.

    Raises:
        ValueError: If a program cannot be loaded.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None) -> None:
        self.manifest = manifest
        if threads is not None:
            _unsafe_reset_threadpool(threads)
        self._encoder = _Method(manifest.model_file(folder, "encoder"))
        self._decoder = _Method(manifest.model_file(folder, "decoder"))
        self._prompts, self._points, _ = self._decoder.largest(1)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See `Backend.encode`."""
        check_pixels(self.manifest, pixel_values)
        (embedding,) = self._encoder(pixel_values)
        return embedding

    def decode(
        self, embedding: torch.Tensor, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Backend.decode`.

        More prompts than one call takes are computed in several, and so are prompts with masks of their own.
        """
        if len(prompts) == 0:
            raise ValueError("prompt: expected at least one, got none")
        given = decoder_inputs(as_array(embedding), prompts)
        coords, labels = self._filled_up(given["point_coords"], given["point_labels"])
        masks, has_mask = given["mask_input"], given["has_mask_input"]
        at_once = 1 if prompts.mask_inputs is not None else self._prompts
        found = []
        for start in range(0, len(prompts), at_once):
            part = slice(start, start + at_once)
            mask = masks[part] if prompts.mask_inputs is not None else masks
            inputs = (given["image_embeddings"], coords[part], labels[part], mask, has_mask)
            found.append(self._decoder(*(torch.from_numpy(value) for value in inputs)))
        ious, logits = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
        return choose_masks(logits, ious, multimask_output)

    def _filled_up(
        self, coords: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Points [P, N, 2] and labels [P, N] with empty places up to the number that the decoder takes."""
        count, points = labels.shape
        if points > self._points:
            raise ValueError(
                f"prompt: this decoder takes {self._points} points a prompt, corners of its box and a closing point "
                f"included, got {points}"
            )
        all_coords = np.zeros((count, self._points, 2), np.float32)
        all_labels = np.full((count, self._points), _EMPTY, np.float32)
        all_coords[:, :points], all_labels[:, :points] = coords, labels
        return all_coords, all_labels


class _Method:
    """The one method of a program.

    Args:
        path: The file.

    Raises:
        ValueError: If it cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        try:
            # The program owns what its method runs on.
            self._program = Runtime.get().load_program(path)
            method = self._program.load_method("forward")
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{path} cannot be loaded by ExecuTorch: {error}") from error
        if method is None:
            raise ValueError(f"{path} cannot be loaded by ExecuTorch: it has no method")
        self._method = method

    def largest(self, index: int) -> tuple[int, ...]:
        """The largest shape that an input may have."""
        return tuple(self._method.metadata.input_tensor_meta(index).sizes())

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Outputs, float32 on the CPU. Inputs of another memory layout would be read as if they had this one."""
        return list(self._method.execute([value.detach().cpu().float().contiguous() for value in inputs]))
