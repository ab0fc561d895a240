"""The ONNX Runtime backend."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from saqsam.export.manifest import LOW_RES_OUTPUTS, Manifest
from saqsam.export.onnx.folding import fold_weights
from saqsam.export.onnx.reader import read_onnx
from saqsam.export.onnx.writer import keep_outputs
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.runtimes.cpu import has_dot_products
from saqsam.runtimes.devices import execution_providers
from saqsam.runtimes.inputs import (
    as_array,
    check_interface,
    check_pixels,
    choose_masks,
    encode_each,
    exported_inputs,
    feature_names,
    to_features,
)
from saqsam.utils.errors import CheckpointError, shorten_message


class OnnxRuntimeBackend:
    """Backend that runs `encoder.onnx` and `decoder.onnx`. Threads may share it.

    Args:
        folder: The exported folder.
        manifest: Its manifest.
        threads: Threads per session; None for all cores.
        device: `cpu` or `cuda:N`.

    Raises:
        CheckpointError: A file is damaged, or does not fit the manifest.
        ValueError: ONNX Runtime cannot use the device.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, threads: int | None = None, device: str = "cpu"
    ) -> None:
        self.manifest = manifest
        self._encoder = _Session(manifest, folder, "encoder", None, threads, device)
        # Without the full-size masks: the predictor resizes only the masks that it returns.
        self._decoder = _Session(manifest, folder, "decoder", LOW_RES_OUTPUTS, threads, device)

    def encode(self, pixel_values: torch.Tensor) -> Features:
        """Encode images, as `Backend.encode`; one after the other unless the export leaves their number free."""
        if not self._encoder.has_free_batch:
            return encode_each(self.manifest, pixel_values, self._encode)
        check_pixels(self.manifest, pixel_values)
        return self._encode(pixel_values)

    def _encode(self, pixel_values: torch.Tensor) -> Features:
        inputs = {"pixel_values": as_array(pixel_values)}
        return to_features(self._encoder.run(feature_names(self.manifest), inputs))

    def decode(
        self, features: Features, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict masks, as `Backend.decode`."""
        inputs = exported_inputs(self.manifest, features, prompts)
        ious, logits = self._decoder.run(LOW_RES_OUTPUTS, inputs)
        return choose_masks(self.manifest, logits, ious, multimask_output)


class _Session:
    """Model file in ONNX Runtime.

    Args:
        manifest: Manifest of the folder.
        folder: The exported folder.
        part: `encoder` or `decoder`.
        outputs: Outputs to compute; None for all.
        threads: Threads of the session; None for all cores.
        device: `cpu` or `cuda:N`.

    Attributes:
        has_free_batch: Whether the encoder takes any number of images.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        part: str,
        outputs: Sequence[str] | None,
        threads: int | None,
        device: str,
    ) -> None:
        self._path = manifest.model_file(folder, part)
        model = read_onnx(self._path)
        shapes = {value.name: _shape(value) for value in model.graph.input}
        check_interface(self._path, manifest, part, shapes, {value.name for value in model.graph.output})
        self.has_free_batch = part == "encoder" and shapes["pixel_values"][0] is None
        if outputs is not None:
            keep_outputs(model, set(outputs))
        fold_weights(model)
        content = model.SerializeToString()
        del model
        try:
            self._session = session(content, threads, device)
        # ONNX Runtime's exceptions have no common class.
        except Exception as error:
            if device != "cpu":
                raise ValueError(f"device {device} cannot be used: {shorten_message(error)}") from error
            raise CheckpointError(
                f"{self._path}: ONNX Runtime cannot load it: {shorten_message(error)}"
            ) from error
        if device != "cpu" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise ValueError(
                f"device {device} cannot be used: ONNX Runtime could not start CUDAExecutionProvider"
            )

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        try:
            return list(self._session.run(list(outputs), dict(inputs)))
        except Exception as error:  # no common class either
            raise CheckpointError(
                f"{self._path}: ONNX Runtime cannot run it: {shorten_message(error)}"
            ) from error


def session(
    model: str | bytes, threads: int | None, device: str = "cpu", *, optimized: bool = True
) -> onnxruntime.InferenceSession:
    """Create an inference session.

    Args:
        model: Path or content of an ONNX file.
        threads: Threads of the session; None for all cores.
        device: `cpu` or `cuda:N`.
        optimized: Let ONNX Runtime fuse nodes; otherwise it runs every node of the graph on its own.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4 if device == "cpu" else 3
    if not has_dot_products():
        # Products of unsigned and signed bytes saturate in 16 bits. With this entry, ONNX Runtime makes the weights
        # unsigned, which takes 1.5 times as long where there are dot products.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with warnings.catch_warnings():
        # An exception reports a provider that does not start, so its warning would be a duplicate.
        warnings.simplefilter("ignore")
        return onnxruntime.InferenceSession(model, options, providers=execution_providers(device))


def _shape(value: Any) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
