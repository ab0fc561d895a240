"""OpenVINO IR of a quantized SAM, converted from the ONNX graphs: `encoder.xml` and `decoder.xml` with their `.bin`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import openvino
from transformers import SamModel

from saqsam.export.onnx.writer import write_onnx
from saqsam.export.openvino_core import openvino_core


def write_openvino(
    model: SamModel, folder: Path, metadata: dict[str, str], *, single_mask: bool
) -> dict[str, Any]:
    """Write both models into a folder; a `Writer`."""
    core = openvino_core()
    with tempfile.TemporaryDirectory(prefix="saqsam-") as name:
        write_onnx(model, Path(name), metadata, single_mask=single_mask)
        for part in ("encoder", "decoder"):
            # Read, not converted: conversion would widen 4-bit weights and store what follows from others.
            converted = core.read_model(Path(name) / f"{part}.onnx")
            for key, value in metadata.items():
                converted.set_rt_info(value, ["saqsam", key])
            openvino.save_model(converted, folder / f"{part}.xml", compress_to_fp16=False)
    return {}
