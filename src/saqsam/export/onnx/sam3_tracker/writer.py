"""The graph writer of SAM 3's tracker."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import Sam3TrackerConfig, Sam3TrackerModel

from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.sam2.writer import Sam2GraphWriter
from saqsam.export.onnx.sam3_tracker.encoder import write_encoder
from saqsam.models.sam3_tracker.structure import sam3_tracker_structure


class Sam3TrackerGraphWriter(Sam2GraphWriter):
    """The `saqsam.export.onnx.writers.GraphWriter` of `Sam3TrackerModel`, whose decoder is SAM 2's."""

    def write_encoder(self, graph: Graph, model: Sam3TrackerModel, *, free_batch: bool = False) -> None:
        """Add the vision encoder to an empty graph."""
        write_encoder(graph, model, "images" if free_batch else 1)

    def block_scopes(self, config: Sam3TrackerConfig, part: str) -> Mapping[str, str]:
        """Return node-name prefixes by module name: encoder blocks or two-way layers."""
        structure = sam3_tracker_structure(config)
        if part == "encoder":
            return {name: f"/layers.{index}/" for index, name in enumerate(structure.blocks)}
        return {name: f"/mask_decoder/layers.{index}/" for index, name in enumerate(structure.decoder_layers)}
