"""The graph writer of MobileSAM."""

from __future__ import annotations

from collections.abc import Mapping

from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.mobile_sam.encoder import write_encoder
from saqsam.export.onnx.sam.decoder import write_decoder, write_image_positions
from saqsam.models.mobile_sam.configuration import MobileSamConfig
from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.models.mobile_sam.structure import mobile_sam_structure


class MobileSamGraphWriter:
    """The `saqsam.export.onnx.writers.GraphWriter` of `MobileSamModel`."""

    def write_encoder(self, graph: Graph, model: MobileSamModel, *, free_batch: bool = False) -> None:
        """Add the vision encoder to an empty graph."""
        write_encoder(graph, model, "images" if free_batch else 1)

    def write_decoder(self, graph: Graph, model: MobileSamModel, *, single_mask: bool) -> None:
        """Add prompt encoder and mask decoder, which are SAM v1's, to an empty graph."""
        write_decoder(graph, model, single_mask=single_mask)

    def write_image_positions(self, graph: Graph, model: MobileSamModel) -> None:
        """Add the positional embedding of the image tokens, as an output of the graph."""
        write_image_positions(graph, model)

    def block_scopes(self, config: MobileSamConfig, part: str) -> Mapping[str, str]:
        """Return node-name prefixes by module name: encoder blocks and patch mergings, or two-way layers."""
        structure = mobile_sam_structure(config)
        if part == "encoder":
            return {name: f"/{name.removeprefix('vision_encoder.')}/" for name in structure.blocks}
        return {name: f"/mask_decoder/layers.{index}/" for index, name in enumerate(structure.decoder_layers)}
