"""ONNX graphs compute what torch computes, and hold integers where the checkpoint does."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor
from transformers import SamModel

from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepare
from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.layers import ExportError, layer_input, linear
from saqsam.export.onnx.sam.decoder import write_decoder
from saqsam.export.onnx.sam.encoder import write_encoder
from saqsam.export.onnx.sam.encoder_attention import EncoderOptions
from saqsam.export.onnx.writer import keep_outputs
from saqsam.inference.backend import TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.models.registry import structure_of
from saqsam.recipes.deployment import deployable
from saqsam.recipes.specs import ProbabilitySpec, QuantSpec
from saqsam.runtimes.inputs import decoder_inputs
from saqsam.runtimes.onnxruntime import session as onnxruntime_session
from support.tiny_quantized import mixed_recipe, quantize_tiny, tiny_recipe
from support.tiny_sam import GRID, IMAGE_SIZE, tiny_config, tiny_pixels, tiny_sam

BOXES = torch.tensor([[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0], [1.0, 20.0, 33.0, 63.0]])
POINTS = torch.tensor([[[30.0, 20.0], [5.0, 60.0]], [[0.0, 0.0], [63.0, 63.0]], [[7.0, 8.0], [9.0, 10.0]]])
LABELS = torch.tensor([[1, 0], [0, 1], [1, 1]])
CHAOS = 0.05
"""A value at the border of two codes falls to either side by its last bits, and later layers see another code: as much
lies between torch and torch with sums in float64. Exact are the layers, each on its own."""
MASKS = torch.randn(3, 4 * GRID, 4 * GRID, generator=torch.Generator().manual_seed(3))
PROMPTS = {
    "boxes": Prompts(boxes=BOXES),
    "points": Prompts(points=POINTS, labels=LABELS),
    "points and boxes": Prompts(points=POINTS, labels=LABELS, boxes=BOXES),
    "boxes and masks": Prompts(boxes=BOXES, mask_inputs=MASKS),
}


def deployed(bits: str = "w8a8", **changes: Any) -> SamModel:
    """A deployable recipe, and the encoder's products quantized too unless `changes` say otherwise."""
    recipe = dataclasses.replace(deployable(tiny_recipe(bits=bits)), encoder_products="quantized")
    return quantize_tiny(dataclasses.replace(recipe, **changes))


@pytest.fixture(scope="module")
def models() -> dict[str, SamModel]:
    float_model = tiny_sam()
    prepare(float_model, plan_quantization(float_model.config, tiny_recipe()))
    plus = deployable(tiny_recipe("saq-sam-plus", "w4a8"))
    return {
        "float": float_model,
        "w8a8": deployed(),
        "w4a8, input scales": quantize_tiny(plus),
        "w8a8, float products": deployed(encoder_products="float"),
        "w8a8, relative positions of rounded queries": deployed(quantized_rel_pos_query=True),
        "w8a8, tensor probabilities": deployed(probabilities=ProbabilitySpec("uniform", 8)),
        "mixed": quantize_tiny(deployable(mixed_recipe())),
    }


NAMES = (
    "float",
    "w8a8",
    "w4a8, input scales",
    "w8a8, float products",
    "w8a8, relative positions of rounded queries",
    "w8a8, tensor probabilities",
    "mixed",
)


def encoder(model: SamModel, options: EncoderOptions | None = None) -> onnx.ModelProto:
    graph = Graph("encoder")
    write_encoder(graph, model, options or EncoderOptions())
    return graph.model({})


def decoder(model: SamModel, **options: Any) -> onnx.ModelProto:
    graph = Graph("decoder")
    write_decoder(graph, model, **options)
    return graph.model({})


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime_session(model.SerializeToString(), threads=1)


def relative(found: np.ndarray, wanted: Tensor) -> float:
    difference = found - wanted.numpy()
    return float(np.linalg.norm(difference) / np.linalg.norm(wanted.numpy()))


def embed(model: SamModel) -> Tensor:
    embedding: Tensor = TorchBackend(model).encode(tiny_pixels()).embedding
    return embedding.detach()


@pytest.mark.slow
@pytest.mark.parametrize("relative_positions", ["sum", "channels"])
@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_is_torchs(models: dict[str, SamModel], name: str, relative_positions: Any) -> None:
    model = encoder(models[name], EncoderOptions(relative_positions))
    (found,) = session(model).run(None, {"pixel_values": tiny_pixels().numpy()})
    assert relative(found, embed(models[name])) < (1e-5 if name == "float" else CHAOS)


LAYERS = [
    site.name
    for site in structure_of(tiny_sam().config).layers
    if not site.name.startswith("vision_encoder.neck")
]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("which", ["w8a8", "w4a8, input scales"])
def test_each_linear_layer_is_torchs(models: dict[str, SamModel], which: str, name: str) -> None:
    layer = models[which].get_submodule(name)
    rows = 2 * torch.randn(50, layer.in_features, generator=torch.Generator().manual_seed(5))
    graph = Graph("layer")
    given = layer_input(graph, layer, graph.input("rows", (50, layer.in_features)), name)
    graph.output(linear(graph, layer, given, name), "out", (50, layer.out_features))
    (found,) = session(graph.model({})).run(None, {"rows": rows.numpy()})
    wanted = layer(rows).detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max(), rtol=1e-5)


@pytest.mark.parametrize("name", ["float", "w8a8", "w8a8, float products", "w8a8, tensor probabilities"])
@pytest.mark.parametrize("at_once", [1, 16 * GRID**2, GRID**4, 2 * GRID**4])
def test_global_attention_in_blocks_is_the_same(models: dict[str, SamModel], name: str, at_once: int) -> None:
    found = []
    for options in (EncoderOptions(max_block_logits=None), EncoderOptions(max_block_logits=at_once)):
        written = encoder(models[name], options)
        shapes = {
            tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in all_values(written)
        }
        found.append(session(written).run(None, {"pixel_values": tiny_pixels().numpy()})[0])
    assert (
        not {shape for shape in shapes if len(shape) == 4 and shape[2:] == (GRID**2, GRID**2)}
        or at_once >= GRID**4
    )
    np.testing.assert_allclose(found[1], found[0], atol=2e-5)


def test_names_are_unique_whatever_the_number_of_outputs() -> None:
    """Four heads, each with all of its queries at once: outputs of one split are named like another split."""
    graph = Graph("splits")
    rows = graph.input("rows", (4, 4))
    parts = graph.ops("Split", 4, rows, axis=0, num_outputs=4)
    one = [graph.ops("Split", 1, part, axis=0, num_outputs=1)[0] for part in parts]
    two = graph.ops("Split", 2, rows, axis=0, num_outputs=2)
    assert len({*parts, *one, *two}) == 4 + 4 + 2
    joined = graph.op("Concat", *one, *two, axis=0)
    graph.output(joined, "out", (8, 4))
    given = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_array_equal(
        session(graph.model({})).run(None, {"rows": given})[0], np.tile(given, (2, 1))
    )


def all_values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return list(onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info)


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_is_torchs(models: dict[str, SamModel], name: str, prompts: str) -> None:
    model = models[name]
    embedding = embed(model)
    inputs = decoder_inputs({"image_embeddings": embedding.numpy()}, PROMPTS[prompts])
    inputs["orig_im_size"] = np.array([48, 64], np.float32)
    masks, ious, low_res = session(decoder(model)).run(None, inputs)
    assert masks.shape == (3, 4, 48, 64)
    tolerance = 1e-5 if name == "float" else CHAOS
    with torch.no_grad():
        for multimask, part in ((False, slice(0, 1)), (True, slice(1, None))):
            logits, scores = TorchBackend(model).decode(Features(embedding), PROMPTS[prompts], multimask)
            assert relative(low_res[:, part], logits) < tolerance
            assert relative(ious[:, part], scores) < tolerance


@pytest.mark.parametrize("size", [(48, 64), (64, 64), (101, 67), (20, 200), (3, 5)])
def test_large_masks_are_resized_as_by_the_official_export(
    models: dict[str, SamModel], size: tuple[int, int]
) -> None:
    inputs = decoder_inputs({"image_embeddings": embed(models["float"]).numpy()}, PROMPTS["boxes"])
    inputs["orig_im_size"] = np.array(size, np.float32)
    masks, _, low_res = session(decoder(models["float"])).run(None, inputs)
    square = F.interpolate(torch.from_numpy(low_res), (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    scale = IMAGE_SIZE / max(size)
    high, wide = (int(side * scale + 0.5) for side in size)
    wanted = F.interpolate(square[..., :high, :wide], size, mode="bilinear")
    assert masks.shape == wanted.shape
    np.testing.assert_allclose(masks, wanted.numpy(), atol=2e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize(("points", "only_first"), [(1, False), (2, True)])
def test_a_single_mask_is_chosen_as_by_the_official_export(
    models: dict[str, SamModel], points: int, only_first: bool
) -> None:
    model = models["float"]
    prompts = Prompts(points=POINTS[:, :points], labels=LABELS[:, :points])
    inputs = decoder_inputs(
        {"image_embeddings": embed(model).numpy()}, prompts
    )  # with the padding point: one more
    inputs["orig_im_size"] = np.array([48, 64], np.float32)
    _, ious, low_res = session(decoder(model)).run(None, inputs)
    masks, best, chosen = session(decoder(model, single_mask=True)).run(None, inputs)
    assert masks.shape == (3, 1, 48, 64)
    index = [0] * 3 if only_first else (1 + ious[:, 1:].argmax(1)).tolist()
    assert len(set(index)) == 1 or not only_first
    for prompt, mask in enumerate(index):
        np.testing.assert_array_equal(chosen[prompt, 0], low_res[prompt, mask])
        assert best[prompt, 0] == ious[prompt, mask]


def test_a_mask_that_is_not_meant_may_hold_anything(models: dict[str, SamModel]) -> None:
    run = session(keep_outputs(decoder(models["float"]), {"low_res_masks"}))
    inputs = decoder_inputs({"image_embeddings": embed(models["float"]).numpy()}, PROMPTS["boxes"])
    (clean,) = run.run(None, inputs)
    inputs["mask_input"] = np.full_like(inputs["mask_input"], np.nan)
    np.testing.assert_array_equal(run.run(None, inputs)[0], clean)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 5, 7, 8])
def test_weights_are_stored_at_their_width_and_read_as_signed_bytes(
    bits: int, symmetric: bool, tmp_path: Path
) -> None:
    weights = QuantSpec(bits, symmetric=symmetric, range="min-max", symmetric_bytes=True)
    model = deployed(f"w{bits}a8", weights=weights)
    written = encoder(model)
    kinds = Counter(tensor.data_type for tensor in written.graph.initializer if len(tensor.dims) == 2)
    stored = TensorProto.INT8 if bits > 4 else TensorProto.INT4 if symmetric else TensorProto.UINT4
    # Queries, keys and values apart: 6 matrices of 4 blocks, and the neck's two.
    assert kinds[stored] == 4 * 6 + 2
    assert TensorProto.INT8 not in kinds or bits > 4
    weight = model.vision_encoder.layers[0].mlp.lin1.weight
    assert bool((weight.zero_point == 2 ** (bits - 1)).all()) == (symmetric or bits == 8)
    wanted = (weight.unpack().short() - weight.zero_point.short()[:, None]).T.numpy()
    # What kernels read, after a runtime has computed what follows from constants.
    name = "/layers.0/mlp/weight"
    inputs = [node.input[0] for node in written.graph.node if node.op_type == "DequantizeLinear"]
    (read,) = (value for value in inputs if value in (name, f"{name}_wide", f"{name}_byte"))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(written.SerializeToString(), options, providers=["CPUExecutionProvider"])
    folded = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "folded.onnx").graph.initializer
    }
    assert folded[read].dtype == np.int8
    np.testing.assert_array_equal(folded[read], wanted)


@pytest.mark.parametrize("which", ["encoder", "decoder"])
def test_nothing_that_is_quantized_runs_in_float(models: dict[str, SamModel], which: str) -> None:
    """Every product of the papers' set reads dequantized codes on both sides."""
    written = {"encoder": encoder, "decoder": decoder}[which](models["w8a8"])  # type: ignore[operator]
    by_output = {name: node for node in written.graph.node for name in node.output}
    operands = Counter(
        (node.op_type, *(by_output[name].op_type if name in by_output else "" for name in node.input[:2]))
        for node in written.graph.node
        if node.op_type in ("Gemm", "MatMul")
    )
    both = ("DequantizeLinear", "DequantizeLinear")
    if which == "encoder":
        assert operands[("Gemm", *both)] == 4 * 6 + 2
        assert operands[("MatMul", *both)] == 4 * 2
        assert sum(n for (kind, *_), n in operands.items() if kind == "Gemm") == 4 * 6 + 2
    else:
        assert operands[("Gemm", *both)] == 2 * 14 + 4 + 4 * 3 + 3 + 1  # heads and upscaling
        assert operands[("MatMul", *both)] == 7 * 2
    assert all(node.domain == "" for node in written.graph.node)


def test_what_kernels_cannot_run_is_refused_with_the_field_to_change() -> None:
    with pytest.raises(ExportError, match=r"vision_encoder\.layers\.0.*probabilities\.kind=uniform"):
        encoder(deployed(probabilities=ProbabilitySpec("log")))
    with pytest.raises(
        ExportError, match=r"vision_encoder\.layers\.0\.attn\.qkv.*weights\.symmetric_bytes=true"
    ):
        encoder(deployed(weights=QuantSpec(8, range="min-max")))
    with pytest.raises(ExportError, match=r"vision_encoder\.layers\.0.*integer_biases=true"):
        encoder(deployed(integer_biases=False))


def test_outputs_that_are_not_kept_take_their_nodes_with_them(
    models: dict[str, SamModel], tmp_path: Path
) -> None:
    whole = decoder(models["w8a8"])
    part = keep_outputs(decoder(models["w8a8"]), {"iou_predictions", "low_res_masks"})
    assert [output.name for output in part.graph.output] == ["iou_predictions", "low_res_masks"]
    assert "orig_im_size" not in [value.name for value in part.graph.input]
    assert "Resize" in {node.op_type for node in whole.graph.node}
    assert "Resize" not in {node.op_type for node in part.graph.node}
    onnx.checker.check_model(part, full_check=True)


def test_no_two_layers_share_the_zero_points_of_their_weights(models: dict[str, SamModel]) -> None:
    # ONNX Runtime refuses them where it makes weights unsigned, on processors whose 8-bit products saturate.
    for model in (encoder(models["w8a8"]), decoder(models["w8a8"])):
        signed = {
            tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8
        }
        used = [node.input[2] for node in model.graph.node if node.op_type == "DequantizeLinear"]
        weights = [name for name in used if name in signed]
        assert len(weights) > 5
        assert len(weights) == len(set(weights))


def test_a_single_mask_is_chosen_from_any_number_of_masks() -> None:
    config = tiny_config()
    config.mask_decoder_config.num_multimask_outputs = 2
    model = tiny_sam(config=config)
    inputs = decoder_inputs({"image_embeddings": embed(model).numpy()}, PROMPTS["boxes"])
    inputs["orig_im_size"] = np.array([48, 64], np.float32)
    _, ious, low_res = session(decoder(model)).run(None, inputs)
    _, best, chosen = session(decoder(model, single_mask=True)).run(None, inputs)
    assert ious.shape[1] == 3
    for prompt in range(len(ious)):
        assert best[prompt, 0] in ious[prompt]
        assert any(np.array_equal(chosen[prompt, 0], mask) for mask in low_res[prompt])
