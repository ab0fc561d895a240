"""Find the first node of an export whose value differs from torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import SamModel

from saqsam.export.formats import FORMATS
from saqsam.export.manifest import LOW_RES_OUTPUTS, Manifest
from saqsam.inference.backend import Backend, TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.runtimes.inputs import as_array, exported_inputs
from saqsam.runtimes.registry import RUNTIMES

if TYPE_CHECKING:  # an extra
    import onnx

TOLERANCE = 0.05
"""Relative difference that is normal between two runtimes: values on the border of two codes round to either."""

Array = NDArray[Any]
Compute = Callable[[str], Array]
"""Function from the name of a tensor of a graph to its value."""


@dataclass(frozen=True)
class Divergence:
    """Place where a runtime departs from torch.

    Attributes:
        part: `encoder` or `decoder`.
        node: First node or block of the graph that differs; None where only the part is known.
        relative: Norm of the difference there over the norm of the expected value.
    """

    part: str
    node: str | None
    relative: float

    def __str__(self) -> str:
        place = f"the {self.part}" if self.node is None else f"node {self.node} of the {self.part}"
        return f"{place} differs first, by {self.relative:.2g} of the expected value"


@torch.inference_mode()
def find_divergence(
    folder: Path,
    backend: Backend,
    manifest: Manifest,
    runtime: str,
    model: SamModel,
    pixel_values: torch.Tensor,
    prompts: Prompts,
) -> Divergence:
    """Find the first node at which a runtime departs from what torch computes.

    The decoder gets torch's embedding, so that each part is judged alone. Nodes of ONNX and OpenVINO files are compared
    with a graph that is written from the model and computed node by node in ONNX Runtime, without its optimizations. If
    a node of that graph is wrong itself, comparing its blocks with torch's finds it. Formats without node names yield
    only the part.

    Args:
        folder: The exported folder.
        backend: The runtime, with the folder loaded.
        manifest: Manifest of the folder.
        runtime: Name of the runtime.
        model: The model that was exported.
        pixel_values: [1, 3, S, S] float32.
        prompts: P prompts in pixels of the S x S input.
    """
    torchs = TorchBackend(model)
    features = torchs.encode(pixel_values)
    encoder = max(
        _relative(as_array(actual), as_array(expected))
        for actual, expected in zip(backend.encode(pixel_values).maps, features.maps, strict=True)
    )
    actual, expected_outputs = (one.decode(features, prompts, False) for one in (backend, torchs))
    decoder = max(_relative(as_array(a), as_array(b)) for a, b in zip(actual, expected_outputs, strict=True))
    inputs: dict[str, Array]
    if encoder > 2 * TOLERANCE or encoder >= decoder:
        part, relative, inputs = "encoder", encoder, {"pixel_values": as_array(pixel_values)}
    else:
        part, relative, inputs = (
            "decoder",
            decoder,
            exported_inputs(manifest, features, prompts),
        )
    can_search = FORMATS[manifest.format].has_node_names and runtime in _TENSOR_READERS
    if not can_search or not RUNTIMES["onnxruntime"].is_installed():
        return Divergence(part, None, relative)
    graph = _write_graph(model, part, manifest)
    names = _named_nodes(graph)
    path = manifest.model_file(folder, part)
    expected = _reference(graph, inputs)
    node = _first_difference(graph, names, expected, _TENSOR_READERS[runtime](path, graph, inputs))
    if node is None:
        with _recorded_blocks(model, part) as blocks:
            torchs.encode(pixel_values) if part == "encoder" else torchs.decode(features, prompts, False)
        node = next(_different_blocks(names, expected, blocks), None)
    return Divergence(part, *node) if node else Divergence(part, None, relative)


def _write_graph(model: SamModel, part: str, manifest: Manifest) -> onnx.ModelProto:
    """Return the graph of a part with the shapes and types of its tensors, written as that of an export."""
    import onnx

    from saqsam.export.onnx.graph import OPSET, Graph
    from saqsam.export.onnx.writer import keep_outputs
    from saqsam.export.onnx.writers import graph_writer

    graph = Graph(part, manifest.details.get("opset", OPSET))
    if part == "encoder":
        graph_writer(model.config).write_encoder(graph, model)
        written = graph.model({})
    else:
        graph_writer(model.config).write_decoder(graph, model, single_mask=manifest.single_mask)
        written = keep_outputs(graph.model({}), set(LOW_RES_OUTPUTS))
    return onnx.shape_inference.infer_shapes(written, data_prop=True)


def _named_nodes(graph: onnx.ModelProto) -> list[str]:
    """Return the float outputs of nodes that have a name, in topological order."""
    from onnx import TensorProto

    floats = {
        value.name
        for value in (*graph.graph.value_info, *graph.graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    return [name for node in graph.graph.node if node.name for name in node.output if name in floats]


def _cut(graph: onnx.ModelProto, types: onnx.ModelProto, name: str) -> bytes:
    """Return the part of a graph that computes one tensor; `types` knows the tensor's type."""
    import onnx

    from saqsam.export.onnx.writer import keep_outputs

    cut = onnx.ModelProto()
    cut.CopyFrom(graph)
    if name not in {value.name for value in cut.graph.output}:
        cut.graph.output.extend(value for value in types.graph.value_info if value.name == name)
    del cut.graph.value_info[:]
    return bytes(keep_outputs(cut, {name}).SerializeToString())


def _reference(graph: onnx.ModelProto, inputs: Mapping[str, Array]) -> Compute:
    """Return a function that computes a tensor node by node."""
    from saqsam.runtimes.onnxruntime import session

    def compute(name: str) -> Array:
        return _run_session(session(_cut(graph, graph, name), None, optimized=False), inputs)

    return compute


def _onnxruntime_values(path: Path, types: onnx.ModelProto, inputs: Mapping[str, Array]) -> Compute:
    """Return a function that computes a tensor of an ONNX file in ONNX Runtime, with all its optimizations."""
    from saqsam.export.onnx.reader import read_onnx
    from saqsam.runtimes.onnxruntime import session

    graph = read_onnx(path)
    return lambda name: _run_session(session(_cut(graph, types, name), None), inputs)


def _run_session(session: Any, inputs: Mapping[str, Array]) -> Array:
    taken = {value.name for value in session.get_inputs()}
    (value,) = session.run(None, {name: array for name, array in inputs.items() if name in taken})
    return np.asarray(value)


def _openvino_values(path: Path, types: onnx.ModelProto, inputs: Mapping[str, Array]) -> Compute:
    """Return a function that computes a tensor of an ONNX or OpenVINO file in OpenVINO, optimized."""
    from saqsam.export.onnx.reader import read_onnx
    from saqsam.export.openvino_core import make_exact, openvino_core
    from saqsam.runtimes.openvino import keep_results, read_model

    core = openvino_core()
    is_onnx = path.suffix == ".onnx"
    graph = read_onnx(path) if is_onnx else None

    def compute(name: str) -> Array:
        if graph is not None:
            cut = core.read_model(_cut(graph, types, name))
        else:
            whole = read_model(core, path)
            if name not in {own for value in whole.outputs for own in value.get_names()}:
                whole.add_outputs(name)
            cut = keep_results(whole, [name])
        compiled = core.compile_model(cut, "CPU", {"INFERENCE_PRECISION_HINT": "f32"} | make_exact(cut))
        taken = {own for value in compiled.inputs for own in value.get_names()}
        outputs = compiled({own: array for own, array in inputs.items() if own in taken})
        return np.array(outputs[0])

    return compute


_TENSOR_READERS = {"onnxruntime": _onnxruntime_values, "openvino": _openvino_values}
"""Functions that compute single tensors of a file, by runtime; for other runtimes only the part is known."""


def _first_difference(
    graph: onnx.ModelProto, names: list[str], expected: Compute, actual: Compute
) -> tuple[str, float] | None:
    """Return the first node whose value differs, and by how much; None where the last one does not differ."""
    known: dict[str, float] = {}

    def difference(name: str) -> float:
        if name not in known:
            known[name] = _relative(actual(name), expected(name))
        return known[name]

    outputs = [value.name for value in graph.graph.output]
    bad = [index for index, name in enumerate(names) if name in outputs and difference(name) > TOLERANCE]
    if not bad:
        return None
    low, high = -1, bad[0]
    while high - low > 1:
        middle = (low + high) // 2
        if difference(names[middle]) > TOLERANCE:
            high = middle
        else:
            low = middle
    # Another branch may have differed before: follow what the node reads.
    first = names[high]
    sources = _sources(graph, set(names))
    while earlier := next((name for name in sources[first] if difference(name) > TOLERANCE), None):
        first = earlier
    return first, difference(first)


def _sources(graph: onnx.ModelProto, names: set[str]) -> dict[str, set[str]]:
    """Return, for each tensor, the nearest named tensors that it is computed from."""
    sources: dict[str, set[str]] = {}
    for node in graph.graph.node:
        read: set[str] = set()
        for name in node.input:
            read |= {name} if name in names else sources.get(name, set())
        sources.update(dict.fromkeys(node.output, read))
    return sources


@contextmanager
def _recorded_blocks(model: SamModel, part: str) -> Iterator[dict[str, Array]]:
    """Record the outputs of torch's blocks while the context is open, as rows, by the prefix of their nodes' names."""
    from saqsam.export.onnx.writers import graph_writer

    scopes = graph_writer(model.config).block_scopes(model.config, part)
    blocks: dict[str, Array] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            # A layer of the decoder returns its tokens and those of the image.
            value = output if isinstance(output, torch.Tensor) else output[1 if part == "decoder" else 0]
            blocks[name] = as_array(value)

        return hook

    handles = [
        model.get_submodule(name).register_forward_hook(record(scope)) for name, scope in scopes.items()
    ]
    try:
        yield blocks
    finally:
        for handle in handles:
            handle.remove()


def _different_blocks(
    names: list[str], expected: Compute, blocks: Mapping[str, Array]
) -> Iterator[tuple[str, float]]:
    """Yield the blocks whose last node differs from torch's block, in order."""
    for scope, block in blocks.items():
        own = [name for name in names if name.startswith(scope)]
        if own:
            value, channels = expected(own[-1]), block.shape[-1]
            relative = _relative(value.reshape(-1, value.shape[-1]), block.reshape(-1, channels))
            if relative > TOLERANCE:
                yield scope.strip("/"), relative


def _relative(actual: Array, expected: Array) -> float:
    """Return the norm of the difference over the norm of the expected value; infinite where shapes or NaN differ."""
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    norm = float(np.linalg.norm(expected.astype(np.float64)))
    difference = float(np.linalg.norm(actual.astype(np.float64) - expected))
    return difference / norm if norm else float("inf") if difference else 0.0
