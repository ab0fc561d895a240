"""The graph writer of SAM v1."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import SamConfig, SamModel

from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.sam.decoder import write_decoder, write_image_positions
from saqsam.export.onnx.sam.encoder import write_encoder
from saqsam.export.onnx.sam.encoder_attention import EncoderOptions
from saqsam.models.sam.structure import sam_structure


class SamGraphWriter:
    """The `saqsam.export.onnx.writers.GraphWriter` of `SamModel`."""

    def write_encoder(self, graph: Graph, model: SamModel, *, free_batch: bool = False) -> None:
        """Add the vision encoder to an empty graph."""
        write_encoder(graph, model, EncoderOptions(images="images" if free_batch else 1))

    def write_decoder(self, graph: Graph, model: SamModel, *, single_mask: bool) -> None:
        """Add prompt encoder and mask decoder to an empty graph."""
        write_decoder(graph, model, single_mask=single_mask)

    def write_image_positions(self, graph: Graph, model: SamModel) -> None:
        """Add the positional embedding of the image tokens, as an output of the graph."""
        write_image_positions(graph, model)

    def block_scopes(self, config: SamConfig, part: str) -> Mapping[str, str]:
        """Return node-name prefixes by module name: encoder blocks or two-way layers."""
        structure = sam_structure(config)
        if part == "encoder":
            return {name: f"/layers.{index}/" for index, name in enumerate(structure.blocks)}
        return {name: f"/mask_decoder/layers.{index}/" for index, name in enumerate(structure.decoder_layers)}
