"""Write the files of a layout: saqsam's own graphs between the inputs and outputs of its clients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from saqsam.export.layouts.catalog import LAYOUTS
from saqsam.export.layouts.contract import OWN_LAYOUT, Context, Contract, Description, Part
from saqsam.export.onnx.graph import OPSET, Graph
from saqsam.export.onnx.writer import graph_details
from saqsam.export.onnx.writers import graph_writer
from saqsam.models.registry import family_of

_IMAGE_POSITIONS = "image_positional_embeddings"


def contract_of(layout: str, config: Any) -> Contract:
    """Return the contract of a layout for a model.

    Args:
        layout: Name of a layout of other clients, one of `LAYOUTS`.
        config: Configuration of the model.

    Raises:
        ValueError: The layout has none for the family or the sizes of the model. The message names the layouts that
            have one.
    """
    mismatch = _mismatch(layout, config)
    if mismatch is not None:
        fitting = [OWN_LAYOUT, *(name for name in LAYOUTS if _mismatch(name, config) is None)]
        raise ValueError(f"layout {layout}: {mismatch}; choose one of {', '.join(fitting)}")
    return LAYOUTS[layout].contracts[family_of(config).name]


def _mismatch(layout: str, config: Any) -> str | None:
    """Return why a layout does not fit a model; None if it does."""
    family, entry = family_of(config), LAYOUTS[layout]
    if family.name not in entry.contracts:
        return f"{entry.clients} cannot load ONNX files of {family.label} models"
    spec = family.input_spec(config)
    for name, expected in entry.contracts[family.name].sizes.items():
        actual = getattr(spec, name)
        if actual != expected:
            return f"for {entry.clients}, expected {name} {expected:,}, got {actual:,}"
    return None


def write_layout(
    model: Any,
    folder: Path,
    layout: str,
    description: Description,
    metadata: dict[str, str],
    *,
    opset: int = OPSET,
) -> tuple[list[str], dict[str, Any]]:
    """Write the files of a layout into a folder.

    Args:
        model: The model.
        folder: Existing folder.
        layout: Name of a layout of other clients, one of `LAYOUTS`.
        description: Description of the model.
        metadata: Texts that are stored in encoder and decoder, as metadata properties.
        opset: ONNX operator set.

    Returns:
        File names of encoder and decoder, relative to the folder, and what the manifest records of the graphs.

    Raises:
        ValueError: As for `contract_of`.
        ExportError: The recipe cannot be expressed by ONNX operators.
    """
    contract, entry = contract_of(layout, model.config), LAYOUTS[layout]
    spec = family_of(model.config).input_spec(model.config)
    context = Context(spec, *_pixel_statistics(description.processor))
    writer = graph_writer(model.config)
    encoder, decoder = Graph("encoder", opset), Graph("decoder", opset)
    writer.write_encoder(encoder, model, free_batch=contract.free_batch)
    if any(output.reads == _IMAGE_POSITIONS for output in contract.encoder.outputs):
        writer.write_image_positions(encoder, model)
    writer.write_decoder(decoder, model, single_mask=contract.single_mask)
    files = {}
    for part, own in ((contract.encoder, encoder), (contract.decoder, decoder)):
        name = part.file.format(suffix=entry.suffix(description.weight_bits), label=description.label)
        (folder / name).parent.mkdir(exist_ok=True)
        onnx.save(adapted(part, own, context).model(metadata), folder / name)
        files[own.name] = name
    if contract.write_companions is not None:
        contract.write_companions(folder, description, files)
    return list(files.values()), graph_details(encoder, decoder)


def adapted(part: Part, own: Graph, context: Context) -> Graph:
    """Return a graph with the inputs and outputs of a layout, and one of saqsam's graphs between them.

    Args:
        part: Encoder or decoder in the layout.
        own: The encoder or decoder that saqsam writes.
        context: What the adapters know of the model.
    """
    graph = Graph(own.name, own.opset)
    fed: dict[str, str] = {}
    with graph.scope("inputs"):
        for port in part.inputs:
            if port.declare is not None:
                value = port.declare(graph, context, port.name)
            else:
                assert port.feeds is not None, port.name
                value = graph.input(port.name, own.shape_of(port.feeds))
            if port.feeds is not None:
                fed[port.feeds] = value
        for name, make in part.computed.items():
            fed[name] = make(graph, context)
    values = graph.include(own, fed, {output.reads for output in part.outputs})
    with graph.scope("outputs"):
        for output in part.outputs:
            if output.derive is not None:
                output.derive(graph, context, values[output.reads], output.name)
            else:
                graph.output(values[output.reads], output.name, own.shape_of(output.reads))
    return graph


def _pixel_statistics(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of 8-bit pixels by channel, by which a processor normalizes them."""
    scale = settings["rescale_factor"] if settings["do_rescale"] else 1.0
    mean, std = (
        (settings["image_mean"], settings["image_std"])
        if settings["do_normalize"]
        else ([0.0] * 3, [1.0] * 3)
    )
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)
