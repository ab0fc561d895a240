"""Torch's integer products against its de-quantized ones: layer by layer exactly, masks as a whole."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from transformers import SamModel

import saqsam
from saqsam.checkpoint import checkpoint_tensors
from saqsam.checkpoint.dequantize import dequantized
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import emptied
from saqsam.evaluation.metrics.iou import mask_iou
from saqsam.inference.backend import TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.quant.integer import FLOAT_INPUT, IntegerLinear, IntMmKernel, has_fbgemm
from saqsam.quant.layers import PackedLinear
from saqsam.recipes.deployment import deployable
from saqsam.recipes.recipe import Calibration
from saqsam.runtimes import compare_with_float, find_integer_layers, use_integer_kernels
from support.exact_layers import exact_layers
from support.tiny_quantized import outputs, quantize_tiny, quantized_tiny, tiny_recipe
from support.tiny_sam import tiny_pixels

pytestmark = pytest.mark.skipif(not has_fbgemm(), reason="torch without FBGEMM")


@pytest.fixture(scope="module")
def mini() -> tuple[SamModel, SamModel]:
    """sam-mini in w4a8 as deployed, de-quantized and with integer products."""
    float_model, processor = saqsam.load("sam-mini")
    recipe = dataclasses.replace(
        deployable(saqsam.recipe_for("mse", "w4a8")), calibration=Calibration(images=1, prompts=2)
    )
    data = saqsam.open_dataset("scenes", limit=1, seed=5)
    plain = saqsam.quantize(float_model, processor, recipe, data).model
    integer = copy.deepcopy(plain)
    use_integer_kernels(integer)
    return plain, integer


def run(model: SamModel, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embedding and logits of a scene."""
    sample = saqsam.open_dataset("scenes", limit=1, seed=seed)[0]
    predictor = saqsam.Predictor(model)
    predictor.set_image(sample.image)
    boxes = [instance.box for instance in sample.instances[:2]]
    _, _, low_res = predictor.predict_batch(boxes=boxes, multimask_output=False)
    return predictor.features, low_res


def test_every_layer_of_sam_mini_has_exact_sums(mini: tuple[SamModel, SamModel]) -> None:
    _, integer = mini
    with exact_layers(integer) as (names, seen):
        run(integer)
    assert seen == names
    assert len(names) > 50


def test_masks_of_sam_mini_are_those_of_the_dequantized_path(mini: tuple[SamModel, SamModel]) -> None:
    (plain_embedding, plain_logits), (embedding, logits) = (run(model, seed=3) for model in mini)
    assert float((embedding - plain_embedding).norm() / plain_embedding.norm()) < 0.02
    assert float(mask_iou(logits[:, 0] > 0, plain_logits[:, 0] > 0).mean()) > 0.97
    assert not torch.equal(logits, plain_logits)  # it did compute in another way


def test_what_is_saved_stays_the_same(mini: tuple[SamModel, SamModel]) -> None:
    plain, integer = (checkpoint_tensors(model) for model in mini)
    assert plain.keys() == integer.keys()
    assert all(torch.equal(plain[name], integer[name]) for name in plain)


def test_layers_are_counted_and_reasons_given() -> None:
    model = quantize_tiny(tiny_recipe(bits="w4a4"))
    total = sum(isinstance(layer, PackedLinear) for layer in model.modules())
    layers = find_integer_layers(model)
    assert (layers.integer, layers.dequantized, layers.total) == (total, {}, total)
    assert not any(isinstance(layer, IntegerLinear) for layer in model.modules())
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, PackedLinear))
    layer.input_quantizer = nn.Identity()
    for _ in range(2):  # the second time there is nothing left to do
        layers = use_integer_kernels(model)
        assert (layers.integer, layers.dequantized) == (total - 1, {FLOAT_INPUT: 1})
        assert sum(isinstance(layer, IntegerLinear) for layer in model.modules()) == total - 1
    assert type(model.get_submodule(name)) is PackedLinear


def test_the_dequantized_model_is_the_quantized_one_without_rounded_activations() -> None:
    recipe = deployable(tiny_recipe("mse", "w8a8", input_scales=True, equalized=True))
    model = quantize_tiny(recipe)
    plain = dequantized(model)
    assert type(plain.vision_encoder.layers[0].attn.qkv) is nn.Linear
    with emptied(
        model,
        [slot.name for slot in plan_quantization(model.config, recipe).slots],
    ):
        wanted = outputs(model)
    found = outputs(plain)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_torch_compile_takes_an_accelerators_kernels_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantize_tiny(deployable(tiny_recipe("mse", "w8a8")))
    monkeypatch.setattr("saqsam.runtimes.torch_integer.choose_kernel", lambda layer: IntMmKernel)
    use_integer_kernels(model)
    assert any(isinstance(layer, IntegerLinear) for layer in model.vision_encoder.modules())
    pixels = tiny_pixels()
    with torch.no_grad():
        wanted = model.vision_encoder(pixels).last_hidden_state
        compiled = torch.compile(model.vision_encoder, backend="eager", fullgraph=True)
        assert torch.equal(compiled(pixels).last_hidden_state, wanted)


def test_speed_is_measured_of_both_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saqsam.runtimes.torch_integer.MAX_ROUNDS", 2)
    model = quantized_tiny()
    calls: list[str] = []
    encode = TorchBackend.encode

    def counted(self: TorchBackend, pixel_values: Tensor) -> Tensor:
        calls.append("quantized" if self.model is model else "float")
        return encode(self, pixel_values)

    monkeypatch.setattr(TorchBackend, "encode", counted)
    speeds = compare_with_float(model, prompts=2)
    assert calls == 3 * ["quantized", "float"]  # in turn, and once to warm up
    assert [speed.part for speed in speeds] == ["encoder", "decoder"]
    for speed in speeds:
        assert speed.seconds > 0
        assert speed.ratio == speed.float_seconds / speed.seconds


def test_prompts_of_all_kinds_run() -> None:
    model = quantize_tiny(tiny_recipe(bits="w4a4"))
    use_integer_kernels(model)
    with torch.inference_mode():
        backend = TorchBackend(model)
        features = backend.encode(torch.zeros(1, 3, *2 * (model.config.vision_config.image_size,)))
        points = Prompts(points=torch.rand(3, 2, 2) * 50, labels=torch.ones(3, 2, dtype=torch.int64))
        logits, ious = backend.decode(features, points, True)
    assert logits.shape[:2] == ious.shape == (3, 3)
    assert torch.isfinite(logits).all()
