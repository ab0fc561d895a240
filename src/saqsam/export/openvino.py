"""Write a quantized SAM as OpenVINO IR: `encoder.xml` and `decoder.xml` with their `.bin`, read from ONNX graphs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import openvino
from transformers import SamModel

from saqsam.export.onnx.writer import write_onnx
from saqsam.export.openvino_core import openvino_core

LEAST_OPENVINO = "2025.0"
"""Oldest version of OpenVINO that saqsam supports."""


def write_openvino(
    model: SamModel, folder: Path, metadata: dict[str, str], *, single_mask: bool
) -> dict[str, Any]:
    """Write encoder and decoder into a folder.

    Args:
        model: The model.
        folder: Existing folder.
        metadata: Texts that are stored in both files, as runtime information.
        single_mask: Let the decoder return one mask per prompt.

    Returns:
        The least version of OpenVINO, for the manifest.

    Raises:
        ExportError: The recipe cannot be expressed by ONNX operators.
    """
    core = openvino_core()
    with tempfile.TemporaryDirectory(prefix="saqsam-") as name:
        write_onnx(model, Path(name), metadata, single_mask=single_mask)
        for part in ("encoder", "decoder"):
            # `read_model`, not `convert_model`, which would widen 4-bit weights and store constants that it folded.
            converted = core.read_model(Path(name) / f"{part}.onnx")
            for key, value in metadata.items():
                converted.set_rt_info(value, ["saqsam", key])
            openvino.save_model(converted, folder / f"{part}.xml", compress_to_fp16=False)
    return {"requires": {"openvino": LEAST_OPENVINO}}
