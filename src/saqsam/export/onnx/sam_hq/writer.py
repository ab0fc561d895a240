"""The graph writer of SAM-HQ."""

from __future__ import annotations

from transformers import SamHQModel

from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.sam.decoder import write_decoder
from saqsam.export.onnx.sam.encoder import write_encoder
from saqsam.export.onnx.sam.encoder_attention import EncoderOptions
from saqsam.export.onnx.sam.writer import SamGraphWriter
from saqsam.export.onnx.sam_hq.features import write_features
from saqsam.export.onnx.sam_hq.head import write_hq_heads
from saqsam.models.sam_hq.family import SamHQFamily
from saqsam.models.sam_hq.structure import tap_block

_FAMILY = SamHQFamily()


class SamHQGraphWriter(SamGraphWriter):
    """The `saqsam.export.onnx.writers.GraphWriter` of `SamHQModel`."""

    def write_encoder(self, graph: Graph, model: SamHQModel, *, free_batch: bool = False) -> None:
        """Add the vision encoder and the fusion of features to an empty graph."""
        spec = _FAMILY.input_spec(model.config)
        images: int | str = "images" if free_batch else 1
        blocks, embedding = write_encoder(graph, model, EncoderOptions(images=images))
        tapped = tap_block(model.config)
        assert tapped is not None  # the configuration was checked
        features = write_features(graph, model.mask_decoder, embedding, blocks[tapped], spec.grid)
        for name, shape in spec.extras.items():
            graph.output(features, name, (images, *shape[1:]))

    def write_decoder(self, graph: Graph, model: SamHQModel, *, single_mask: bool) -> None:
        """Add prompt encoder and mask decoder to an empty graph."""
        write_decoder(graph, model, single_mask=single_mask, family=_FAMILY, heads=write_hq_heads)
