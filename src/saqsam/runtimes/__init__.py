"""Running exported folders: each runtime is a `Backend`, as torch is; and torch itself with integer products."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Protocol

from transformers import SamProcessor

from saqsam.backend import Backend
from saqsam.export.manifest import Manifest, read_manifest
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
    threads: int | None = None,
    precision: str | None = "f32",
) -> tuple[Runtime, SamProcessor]:
    """Load an exported folder into a runtime.

    Args:
        folder: What `saqsam export` wrote.
        runtime: `onnxruntime`, `openvino` or `executorch`; None for that of the folder's format.
        threads: Of the runtime; None for all cores.
        precision: For OpenVINO, see `OpenVinoBackend`: what computes beside the integers, `f32` as elsewhere, or None
            for its own choice, which is faster and differs from one processor to another.

    Returns:
        A backend for `Predictor` and `evaluate`, and the processor that goes with it.

    Raises:
        ValueError: If the folder is damaged or no export, or the runtime is missing or does not run its format.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if runtime is None:
        runtime = next(name for name, formats in RUNTIMES.items() if manifest.format in formats)
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime: expected one of {', '.join(RUNTIMES)}, got {runtime!r}")
    if manifest.format not in RUNTIMES[runtime]:
        raise ValueError(f"{folder} holds files of {manifest.format}, which {runtime} does not run")
    if importlib.util.find_spec(runtime) is None:
        extra = "onnx" if runtime == "onnxruntime" else runtime
        raise ValueError(f"the package {runtime} is missing: pip install 'saqsam[{extra}]'")
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    backend: Runtime
    if runtime == "openvino":
        from saqsam.runtimes.openvino import OpenVinoBackend

        backend = OpenVinoBackend(folder, manifest, threads, precision)
    elif runtime == "executorch":
        from saqsam.runtimes.executorch import ExecuTorchBackend

        backend = ExecuTorchBackend(folder, manifest, threads)
    else:
        from saqsam.runtimes.onnxruntime import OnnxRuntimeBackend

        backend = OnnxRuntimeBackend(folder, manifest, threads)
    return backend, manifest.processor(folder)


__all__ = [
    "RUNTIMES",
    "TORCH_INTEGER",
    "Runtime",
    "compare_with_float",
    "find_integer_layers",
    "load_runtime",
    "use_integer_kernels",
]
