"""The pipeline: the float model stays, and what comes out is packed, deterministic and near the original."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import SamModel

from saqsam.checkpoint import quantization_config_of, recipe_of
from saqsam.convert import pack as pack_module
from saqsam.convert.pack import pack_without_calibration
from saqsam.convert.plan import QuantizationPlan
from saqsam.convert.prepare import prepare
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.data.types import Sample
from saqsam.ptq import pipeline
from saqsam.ptq.log import QuantizationLog
from saqsam.ptq.pipeline import quantize
from saqsam.quant.layers import PackedLinear
from saqsam.recipes.methods import METHODS
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.recipe import Calibration, QuantSpec
from support.tiny_quantized import (
    assert_same_outputs,
    mixed_tiny,
    outputs,
    quantize_tiny,
    quantized_tiny,
    tiny_data,
    tiny_recipe,
)
from support.tiny_sam import tiny_config, tiny_processor, tiny_sam


def snapshot(model: SamModel) -> dict[str, object]:
    """All that could be changed about a model."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modules": {name: (id(module), type(module)) for name, module in model.named_modules()},
        "training": {name: module.training for name, module in model.named_modules()},
        "grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "config": model.config.to_dict(),
    }


def assert_unchanged(model: SamModel, before: dict[str, object]) -> None:
    after = snapshot(model)
    tensors, old = after.pop("tensors"), dict(before).pop("tensors")
    assert isinstance(tensors, dict)
    assert isinstance(old, dict)
    assert tensors.keys() == old.keys()
    assert all(torch.equal(tensors[name], old[name]) for name in old)
    assert after == {key: value for key, value in before.items() if key != "tensors"}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_float_model_stays_as_it_is(method: str) -> None:
    model = tiny_sam().train()
    before = snapshot(model)
    quantized = quantize(model, tiny_processor(), tiny_recipe(method), tiny_data()).model
    assert_unchanged(model, before)
    assert quantization_config_of(model) is None
    assert quantized is not model
    assert not any(module.training for module in quantized.modules())
    # No parameter is shared: changing one leaves the other.
    ours = {parameter.data_ptr() for parameter in quantized.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in model.parameters()}


@pytest.mark.parametrize("method", ["min-max", "saq-sam-s", "weight-only"])
def test_methods_that_learn_nothing_share_the_weights_until_they_are_packed(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_sam()
    before = snapshot(model)
    weights = {weight.data_ptr() for weight in model.parameters() if weight.dim() > 1}
    shares: list[float] = []

    def count_shared(made: SamModel, plan: QuantizationPlan) -> None:
        ours = [weight.data_ptr() for weight in made.parameters() if weight.dim() > 1]
        shares.append(sum(pointer in weights for pointer in ours) / len(ours))
        prepare(made, plan)

    monkeypatch.setattr(pipeline, "prepare", count_shared)
    monkeypatch.setattr(pack_module, "prepare", count_shared)
    recipe = tiny_recipe(method, "w4" if method == "weight-only" else "w4a4")
    quantized = quantize(model, tiny_processor(), recipe, tiny_data()).model
    assert min(shares) > 0.5  # all but those rounded to float16
    assert_unchanged(model, before)
    ours = {parameter.data_ptr() for parameter in quantized.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in model.parameters()}


class Broken(ScenesDataset):
    def __getitem__(self, i: int) -> Sample:
        raise OSError("unreadable")


def test_the_float_model_stays_as_it_is_after_an_error() -> None:
    model = tiny_sam()
    before = snapshot(model)
    with pytest.raises(OSError, match="unreadable"):
        quantize(model, tiny_processor(), tiny_recipe(), Broken(2))
    assert_unchanged(model, before)


def test_the_result_is_a_sam_model_with_its_recipe() -> None:
    recipe = tiny_recipe(bits="w4a8")
    model = quantized_tiny(bits="w4a8")
    assert type(model) is SamModel
    assert recipe_of(model) == recipe
    assert model.is_quantized
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    shared = model.prompt_encoder.shared_embedding.positional_embedding
    assert shared is model.shared_image_embedding.positional_embedding


def test_the_same_recipe_gives_the_same_model() -> None:
    again = quantize_tiny(tiny_recipe())
    first = quantized_tiny()
    assert again.state_dict().keys() == first.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in first.state_dict().items())
    assert_same_outputs(again, first)


@pytest.mark.parametrize("model", [quantized_tiny, mixed_tiny])
def test_two_evaluations_are_bit_equal(model: object) -> None:
    assert callable(model)
    assert_same_outputs(model(), model())


def test_evaluating_changes_nothing() -> None:
    model = quantized_tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outputs(model, seed=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_more_bits_are_nearer_to_the_float_model() -> None:
    expected = outputs(tiny_sam())
    spread = float(expected["box_masks"].std())
    errors = []
    for bits in ("w8a8", "w6a6", "w4a4", "w2a2"):
        found = outputs(quantized_tiny(bits=bits))
        errors.append(float((found["box_masks"] - expected["box_masks"]).square().mean().sqrt()) / spread)
    assert errors == sorted(errors)
    assert errors[0] < 0.2
    agreement = (found["box_masks"] > 0) == (expected["box_masks"] > 0)
    assert agreement.float().mean() < 1  # two bits do change masks


def test_weights_are_those_of_the_grid_nearest_to_the_float_ones() -> None:
    model, original = quantized_tiny(bits="w8a8"), tiny_sam()
    layer = model.vision_encoder.layers[0].mlp.lin1
    assert isinstance(layer, PackedLinear)
    error = (layer.weight() - original.vision_encoder.layers[0].mlp.lin1.weight).abs()
    assert (error <= layer.weight.scale[:, None] / 2 * 1.001).all()
    assert all(len(row.unique()) <= 16 for row in quantized_tiny().vision_encoder.layers[0].mlp.lin1.weight())


def test_symmetric_recipes_have_middle_zero_points() -> None:
    recipe = tiny_recipe(
        weights=QuantSpec(4, symmetric=True, range="min-max"),
        activations=QuantSpec(6, symmetric=True, range="min-max"),
    )
    for name, tensor in quantize_tiny(recipe).state_dict().items():
        if name.endswith(".zero_point"):
            assert tensor.eq(32 if tensor.dtype == torch.int32 else 8).all(), name


def test_a_half_precision_model_is_quantized_as_its_float32_copy() -> None:
    half = tiny_sam().half()
    found = quantize(half, tiny_processor(), tiny_recipe(), tiny_data()).model
    expected = quantize(tiny_sam().half().float(), tiny_processor(), tiny_recipe(), tiny_data()).model
    assert half.dtype == torch.float16
    assert_same_outputs(found, expected)


def test_progress_is_told() -> None:
    steps: list[tuple[Any, ...]] = []
    quantize(
        tiny_sam(), tiny_processor(), tiny_recipe("saq-sam"), tiny_data(), progress=lambda *s: steps.append(s)
    )
    assert list(dict.fromkeys(what for what, *_ in steps)) == [
        *("choosing prompts", "calibrating", "activation ranges", "clipping attentions"),
        *("1/6 encoder stage 1", "2/6 encoder stage 2", "3/6 neck", "4/6 decoder layer 1"),
        *("5/6 decoder layer 2", "6/6 final attention", "packing weights"),
    ]
    for name in {what for what, *_ in steps}:  # announced, then one report per step
        reports = [(done, total) for what, done, total, *_ in steps if what == name]
        assert reports[0] == (0, reports[-1][1])
        assert [done for done, _ in reports] == sorted({done for done, _ in reports})


def test_progress_of_weights_alone_is_told() -> None:
    steps: list[tuple[Any, ...]] = []
    recipe = recipe_for("weight-only", "w4g16")
    quantize(tiny_sam(), None, recipe, tiny_data(), progress=lambda *s: steps.append(s))
    assert steps == [("packing weights", done, len(steps) - 1) for done in range(len(steps))]
    assert len(steps) > 10


@pytest.mark.slow
def test_embeddings_are_packed_before_the_first_unit_learns_on_them() -> None:
    """What the first unit is given comes from the packed patch and position embeddings."""
    extra = {"patch_embedding": 2, "position_embedding": 2}
    coarse, fine = (
        quantize_tiny(tiny_recipe("saq-sam", extra=dict.fromkeys(extra, bits))) for bits in (2, 8)
    )
    name = "vision_encoder.layers.0.attn.qkv.weight"
    assert not torch.equal(coarse.get_submodule(name).unpack(), fine.get_submodule(name).unpack())


# ---- bad input


def test_a_quantized_model_is_refused() -> None:
    with pytest.raises(ValueError, match="quantized already"):
        quantize(quantized_tiny(), tiny_processor(), tiny_recipe(), tiny_data())


@pytest.mark.parametrize("name", ["vision_encoder.layers.0.attn.qkv.weight", "mask_decoder.iou_token.weight"])
def test_nan_in_the_weights_is_refused(name: str) -> None:
    model = tiny_sam()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = float("nan")
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinity"):
        quantize(model, tiny_processor(), tiny_recipe(), tiny_data())
    assert dict(model.named_modules()) == before


def test_a_float_parameter_beyond_float16_is_refused() -> None:
    model = tiny_sam()
    with torch.no_grad():
        model.mask_decoder.iou_prediction_head.proj_out.bias[0] = 7e4
    with pytest.raises(ValueError, match="which float16 cannot store"):
        quantize(model, tiny_processor(), tiny_recipe(), tiny_data())


def test_a_model_with_modules_missing_is_refused() -> None:
    model = tiny_sam()
    del model.mask_decoder.upscale_conv2
    with pytest.raises(ValueError, match=r"no module mask_decoder\.upscale_conv2"):
        quantize(model, tiny_processor(), tiny_recipe(), tiny_data())


def test_a_position_embedding_that_is_not_there_is_passed_over() -> None:
    """Named recipes fit all models: those without absolute positions have fewer weights to pack."""
    config = tiny_config()
    config.vision_config.use_abs_pos = False
    recipe = tiny_recipe(extra={"position_embedding": 8})
    quantized = quantize(tiny_sam(config=config), tiny_processor(), recipe, tiny_data()).model
    assert quantized.vision_encoder.pos_embed is None
    assert outputs(quantized)["box_masks"].std() > 0


def test_fewer_calibration_images_than_asked_for_are_said() -> None:
    with pytest.warns(UserWarning, match="the calibration set has 2 images, fewer than the recipe.s 3"):
        quantize_tiny(tiny_recipe(calibration=Calibration(images=3, prompts=1)))


def test_weights_that_are_constant_or_zero_survive() -> None:
    model = tiny_sam()
    with torch.no_grad():
        model.vision_encoder.layers[0].mlp.lin1.weight.zero_()
        model.vision_encoder.neck.conv1.weight.fill_(0.25)
    layer = quantize(model, tiny_processor(), tiny_recipe(), tiny_data()).model
    assert not layer.vision_encoder.layers[0].mlp.lin1.weight().any()
    torch.testing.assert_close(layer.vision_encoder.neck.conv1.weight(), torch.full((32, 32, 1, 1), 0.25))
    assert isinstance(model.vision_encoder.neck.conv1, nn.Conv2d)


def test_weight_only_recipes_look_at_no_calibration_data() -> None:
    class Unreadable:
        name = "unreadable"

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            raise AssertionError("read")

    result = quantize(tiny_sam(), None, recipe_for("weight-only", "w4g16"), Unreadable())
    assert result.log == QuantizationLog()
    expected = tiny_sam()
    pack_without_calibration(expected, result.recipe)
    assert_same_outputs(result.model, expected.eval())
