"""The OpenVINO backend, for OpenVINO IR and ONNX files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray

from saqsam.export.manifest import LOW_RES_OUTPUTS, Manifest
from saqsam.export.openvino_core import make_exact, openvino_core
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.models.registry import family_of
from saqsam.runtimes.inputs import (
    as_array,
    check_interface,
    choose_masks,
    encode_each,
    exported_inputs,
    feature_names,
    to_features,
)
from saqsam.utils.errors import CheckpointError, shorten_message


class OpenVinoBackend:
    """Backend that runs an exported folder. Threads may share it; their calls are serialized.

    On processors where OpenVINO's integer products saturate, which changes masks, layers compute in float32.

    Args:
        folder: The exported folder.
        manifest: Its manifest.
        threads: Threads of inference on the CPU; None for all cores.
        precision: Precision of float operations: `f32`, or None for OpenVINO's default, which is bf16 on processors
            with fast bf16 instructions.
        device: OpenVINO's name of the device, such as `CPU` or `GPU`.

    Raises:
        CheckpointError: A file is damaged, does not fit the manifest, or cannot be compiled.
        ValueError: OpenVINO cannot use the device.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        threads: int | None = None,
        precision: str | None = "f32",
        device: str = "CPU",
    ) -> None:
        self.manifest = manifest
        settings: dict[str, Any] = {}
        if threads is not None and device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = threads
        if precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = precision
        self._encoder = _Compiled(manifest, folder, "encoder", feature_names(manifest), settings, device)
        self._decoder = _Compiled(manifest, folder, "decoder", LOW_RES_OUTPUTS, settings, device)

    def encode(self, pixel_values: torch.Tensor) -> Features:
        """Encode images, as `Backend.encode`, one after the other."""
        return encode_each(
            self.manifest,
            pixel_values,
            lambda one: to_features(self._encoder.run({"pixel_values": as_array(one)})),
        )

    def decode(
        self, features: Features, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict masks, as `Backend.decode`."""
        ious, logits = self._decoder.run(exported_inputs(self.manifest, features, prompts))
        return choose_masks(self.manifest, logits, ious, multimask_output)


class _Compiled:
    """One model file in OpenVINO.

    Args:
        manifest: Manifest of the folder.
        folder: The exported folder.
        part: `encoder` or `decoder`.
        outputs: Outputs to compute.
        settings: OpenVINO's configuration.
        device: OpenVINO's name of the device.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        part: str,
        outputs: Sequence[str],
        settings: Mapping[str, Any],
        device: str,
    ) -> None:
        self._path = manifest.model_file(folder, part)
        self._outputs = outputs
        # A compiled model has one inference request, which only one thread at a time can use.
        self._lock = Lock()
        core = openvino_core()
        model = read_model(core, self._path)
        check_interface(
            self._path,
            manifest,
            part,
            {value.get_any_name(): _shape(value) for value in model.inputs},
            {name for value in model.outputs for name in value.get_names()},
        )
        if part == "encoder":
            # With a free batch, OpenVINO (2026.4) computes other embeddings of quantized models, and is slower.
            model.reshape(family_of(manifest.sam_config).input_spec(manifest.sam_config).pixels)
        kept = keep_results(model, outputs)
        exact = make_exact(kept) if device == "CPU" else {}
        try:
            self._compiled = core.compile_model(kept, device, {**settings, **exact})
        except RuntimeError as error:
            if device != "CPU":
                raise ValueError(f"device {device} cannot be used: {_reason(error)}") from error
            raise CheckpointError(f"{self._path}: OpenVINO cannot compile it: {_reason(error)}") from error

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        with self._lock:
            try:
                results = self._compiled(dict(inputs))
            except RuntimeError as error:
                raise CheckpointError(f"{self._path}: OpenVINO cannot run it: {_reason(error)}") from error
            # Copies, because the next call writes into the same memory.
            return [results[name].copy() for name in self._outputs]


def read_model(core: openvino.Core, path: Path) -> openvino.Model:
    """Read an ONNX or OpenVINO IR file.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        if path.suffix == ".onnx":
            from saqsam.export.onnx.reader import read_onnx

            return core.read_model(read_onnx(path).SerializeToString())
        return core.read_model(path)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: OpenVINO cannot read it: {_reason(error)}") from error


def keep_results(model: openvino.Model, names: Sequence[str]) -> openvino.Model:
    """Return the part of a model that computes some of its outputs."""
    outputs = [model.output(name) for name in names]
    results = [output.get_node() for output in outputs]
    needed: set[str] = set()
    waiting = list(results)
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in needed:
            needed.add(node.get_friendly_name())
            waiting.extend(value.get_source_output().get_node() for value in node.inputs())
    inputs = [node for node in model.get_parameters() if node.get_friendly_name() in needed]
    return openvino.Model(results, inputs, model.get_friendly_name())


def _shape(value: Any) -> tuple[int | None, ...]:
    shape = value.get_partial_shape()
    return tuple(d.get_length() if d.is_static else None for d in shape) if shape.rank.is_static else ()


def _reason(error: RuntimeError) -> str:
    """Return the last line of an OpenVINO exception; the lines before it are locations in OpenVINO's source."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return shorten_message(lines[-1] if lines else error)
