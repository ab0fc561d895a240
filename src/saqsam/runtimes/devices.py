"""Resolve device names such as `auto`, `cpu`, `cuda:1` or `gpu` to each runtime's own names.

Every `resolve_` function takes a device name in any case, before anything is loaded, and raises ValueError if the
runtime does not support the device or the machine lacks it.
"""

from __future__ import annotations

import os
import re

import torch

AUTO = "auto"
_CUDA = re.compile(r"cuda(?::(\d{1,3}))?")
_REMOTE = "AzureExecutionProvider"
"""Provider that every build of ONNX Runtime lists although it is no device."""


def execution_providers(device: str) -> list[str | tuple[str, dict[str, int]]]:
    """Return ONNX Runtime's execution providers for a device from `resolve_onnxruntime`."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    index = int(device.removeprefix("cuda:"))
    return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]


def resolve_onnxruntime(device: str) -> str:
    """Return `cpu` or `cuda:N`; `auto` is a CUDA device where both ONNX Runtime and torch offer one."""
    name = device.strip().lower()
    import onnxruntime

    available = [provider for provider in onnxruntime.get_available_providers() if provider != _REMOTE]
    has_cuda = "CUDAExecutionProvider" in available
    if name == AUTO:
        # Each process of torchrun uses its own device, as with torch models.
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


def resolve_openvino(device: str) -> str:
    """Return OpenVINO's name of a device, such as `CPU`, `GPU`, `GPU.1` or `NPU`; `auto` is `CPU`."""
    name = device.strip().lower()
    if name == AUTO:
        return "CPU"
    from saqsam.export.openvino_core import openvino_core

    available = openvino_core().available_devices
    resolved = name.replace(":", ".").upper()
    # GPU stands for the first of GPU.0, GPU.1, ...
    if resolved not in available and not any(other.startswith(f"{resolved}.") for other in available):
        raise _unusable(device, f"openvino finds only {', '.join(available)} on this machine")
    return resolved


def resolve_executorch(device: str) -> str:
    """Return `cpu`, the only device for which saqsam exports ExecuTorch programs."""
    if device.strip().lower() not in (AUTO, "cpu"):
        raise _unusable(device, "saqsam runs executorch on the CPU only")
    return "cpu"


def _unusable(device: str, reason: str) -> ValueError:
    return ValueError(f"device {device} cannot be used: {reason}")
