"""OpenVINO as a backend: its own files, or those of ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino
import torch

from saqsam.export.manifest import LOW_RES_OUTPUTS, Manifest
from saqsam.prompts import Prompts
from saqsam.runtimes.inputs import as_array, check_pixels, choose_masks, decoder_inputs


class OpenVinoBackend:
    """Runs an exported folder on the CPU; see `Backend`.

    Args:
        folder: The exported folder.
        manifest: Its manifest.
        threads: Of inference; None for all cores.
        precision: In which what is not quantized is computed: `f32`, or None for OpenVINO's own choice, which is
            bf16 on processors that are fast at it.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, threads: int | None = None, precision: str | None = "f32"
    ) -> None:
        self.manifest = manifest
        settings: dict[str, Any] = {}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        if precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = precision
        core = openvino.Core()
        self._encoder = core.compile_model(
            core.read_model(manifest.model_file(folder, "encoder")), "CPU", settings
        )
        decoder = keep_results(core.read_model(manifest.model_file(folder, "decoder")), LOW_RES_OUTPUTS)
        self._decoder = core.compile_model(decoder, "CPU", settings)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See `Backend.encode`."""
        check_pixels(self.manifest, pixel_values)
        found = self._encoder([as_array(pixel_values)])
        return torch.from_numpy(found[0].copy())

    def decode(
        self, embedding: torch.Tensor, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Backend.decode`."""
        found = self._decoder(decoder_inputs(as_array(embedding), prompts))
        ious, logits = (found[name] for name in LOW_RES_OUTPUTS)
        return choose_masks(logits, ious, multimask_output)


def keep_results(model: openvino.Model, names: tuple[str, ...]) -> openvino.Model:
    """The part of a model that these outputs need."""
    outputs = [model.output(name) for name in names]
    results = [output.get_node() for output in outputs]
    needed: set[str] = set()
    waiting = list(results)
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in needed:
            needed.add(node.get_friendly_name())
            waiting.extend(value.get_source_output().get_node() for value in node.inputs())
    inputs = [node for node in model.get_parameters() if node.get_friendly_name() in needed]
    return openvino.Model(results, inputs, model.get_friendly_name())
