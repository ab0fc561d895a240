"""Graph writers by SAM family, the interface of the family folders to exporters and verification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.mobile_sam.writer import MobileSamGraphWriter
from saqsam.export.onnx.sam.writer import SamGraphWriter
from saqsam.export.onnx.sam2.writer import Sam2GraphWriter
from saqsam.export.onnx.sam_hq.writer import SamHQGraphWriter
from saqsam.models.registry import family_of


class GraphWriter(Protocol):
    """Write the ONNX graphs of one SAM family."""

    def write_encoder(self, graph: Graph, model: Any, *, free_batch: bool = False) -> None:
        """Add the image encoder of a model to an empty graph.

        Args:
            graph: Empty graph.
            model: The model.
            free_batch: Take any number of images per call instead of one.
        """
        ...

    def write_decoder(self, graph: Graph, model: Any, *, single_mask: bool) -> None:
        """Add prompt encoder and mask decoder of a model to an empty graph.

        Args:
            graph: Empty graph.
            model: The model.
            single_mask: Return one mask per prompt, chosen as the official export chooses it.
        """
        ...

    def write_image_positions(self, graph: Graph, model: Any) -> None:
        """Add the positional embedding of the image tokens to an encoder, as output `image_positional_embeddings`."""
        ...

    def block_scopes(self, config: Any, part: str) -> Mapping[str, str]:
        """Return the prefixes of node names in a graph, by the module names of the blocks that they belong to."""
        ...


_WRITERS: dict[str, GraphWriter] = {
    "sam": SamGraphWriter(),
    "sam_hq": SamHQGraphWriter(),
    "sam2": Sam2GraphWriter(),
    "mobile_sam": MobileSamGraphWriter(),
}


def graph_writer(config: Any) -> GraphWriter:
    """Return the graph writer of a model's configuration.

    Raises:
        ValueError: The family is unknown, or has no writer yet.
    """
    family = family_of(config)
    if family.name not in _WRITERS:
        raise ValueError(f"export: {family.label} models cannot be exported to ONNX yet")
    return _WRITERS[family.name]
