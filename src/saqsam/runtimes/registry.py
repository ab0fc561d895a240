"""The runtimes of exported folders, one entry each; imports none of them, nor torch."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saqsam.utils.extras import install_command

if TYPE_CHECKING:
    from saqsam.runtimes.interface import Runtime

TORCH = "torch"
TORCH_INTEGER = "torch-int8"
"""Torch with integer products. Like `TORCH` it runs checkpoints, while `RUNTIMES` run exported folders."""


@dataclass(frozen=True)
class RuntimeEntry:
    """A runtime of exported folders.

    Attributes:
        name: Name of the runtime, and of the package that it is in.
        extra: Extra of saqsam that installs the package.
        formats: Formats that it runs. The first entry of `RUNTIMES` that runs a format is its default runtime.
        backend: `module:class` of its `Runtime`, called as `backend(folder, manifest, **settings)`.
        settings: Keyword arguments of the class: `device`, `threads`, `precision`.
        device_resolver: `module:function` from a device as users name it to the runtime's name of it.
        devices: Devices beside `auto` and `cpu`, for the help of the command line.
    """

    name: str
    extra: str
    formats: tuple[str, ...]
    backend: str
    settings: tuple[str, ...]
    device_resolver: str
    devices: tuple[str, ...] = ()

    def is_installed(self) -> bool:
        """Return whether the package of the runtime is installed."""
        return importlib.util.find_spec(self.name) is not None

    def load_backend(self) -> Callable[..., Runtime]:
        """Import the class that runs exported folders."""
        backend: Callable[..., Runtime] = pkgutil.resolve_name(self.backend)
        return backend

    def resolve_device(self, device: str) -> Any:
        """Return the runtime's own name of a device.

        Raises:
            ValueError: The runtime does not know the device, or this machine does not have it.
        """
        return pkgutil.resolve_name(self.device_resolver)(device)


RUNTIMES = {
    entry.name: entry
    for entry in (
        RuntimeEntry(
            name="onnxruntime",
            extra="onnx",
            formats=("onnx", "web"),
            backend="saqsam.runtimes.onnxruntime:OnnxRuntimeBackend",
            settings=("device", "threads"),
            device_resolver="saqsam.runtimes.devices:resolve_onnxruntime",
            devices=("cuda",),
        ),
        RuntimeEntry(
            name="openvino",
            extra="openvino",
            formats=("openvino", "onnx", "web"),
            backend="saqsam.runtimes.openvino:OpenVinoBackend",
            settings=("device", "threads", "precision"),
            device_resolver="saqsam.runtimes.devices:resolve_openvino",
            devices=("gpu", "npu"),
        ),
        RuntimeEntry(
            name="executorch",
            extra="executorch",
            formats=("executorch",),
            backend="saqsam.runtimes.executorch:ExecuTorchBackend",
            settings=("threads",),
            device_resolver="saqsam.runtimes.devices:resolve_executorch",
        ),
    )
}
"""The runtimes by name."""


def check_runtime(runtime: str, format: str) -> None:
    """Check that a runtime is known, runs a format and is installed.

    Raises:
        ValueError: It is not.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime: expected one of {', '.join(RUNTIMES)}, got {runtime!r}")
    entry = RUNTIMES[runtime]
    if format not in entry.formats:
        raise ValueError(f"{runtime} does not run exports of the format {format}")
    if not entry.is_installed():
        raise ValueError(f"the package {runtime} is missing: {install_command(entry.extra)}")


def check_version(runtime: str, least: str | None) -> None:
    """Check that an installed runtime is not older than a version, such as `1.18`; None for any.

    Raises:
        ValueError: It is.
    """
    if least is None:
        return
    installed: str = getattr(importlib.import_module(runtime), "__version__", least)
    parts = [[int(number) for number in re.findall(r"\d+", text)[:2]] for text in (installed, least)]
    if parts[0] < parts[1]:
        raise ValueError(
            f"this export needs {runtime} {least} or newer, found {installed}: update it, or export again for an older "
            "one (saqsam export --opset)"
        )


def default_runtime(format: str) -> str:
    """Return the runtime that runs exports of a format unless another is named."""
    return next(entry.name for entry in RUNTIMES.values() if format in entry.formats)


def installed_runtimes(format: str) -> list[str]:
    """Return the installed runtimes that run a format, its default runtime first."""
    names = [name for name, entry in RUNTIMES.items() if format in entry.formats and entry.is_installed()]
    return sorted(names, key=lambda name: name != default_runtime(format))
