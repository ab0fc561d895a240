"""Layers with zero, partly zero or absent biases compute the same in every runtime, at every width of the decoder."""

import copy
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from transformers import SamConfig, SamModel

from saqsam.export.manifest import LOW_RES_OUTPUTS
from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.sam.decoder import write_decoder
from saqsam.export.onnx.writer import keep_outputs
from saqsam.export.openvino_core import make_exact, openvino_core
from saqsam.inference.backend import TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.ptq.pipeline import quantize
from saqsam.quant.layers import PackedLinear
from saqsam.recipes.deployment import deployable
from saqsam.runtimes.inputs import decoder_inputs
from saqsam.runtimes.onnxruntime import session
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam import GRID, tiny_config, tiny_processor, tiny_sam

WIDTHS = (32, 64, 96, 128, 192, 256)
"""A projection has half as many columns: fewer than the 64 image tokens, as many, or more."""
BIASES = ("zero", "absent")
PROMPTS = Prompts(boxes=torch.tensor([[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0]]))
CHAOS = 0.05
"""Relative difference between runtimes where a value on the border of two codes falls to either side."""


def config_of(width: int) -> SamConfig:
    config = tiny_config()
    config.vision_config.output_channels = width
    config.vision_config.num_pos_feats = width // 2
    config.prompt_encoder_config.hidden_size = width
    config.mask_decoder_config.hidden_size = width
    config.mask_decoder_config.iou_head_hidden_dim = width
    return config


@pytest.fixture(scope="module", params=WIDTHS)
def model(request: pytest.FixtureRequest) -> SamModel:
    """A deployed model of one width, to be changed by no test."""
    bits = {32: "w4a8", 64: "w3a8"}.get(request.param, "w8a8")
    recipe = deployable(tiny_recipe(bits=bits, extra={"upscaling": 8}))
    return quantize(tiny_sam(config=config_of(request.param)), tiny_processor(), recipe, tiny_data()).model


def with_biases(model: SamModel, kind: str) -> SamModel:
    """The same model with other biases, all of them multiples of their layer's step."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for layer in changed.mask_decoder.modules():
        if isinstance(layer, PackedLinear) and layer.bias is not None:
            codes = torch.zeros(len(layer.bias))
            if kind == "one channel":
                codes[0] = 1
            elif kind == "random":
                codes = torch.randint(-500, 500, codes.shape, generator=generator).float()
            step = layer.input_quantizer.scale * layer.weight.scale
            layer.bias = None if kind == "absent" else torch.nn.Parameter(codes * step, requires_grad=False)
    return changed


def embedding_of(model: SamModel) -> Tensor:
    shape = (1, model.config.vision_config.output_channels, GRID, GRID)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def decoder_of(model: SamModel) -> onnx.ModelProto:
    graph = Graph("decoder")
    write_decoder(graph, model)
    return keep_outputs(graph.model({}), set(LOW_RES_OUTPUTS))


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def run_openvino(written: onnx.ModelProto, inputs: dict[str, Any]) -> list[np.ndarray]:
    core = openvino_core()
    model = core.read_model(written.SerializeToString())
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1} | make_exact(model)
    found = core.compile_model(model, "CPU", settings)(inputs)
    return [found[name] for name in LOW_RES_OUTPUTS]


@pytest.mark.slow
@pytest.mark.parametrize("kind", BIASES)
def test_runtimes_agree_with_torch_without_effective_biases(model: SamModel, kind: str) -> None:
    check(model, kind)


@pytest.mark.parametrize("model", [32, 128], indirect=True)
@pytest.mark.parametrize("kind", ["one channel", "random"])
def test_runtimes_agree_with_torch_where_some_biases_are_not_zero(model: SamModel, kind: str) -> None:
    check(model, kind)


def check(model: SamModel, kind: str) -> None:
    """Compare the decoder's outputs of both runtimes with torch's."""
    changed = with_biases(model, kind)
    embedding = embedding_of(changed)
    with torch.no_grad():
        logits, scores = TorchBackend(changed).decode(Features(embedding), PROMPTS, False)
    written = decoder_of(changed)
    inputs = decoder_inputs({"image_embeddings": embedding.numpy()}, PROMPTS)
    for ious, low_res in (
        session(written.SerializeToString(), threads=1).run(list(LOW_RES_OUTPUTS), inputs),
        run_openvino(written, inputs),
    ):
        assert relative(low_res[:, :1], logits.numpy()) < CHAOS
        assert relative(ious[:, :1], scores.numpy()) < 2 * CHAOS
        assert ((low_res[:, :1] > 0) == (logits.numpy() > 0)).mean() > 0.97


def test_projections_without_weights_are_exported() -> None:
    float_model = tiny_sam()
    for layer in float_model.mask_decoder.transformer.layers:
        torch.nn.init.zeros_(layer.cross_attn_token_to_image.k_proj.weight)
    model = quantize(float_model, tiny_processor(), deployable(tiny_recipe(bits="w8a8")), tiny_data()).model
    changed = with_biases(model, "zero")
    embedding = embedding_of(changed)
    with torch.no_grad():
        logits, _ = TorchBackend(changed).decode(Features(embedding), PROMPTS, False)
    written, inputs = decoder_of(changed), decoder_inputs({"image_embeddings": embedding.numpy()}, PROMPTS)
    _, found = session(written.SerializeToString(), threads=1).run(list(LOW_RES_OUTPUTS), inputs)
    assert relative(found[:, :1], logits.numpy()) < CHAOS
    assert relative(run_openvino(written, inputs)[1][:, :1], logits.numpy()) < CHAOS
