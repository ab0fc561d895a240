"""Write a quantized SAM as ONNX files: `encoder.onnx` and `decoder.onnx`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx
from transformers import SamModel

from saqsam.export.onnx.graph import OPSET, Graph
from saqsam.export.onnx.writers import graph_writer

_LEAST_RUNTIMES = {17: "1.12", 18: "1.14", 19: "1.16", 20: "1.17", 21: "1.18"}
"""First version of ONNX Runtime by the operator set and the IR version that belongs to it."""
_NIBBLE_RUNTIME = "1.23"
"""First version of ONNX Runtime that casts 4-bit integers."""


def write_onnx(
    model: SamModel,
    folder: Path,
    metadata: dict[str, str],
    *,
    single_mask: bool,
    opset: int = OPSET,
    free_batch: bool = False,
    decoder_outputs: Collection[str] | None = None,
) -> dict[str, Any]:
    """Write encoder and decoder into a folder.

    Args:
        model: The model.
        folder: Existing folder.
        metadata: Texts that are stored in both files, as metadata properties.
        single_mask: Let the decoder return one mask per prompt.
        opset: ONNX operator set.
        free_batch: Let the encoder take any number of images per call.
        decoder_outputs: Outputs to keep of the decoder; None for all.

    Returns:
        The operator set, and the least versions of runtimes, for the manifest.

    Raises:
        ExportError: The recipe cannot be expressed by ONNX operators.
    """
    encoder, decoder = Graph("encoder", opset), Graph("decoder", opset)
    writer = graph_writer(model.config)
    writer.write_encoder(encoder, model, free_batch=free_batch)
    writer.write_decoder(decoder, model, single_mask=single_mask)
    onnx.save(encoder.model(metadata), folder / "encoder.onnx")
    made = decoder.model(metadata)
    onnx.save(
        made if decoder_outputs is None else keep_outputs(made, set(decoder_outputs)), folder / "decoder.onnx"
    )
    return graph_details(encoder, decoder)


def graph_details(*graphs: Graph) -> dict[str, Any]:
    """Return what the manifest records of graphs with the same operator set."""
    opset = graphs[0].opset
    least = _NIBBLE_RUNTIME if any(graph.has_nibbles for graph in graphs) else _LEAST_RUNTIMES[opset]
    return {"opset": opset, "requires": {"onnxruntime": least}}


def keep_outputs(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """Reduce a model, in place, to some of its outputs and the nodes, initializers and inputs that they need."""
    graph = model.graph
    needed, kept = set(names), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(name for name in node.input if name)
    for entries, remaining in (
        (graph.output, [output for output in graph.output if output.name in names]),
        (graph.node, list(reversed(kept))),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed]),
        (graph.input, [value for value in graph.input if value.name in needed]),
    ):
        copies = [entry.__class__.FromString(entry.SerializeToString()) for entry in remaining]
        del entries[:]
        entries.extend(copies)
    return model
