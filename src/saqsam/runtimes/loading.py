"""Load exported folders into runtimes."""

from __future__ import annotations

from pathlib import Path

from transformers import SamProcessor

from saqsam.export.manifest import check_files, parse_manifest
from saqsam.runtimes.devices import AUTO
from saqsam.runtimes.interface import Runtime
from saqsam.runtimes.registry import RUNTIMES, check_runtime, check_version, default_runtime


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
        folder: Folder that `saqsam export` wrote.
        runtime: One of `RUNTIMES`: `onnxruntime`, `openvino` or `executorch`; None for the default of the folder's
            format.
        device: `cpu`, a device of the runtime (`cuda` or `cuda:N` for ONNX Runtime, `gpu` or `npu` for OpenVINO), or
            `auto`.
        threads: Threads of the runtime; None for all cores.
        precision: Precision of what is not quantized, for OpenVINO alone: `f32`, which the other runtimes use too, or
            None for OpenVINO's own choice, which is faster and differs between processors.

    Returns:
        A backend for `Predictor` and `evaluate`, and the processor that belongs to it.

    Raises:
        CheckpointError: The folder is not an export, or is damaged or altered.
        ValueError: The runtime or the device is unknown, missing or too old, or does not run the folder's format.
    """
    folder = Path(folder)
    manifest = parse_manifest(folder)
    runtime = runtime or default_runtime(manifest.format)
    check_runtime(runtime, manifest.format)
    check_version(runtime, manifest.least_version(runtime))
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    entry = RUNTIMES[runtime]
    settings = {"device": entry.resolve_device(device), "threads": threads, "precision": precision}
    check_files(folder, manifest)
    processor = manifest.read_processor(folder)
    backend = entry.load_backend()(folder, manifest, **{name: settings[name] for name in entry.settings})
    return backend, processor
