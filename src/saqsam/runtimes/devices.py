"""Devices of the runtimes: from `cpu`, `cuda:1` or `gpu` to what each runtime calls them."""

from __future__ import annotations

import os
import re

import torch

AUTO = "auto"
_CUDA = re.compile(r"cuda(?::(\d{1,3}))?")
_REMOTE = "AzureExecutionProvider"
"""Listed by every build of ONNX Runtime, and no device."""


def resolve_device(runtime: str, device: str) -> str:
    """Return a runtime's own name of a device, before anything is loaded.

    Args:
        runtime: `onnxruntime`, `openvino` or `executorch`.
        device: `cpu`; `cuda` or `cuda:N` for ONNX Runtime; a device of OpenVINO such as `gpu`, `gpu.1` or `npu`; or
            `auto`: for ONNX Runtime a CUDA device where both ONNX Runtime and torch offer one, otherwise the CPU.

    Returns:
        `cpu` or `cuda:N` for ONNX Runtime, `CPU`, `GPU`, `GPU.1`, `NPU`, ... for OpenVINO, `cpu` for ExecuTorch.

    Raises:
        ValueError: The runtime does not know the device, or it is not available here.
    """
    name = device.strip().lower()
    if runtime == "onnxruntime":
        return _resolve_onnxruntime(device, name)
    if runtime == "openvino":
        return _resolve_openvino(device, name)
    if name not in (AUTO, "cpu"):
        raise _unusable(device, f"saqsam runs {runtime} on the CPU only")
    return "cpu"


def execution_providers(device: str) -> list[str | tuple[str, dict[str, int]]]:
    """Return ONNX Runtime's execution providers for a device that `resolve_device` returned."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    index = int(device.removeprefix("cuda:"))
    return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]


def _resolve_onnxruntime(device: str, name: str) -> str:
    import onnxruntime

    available = [provider for provider in onnxruntime.get_available_providers() if provider != _REMOTE]
    has_cuda = "CUDAExecutionProvider" in available
    if name == AUTO:
        # One device for each process of torchrun, as with models of torch.
        return (
            f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if has_cuda and torch.cuda.is_available() else "cpu"
        )
    if name == "cpu":
        return name
    match = _CUDA.fullmatch(name)
    if match is None:
        raise _unusable(device, "expected auto, cpu, cuda or cuda:N for onnxruntime")
    if not has_cuda:
        raise _unusable(device, f"this onnxruntime has only {', '.join(available)}; install onnxruntime-gpu")
    return f"cuda:{match[1] or 0}"


def _resolve_openvino(device: str, name: str) -> str:
    if name == AUTO:
        return "CPU"
    from saqsam.export.openvino_core import openvino_core

    available = openvino_core().available_devices
    wanted = name.replace(":", ".").upper()
    # GPU stands for the first of GPU.0, GPU.1, ...
    if wanted not in available and not any(other.startswith(f"{wanted}.") for other in available):
        raise _unusable(device, f"openvino finds only {', '.join(available)} on this machine")
    return wanted


def _unusable(device: str, reason: str) -> ValueError:
    return ValueError(f"--device {device} cannot be used: {reason}")
