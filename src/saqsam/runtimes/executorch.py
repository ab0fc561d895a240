"""The ExecuTorch backend, which uses ExecuTorch's Python runtime."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saqsam.export.executorch.sam.decoder import EMPTY_LABEL
from saqsam.export.manifest import LOW_RES_OUTPUTS, Manifest
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.runtimes.inputs import (
    check_interface,
    choose_masks,
    encode_each,
    exported_inputs,
    feature_names,
)
from saqsam.utils.errors import CheckpointError, shorten_message
from saqsam.utils.quiet_logging import quiet_logging

with quiet_logging():
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

_PROMPT_INPUTS = ("point_coords", "point_labels", "mask_input", "has_mask_input")
_DYNAMIC_DIMENSIONS = {"point_coords": 2, "point_labels": 2, "mask_input": 1}
"""Number of leading dimensions of an input that may vary between calls or be split over several calls."""


class ExecuTorchBackend:
    """Backend that runs `encoder.pte` and `decoder.pte` on the CPU. Threads may share it; their calls are serialized.

    Args:
        folder: The exported folder.
        manifest: Its manifest.
        threads: Threads of XNNPACK for all programs of the process; None for XNNPACK's default.

    Raises:
        CheckpointError: A program is damaged, or does not fit the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None) -> None:
        self.manifest, self._features = manifest, feature_names(manifest)
        if threads is not None:
            _unsafe_reset_threadpool(threads)
        self._encoder = _Method(manifest.model_file(folder, "encoder"))
        self._decoder = _Method(manifest.model_file(folder, "decoder"))
        self._check(folder)
        self._max_prompts, self._max_points, _ = self._decoder.largest(len(self._features))

    def _check(self, folder: Path) -> None:
        """Compare the programs' inputs with the manifest. Programs store neither input names nor outputs."""
        for part, method, names in (
            ("encoder", self._encoder, ("pixel_values",)),
            ("decoder", self._decoder, (*self._features, *_PROMPT_INPUTS)),
        ):
            path = self.manifest.model_file(folder, part)
            if method.inputs != len(names):
                raise CheckpointError(f"{path}: expected {len(names)} inputs, got {method.inputs}")
            shapes: dict[str, tuple[int | None, ...]] = {}
            for index, name in enumerate(names):
                shape, dynamic = method.largest(index), _DYNAMIC_DIMENSIONS.get(name, 0)
                shapes[name] = (None,) * dynamic + shape[dynamic:]
            check_interface(path, self.manifest, part, shapes, (*LOW_RES_OUTPUTS, *self._features))

    def encode(self, pixel_values: torch.Tensor) -> Features:
        """Encode images, as `Backend.encode`, one after the other."""
        return encode_each(self.manifest, pixel_values, self._encode_one)

    def _encode_one(self, pixel_values: torch.Tensor) -> Features:
        embedding, *extras = self._encoder(pixel_values)
        return Features(embedding, tuple(extras))

    def decode(
        self, features: Features, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict masks, as `Backend.decode`.

        Runs the program several times for more prompts than it takes at once, and for prompts with different masks.
        """
        if len(prompts) == 0:
            raise ValueError("prompt: expected at least one, got none")
        inputs = exported_inputs(self.manifest, features, prompts)
        coords, labels = self._pad_points(inputs["point_coords"], inputs["point_labels"])
        masks, has_mask = inputs["mask_input"], inputs["has_mask_input"]
        step = 1 if prompts.mask_inputs is not None else self._max_prompts
        outputs = []
        for start in range(0, len(prompts), step):
            part = slice(start, start + step)
            mask = masks[part] if prompts.mask_inputs is not None else masks
            maps = (inputs[name] for name in self._features)
            chunk = (*maps, coords[part], labels[part], mask, has_mask)
            # Outputs of further heads follow the IoUs and masks.
            outputs.append(self._decoder(*(torch.from_numpy(value) for value in chunk))[:2])
        ious, logits = (torch.cat(parts).numpy() for parts in zip(*outputs, strict=True))
        return choose_masks(self.manifest, logits, ious, multimask_output)

    def _pad_points(
        self, coords: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Pad points [P, N, 2] and labels [P, N] to the number of points that the decoder takes."""
        count, points = labels.shape
        if points > self._max_points:
            raise ValueError(
                f"prompt: this decoder takes {self._max_points} points a prompt, corners of its box and a padding "
                f"point included, got {points}"
            )
        all_coords = np.zeros((count, self._max_points, 2), np.float32)
        all_labels = np.full((count, self._max_points), EMPTY_LABEL, np.float32)
        all_coords[:, :points], all_labels[:, :points] = coords, labels
        return all_coords, all_labels


class _Method:
    """The `forward` method of a program.

    Args:
        path: The program.

    Raises:
        CheckpointError: The program cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Inputs and outputs of a method lie in memory that the program owns, so calls are serialized.
        self._lock = Lock()
        try:
            # Keep a reference: the program owns the memory of its method.
            self._program = Runtime.get().load_program(path)
            method = self._program.load_method("forward")
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"{path}: ExecuTorch cannot load it: {shorten_message(error)}") from error
        if method is None:
            raise CheckpointError(f"{path}: ExecuTorch cannot load it: it has no method")
        self._method = method

    def largest(self, index: int) -> tuple[int, ...]:
        """Return the largest shape of an input."""
        return tuple(self._method.metadata.input_tensor_meta(index).sizes())

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return int(self._method.metadata.num_inputs())

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Run the method; inputs and outputs are float32 on the CPU."""
        # ExecuTorch assumes contiguous inputs.
        values = [value.detach().cpu().float().contiguous() for value in inputs]
        with self._lock:
            try:
                return [value.clone() for value in self._method.execute(values)]
            except RuntimeError as error:
                raise CheckpointError(
                    f"{self._path}: ExecuTorch cannot run it: {shorten_message(error)}"
                ) from error
