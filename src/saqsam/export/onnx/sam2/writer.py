"""The graph writer of SAM 2."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import Sam2Config, Sam2Model

from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.sam2.decoder import write_decoder, write_image_positions
from saqsam.export.onnx.sam2.encoder import write_encoder
from saqsam.models.sam2.structure import sam2_structure


class Sam2GraphWriter:
    """The `saqsam.export.onnx.writers.GraphWriter` of `Sam2Model`."""

    def write_encoder(self, graph: Graph, model: Sam2Model, *, free_batch: bool = False) -> None:
        """Add the vision encoder to an empty graph."""
        write_encoder(graph, model, "images" if free_batch else 1)

    def write_decoder(self, graph: Graph, model: Sam2Model, *, single_mask: bool) -> None:
        """Add prompt encoder and mask decoder to an empty graph."""
        write_decoder(graph, model, single_mask=single_mask)

    def write_image_positions(self, graph: Graph, model: Sam2Model) -> None:
        """Add the positional embedding of the image tokens, as an output of the graph."""
        write_image_positions(graph, model)

    def block_scopes(self, config: Sam2Config, part: str) -> Mapping[str, str]:
        """Return node-name prefixes by module name: encoder blocks or two-way layers."""
        structure = sam2_structure(config)
        if part == "encoder":
            return {name: f"/blocks.{index}/" for index, name in enumerate(structure.blocks)}
        return {name: f"/mask_decoder/layers.{index}/" for index, name in enumerate(structure.decoder_layers)}
