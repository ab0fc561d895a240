"""Quantize sam-mini to 8 bits by NNCF for comparison, with the calibration set of saqsam's methods.

Of the encoder NNCF is given `torch.onnx.export`'s file: on saqsam's own float graph it fails (3.4.0, a KeyError for a
node that it has folded). The decoder is saqsam's float graph, which has the inputs that the backend gives.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx
import torch
from transformers import SamModel, SamProcessor

import saqsam
from latency_models import export_default
from saqsam.data.types import Dataset
from saqsam.export.manifest import LOW_RES_OUTPUTS, Manifest
from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.sam.decoder import write_decoder
from saqsam.export.onnx.writer import keep_outputs
from saqsam.inference.backend import TorchBackend
from saqsam.ptq.calibration_images import choose_calibration_images
from saqsam.recipes.specs import Calibration
from saqsam.runtimes.inputs import as_array, decoder_inputs
from saqsam.runtimes.openvino import OpenVinoBackend
from saqsam.utils.atomic_write import atomic_folder

NAME = "nncf-w8a8"
SCRIPTS = tuple(
    Path(__file__).with_name(name) for name in ("nncf_model.py", "latency_models.py", "other_tools.py")
)
"""Scripts that its files depend on, for the name of their folder."""


def nncf_backend(
    folder: Path, data: Dataset, spec: Calibration, python: str, threads: int, precision: str | None
) -> tuple[OpenVinoBackend, SamProcessor]:
    """Return the quantized model in OpenVINO, quantized if it is not cached, and its processor.

    Args:
        folder: Where its files lie.
        data: To calibrate on.
        spec: Which images and prompts of it.
        python: An interpreter that has NNCF.
        threads: Of OpenVINO.
        precision: See `OpenVinoBackend`.
    """
    model, processor = saqsam.load("sam-mini")
    if not folder.exists():
        with atomic_folder(folder) as partial:
            _write_float(model, partial)
            _write_inputs(model, processor, data, spec, partial)
            script = Path(__file__).with_name("other_tools.py")
            for part in ("encoder", "decoder"):
                samples = sorted(map(str, partial.glob(f"{part}-*.npz")))
                names = [str(partial / f"{part}.{ending}") for ending in ("onnx", "xml")]
                subprocess.run([python, str(script), "nncf", *names, *samples], check=True)
    manifest = Manifest("openvino", False, {}, NAME, "", model.config.to_dict())
    return OpenVinoBackend(folder, manifest, threads, precision), processor


def _write_float(model: SamModel, folder: Path) -> None:
    export_default(model, "encoder", 0, folder / "encoder.onnx")
    decoder = Graph("decoder")
    write_decoder(decoder, model)
    onnx.save(keep_outputs(decoder.model({}), set(LOW_RES_OUTPUTS)), folder / "decoder.onnx")


@torch.inference_mode()
def _write_inputs(
    model: SamModel, processor: SamProcessor, data: Dataset, spec: Calibration, folder: Path
) -> None:
    """Write the inputs of the float model's encoder and decoder for the calibration images and prompts."""
    chosen = choose_calibration_images(model, processor, data, spec)
    backend = TorchBackend(model)
    for index in range(len(chosen)):
        pixels, prompts = chosen[index]
        np.savez(folder / f"encoder-{index:03}.npz", pixel_values=as_array(pixels))
        features = {"image_embeddings": as_array(backend.encode(pixels).embedding)}
        np.savez(folder / f"decoder-{index:03}.npz", **decoder_inputs(features, prompts))
