"""ONNX Runtime as a backend."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch

from saqsam.export.manifest import LOW_RES_OUTPUTS, Manifest
from saqsam.export.to_onnx import without_masks
from saqsam.prompts import Prompts
from saqsam.runtimes.inputs import as_array, check_pixels, choose_masks, decoder_inputs


class OnnxRuntimeBackend:
    """Runs `encoder.onnx` and `decoder.onnx` on the CPU; see `Backend`.

    Args:
        folder: The exported folder.
        manifest: Its manifest.
        threads: Of a session; None for all cores.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None) -> None:
        self.manifest = manifest
        self._encoder = session(str(manifest.model_file(folder, "encoder")), threads)
        # Large masks are the predictor's: it makes only those that are chosen.
        decoder = without_masks(manifest.model_file(folder, "decoder"))
        self._decoder = session(decoder.SerializeToString(), threads)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See `Backend.encode`."""
        check_pixels(self.manifest, pixel_values)
        (embedding,) = self._encoder.run(None, {"pixel_values": as_array(pixel_values)})
        return torch.from_numpy(embedding)

    def decode(
        self, embedding: torch.Tensor, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Backend.decode`."""
        inputs = decoder_inputs(as_array(embedding), prompts)
        ious, logits = self._decoder.run(list(LOW_RES_OUTPUTS), inputs)
        return choose_masks(logits, ious, multimask_output)


def session(model: str | bytes, threads: int | None) -> onnxruntime.InferenceSession:
    """An inference session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Unsigned times signed bytes saturate in 16 bits on processors without 8-bit dot products: there, and there
    # alone, ONNX Runtime then makes the weights unsigned too.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
