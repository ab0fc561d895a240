"""ExecuTorch as a backend, through its runtime for Python."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saqsam.export.manifest import LOW_RES_OUTPUTS, Manifest
from saqsam.inference.prompts import Prompts
from saqsam.runtimes.inputs import as_array, check_interface, check_pixels, choose_masks, decoder_inputs
from saqsam.utils.errors import CheckpointError, shorten_message
from saqsam.utils.quiet_logging import quiet_logging

with quiet_logging():
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

_EMPTY = -2.0
"""Label of a place without a point; see `export.torch_decoder`."""


class ExecuTorchBackend:
    """Runs `encoder.pte` and `decoder.pte` on the CPU; see `Backend`. Threads may share it: they take turns.

    Args:
        folder: The exported folder.
        manifest: Its manifest.
        threads: Threads of XNNPACK, for all programs of the process; None for its own choice.

    Raises:
        CheckpointError: A program is damaged, or does not fit the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None) -> None:
        self.manifest = manifest
        if threads is not None:
            _unsafe_reset_threadpool(threads)
        self._encoder = _Method(manifest.model_file(folder, "encoder"))
        self._decoder = _Method(manifest.model_file(folder, "decoder"))
        self._check(folder)
        self._prompts, self._points, _ = self._decoder.largest(1)

    def _check(self, folder: Path) -> None:
        """Check what the programs take against the manifest; their names and outputs are not stored in the files."""
        for part, method, given in (
            ("encoder", self._encoder, ("pixel_values",)),
            (
                "decoder",
                self._decoder,
                ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input"),
            ),
        ):
            path = self.manifest.model_file(folder, part)
            if method.inputs != len(given):
                raise CheckpointError(f"{path}: expected {len(given)} inputs, got {method.inputs}")
            free = {"point_coords": 2, "point_labels": 2, "mask_input": 1}
            shapes: dict[str, tuple[int | None, ...]] = {}
            for index, name in enumerate(given):
                shape, dynamic = method.largest(index), free.get(name, 0)
                shapes[name] = (None,) * dynamic + shape[dynamic:]
            check_interface(path, self.manifest, part, shapes, (*LOW_RES_OUTPUTS, "image_embeddings"))

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
        CheckpointError: It cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # A method's inputs and outputs lie in memory that the program owns.
        self._lock = Lock()
        try:
            # The program owns what its method runs on.
            self._program = Runtime.get().load_program(path)
            method = self._program.load_method("forward")
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"{path}: ExecuTorch cannot load it: {shorten_message(error)}") from error
        if method is None:
            raise CheckpointError(f"{path}: ExecuTorch cannot load it: it has no method")
        self._method = method

    def largest(self, index: int) -> tuple[int, ...]:
        """The largest shape that an input may have."""
        return tuple(self._method.metadata.input_tensor_meta(index).sizes())

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return int(self._method.metadata.num_inputs())

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs, float32 on the CPU."""
        # Inputs of another memory layout would be read as if they had this one.
        given = [value.detach().cpu().float().contiguous() for value in inputs]
        with self._lock:
            try:
                return [value.clone() for value in self._method.execute(given)]
            except RuntimeError as error:
                raise CheckpointError(
                    f"{self._path}: ExecuTorch cannot run it: {shorten_message(error)}"
                ) from error
