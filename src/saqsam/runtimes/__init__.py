"""Running exported folders: each runtime is a `Backend`, as torch is; and torch itself with integer products."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Protocol

from transformers import SamProcessor

from saqsam.export.manifest import Manifest, check_files, parse_manifest
from saqsam.inference.backend import Backend
from saqsam.runtimes.devices import AUTO, resolve_device
from saqsam.runtimes.torch_integer import (
    TORCH_INTEGER,
    compare_with_float,
    find_integer_layers,
    use_integer_kernels,
)

RUNTIMES = {"onnxruntime": ("onnx",), "openvino": ("openvino", "onnx"), "executorch": ("executorch",)}
"""Runtimes, and the formats that they run."""


class Runtime(Backend, Protocol):
    """A backend that runs an exported folder.

    Attributes:
        manifest: What the folder says of itself.
    """

    manifest: Manifest


def load_runtime(
    folder: str | Path,
    runtime: str | None = None,
    *,
    device: str = AUTO,
    threads: int | None = None,
    precision: str | None = "f32",
) -> tuple[Runtime, SamProcessor]:
    """Load an exported folder into a runtime.

    Args:
        folder: What `saqsam export` wrote.
        runtime: `onnxruntime`, `openvino` or `executorch`; None for that of the folder's format.
        device: `cpu`, a device of the runtime (`cuda` or `cuda:N` for ONNX Runtime, `gpu` or `npu` for OpenVINO), or
            `auto`; see `devices.resolve_device`.
        threads: Threads of the runtime; None for all cores.
        precision: For OpenVINO, see `OpenVinoBackend`: what computes beside the integers, `f32` as elsewhere, or None
            for its own choice, which is faster and differs from one processor to another.

    Returns:
        A backend for `Predictor` and `evaluate`, and the processor that goes with it.

    Raises:
        CheckpointError: The folder is no export, or is damaged or altered.
        ValueError: The runtime or the device is unknown, missing, or does not run the folder's format.
    """
    folder = Path(folder)
    manifest = parse_manifest(folder)
    runtime = runtime or default_runtime(manifest.format)
    check_runtime(runtime, manifest.format)
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    target = resolve_device(runtime, device)
    check_files(folder, manifest)
    processor = manifest.read_processor(folder)
    backend: Runtime
    if runtime == "openvino":
        from saqsam.runtimes.openvino import OpenVinoBackend

        backend = OpenVinoBackend(folder, manifest, threads, precision, target)
    elif runtime == "executorch":
        from saqsam.runtimes.executorch import ExecuTorchBackend

        backend = ExecuTorchBackend(folder, manifest, threads)
    else:
        from saqsam.runtimes.onnxruntime import OnnxRuntimeBackend

        backend = OnnxRuntimeBackend(folder, manifest, threads, target)
    return backend, processor


def check_runtime(runtime: str, format: str) -> None:
    """Raise ValueError unless a runtime is known, runs a format, and is installed."""
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime: expected one of {', '.join(RUNTIMES)}, got {runtime!r}")
    if format not in RUNTIMES[runtime]:
        raise ValueError(f"{runtime} does not run exports of the format {format}")
    if not is_installed(runtime):
        extra = "onnx" if runtime == "onnxruntime" else runtime
        raise ValueError(f"the package {runtime} is missing: pip install 'saqsam[{extra}]'")


def default_runtime(format: str) -> str:
    """Return the runtime that an export of a format runs in unless another is named."""
    return next(name for name, formats in RUNTIMES.items() if format in formats)


def is_installed(runtime: str) -> bool:
    """Return whether the package of a runtime is installed."""
    return importlib.util.find_spec(runtime) is not None


__all__ = [
    "RUNTIMES",
    "TORCH_INTEGER",
    "Runtime",
    "check_runtime",
    "compare_with_float",
    "default_runtime",
    "find_integer_layers",
    "is_installed",
    "load_runtime",
    "use_integer_kernels",
]
