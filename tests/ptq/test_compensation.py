"""Compensation of a whole model: less error, the same grids, and nothing left behind in the model."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import SamModel

import saqsam
from saqsam.convert.pack import round_weight
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import fill_slots, prepare, prepared_copy
from saqsam.ptq import pipeline
from saqsam.ptq.calibration import calibrate
from saqsam.ptq.calibration_images import CalibrationImages, choose_calibration_images
from saqsam.ptq.compensation import compensate
from saqsam.ptq.tensor_store import MemoryBudget
from saqsam.quant.layers import PackedLinear, QuantLinear
from saqsam.recipes.compensation import Compensation
from saqsam.recipes.recipe import Recipe
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam import tiny_processor, tiny_sam
from support.tiny_sam2 import tiny_sam2, tiny_sam2_processor

RIVALS = ("gptq", "erq", "car-sam-s", "car-sam")


def compensated(
    spec: Compensation, method: str = "mse"
) -> tuple[SamModel, SamModel, CalibrationImages, Recipe]:
    """Return a compensated model, the float model, the images and the recipe."""
    recipe = replace(tiny_recipe(method), compensation=spec)
    float_model = tiny_sam()
    plan = plan_quantization(float_model.config, recipe)
    images = choose_calibration_images(
        prepared_copy(float_model, plan), tiny_processor(), tiny_data(), recipe.calibration
    )
    model = copy.deepcopy(float_model)
    prepare(model, plan)
    reference = copy.deepcopy(model)
    fill_slots(model, plan, calibrate(model, plan, images))
    with MemoryBudget(2**30) as budget:
        compensate(model, reference, plan, images, budget)
    return model, reference, images, recipe


def changed(model: SamModel, reference: SamModel) -> set[str]:
    """Return the names of all weights that differ."""
    pairs = zip(model.named_parameters(), reference.named_parameters(), strict=True)
    return {name for (name, new), (_, old) in pairs if name.endswith("weight") and not torch.equal(new, old)}


def embedding_error(recipe: Recipe) -> float:
    """Return the mean squared error of the image embedding of a quantized model, on a calibration image."""
    model, processor = tiny_sam(), tiny_processor()
    result = saqsam.quantize(model, processor, recipe, tiny_data())
    pixels = processor(tiny_data()[0].image, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        outputs: list[Tensor] = [m.get_image_embeddings(pixels) for m in (model, result.model)]
    return float((outputs[0] - outputs[1]).square().mean())


@pytest.mark.parametrize(
    "spec",
    [Compensation(inputs=False), Compensation(rounding=False), Compensation()],
    ids=["gptq", "ridge", "both"],
)
def test_the_embedding_is_closer_to_that_in_float(spec: Compensation) -> None:
    recipe = tiny_recipe("mse", "w3a8")
    assert embedding_error(replace(recipe, compensation=spec)) < 0.9 * embedding_error(recipe)


@pytest.mark.parametrize("layers", ["all", "decoder"])
def test_it_changes_the_layers_that_it_should(layers: str) -> None:
    model, reference, _, _ = compensated(Compensation(layers=layers))  # type: ignore[arg-type]
    plan = plan_quantization(model.config, tiny_recipe("mse"))
    wanted = {
        f"{planned.site.name}.weight"
        for planned in plan.weights
        if layers == "all" or planned.site.part.startswith("decoder.")
    }
    assert changed(model, reference) == wanted


def test_packing_takes_the_grid_that_was_compensated_for() -> None:
    model, _, _, recipe = compensated(Compensation())
    layer = model.get_submodule("mask_decoder.transformer.layers.0.mlp.lin1")
    assert isinstance(layer, QuantLinear)
    assert layer.weight_grid is not None
    packed = round_weight(layer, recipe.weights.bits, recipe)
    assert torch.equal(packed.scale, layer.weight_grid[0])
    assert isinstance(layer.weight_quantizer, nn.Identity)
    assert torch.equal(layer.bias, layer.bias.half().float())


def test_queries_differ_where_they_are_corrected_for_the_keys() -> None:
    plain, _, _, _ = compensated(Compensation(layers="decoder", rounding=False))
    corrected, _, _, _ = compensated(Compensation(layers="decoder", rounding=False, queries=True))
    name = "mask_decoder.transformer.layers.0.cross_attn_token_to_image"
    assert changed(corrected, plain) >= {f"{name}.q_proj.weight"}
    assert f"{name}.k_proj.weight" not in changed(corrected, plain)


@pytest.mark.parametrize("method", RIVALS)
def test_a_method_round_trips_to_the_same_masks(method: str, tmp_path: object) -> None:
    result = saqsam.quantize(tiny_sam(), tiny_processor(), tiny_recipe(method), tiny_data())
    assert isinstance(result.model.get_submodule("vision_encoder.layers.0.attn.qkv"), PackedLinear)
    folder = result.save(f"{tmp_path}/checkpoint")
    loaded, _ = saqsam.load(folder)
    for (name, ours), (_, theirs) in zip(
        result.model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("method", ["erq", "car-sam"])
def test_it_gives_the_same_checkpoint_again(method: str) -> None:
    first, second = (
        saqsam.quantize(tiny_sam(), tiny_processor(), tiny_recipe(method), tiny_data()).model.state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_progress_counts_layers() -> None:
    calls: list[tuple[int, int]] = []

    def progress(what: str, done: int, total: int, note: str = "", /) -> None:
        if what == "compensating":
            calls.append((done, total))

    recipe = replace(tiny_recipe("mse"), compensation=Compensation(layers="decoder"))
    saqsam.quantize(tiny_sam(), tiny_processor(), recipe, tiny_data(), progress=progress)
    plan = plan_quantization(tiny_sam().config, recipe)
    total = sum(planned.site.part.startswith("decoder.") for planned in plan.weights)
    assert calls[0] == (0, total)
    assert calls[-1] == (total, total)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layers", "neck", "layers must be one of all, decoder"),
        ("rounding", 1, "rounding must be true or false"),
        ("damping", 0, "damping must be a number from 1e-06 to 100"),
        ("images", 0, "images must be at least 1"),
    ],
)
def test_wrong_fields_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Compensation(**{field: value})


def test_weight_only_recipes_have_no_inputs_to_compensate_for() -> None:
    with pytest.raises(ValueError, match="compensation must be unset with float activations"):
        replace(saqsam.recipe_for("weight-only", "w4"), compensation=Compensation())


@pytest.mark.parametrize(
    ("build", "processor"),
    [(tiny_sam, tiny_processor), (tiny_sam2, tiny_sam2_processor)],
    ids=["sam", "sam2"],
)
def test_learning_gets_the_embeddings_that_it_would_compute(
    build: Any, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantized() -> tuple[dict[str, torch.Tensor], set[str]]:
        phases: set[str] = set()
        result = saqsam.quantize(
            build(), processor(), recipe, tiny_data(), progress=lambda phase, *_: phases.add(phase)
        )
        return result.model.state_dict(), phases

    def without_known(*arguments: Any, floats: Any) -> Any:
        return compensate(*arguments)

    def without_any(*arguments: Any, floats: Any) -> None:
        compensate(*arguments)

    recipe = tiny_recipe("saq-sam-plus")
    shared, phases = quantized()
    assert "embedding images" not in phases  # calibration has embedded them
    monkeypatch.setattr(pipeline, "compensate", without_known)
    computed, phases = quantized()
    assert "embedding images" in phases
    assert all(torch.equal(shared[name], computed[name]) for name in shared)
    monkeypatch.setattr(pipeline, "compensate", without_any)
    computed, _ = quantized()
    assert all(torch.equal(shared[name], computed[name]) for name in shared)


def test_targets_of_the_float_model_make_up_for_earlier_layers() -> None:
    own, _, _, _ = compensated(Compensation(rounding=False))
    floats, _, _, _ = compensated(Compensation(rounding=False, target="float"))
    first, later = "vision_encoder.layers.0.attn.qkv.weight", "vision_encoder.layers.1.attn.qkv.weight"
    assert first not in changed(own, floats)  # no layer before it is quantized
    assert later in changed(own, floats)
