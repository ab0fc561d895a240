"""Casts of a quantized model: bfloat16 beside float32 scales, everything else refused."""

import copy
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_flatten
from transformers import SamModel

import saqsam
from saqsam.checkpoint import load_checkpoint, save_checkpoint
from saqsam.inference.predictor import Predictor
from saqsam.models.registry import family_of
from saqsam.quant.layers import PackedLayer
from saqsam.recipes.overrides import with_overrides
from saqsam.runtimes.torch_integer import use_integer_kernels
from support.tiny_mobile_sam import tiny_mobile_sam
from support.tiny_quantized import assert_same_outputs, mixed_tiny, outputs, quantized_tiny, tiny_data
from support.tiny_sam import tiny_pixels, tiny_processor, tiny_sam
from support.tiny_sam2 import tiny_sam2
from support.tiny_sam3_tracker import tiny_sam3_tracker
from support.tiny_sam_hq import tiny_sam_hq

CASTS: dict[str, Callable[[SamModel], SamModel]] = {
    "to": lambda model: model.to(torch.bfloat16),
    "to, by keyword": lambda model: model.to(dtype=torch.bfloat16),
    "to, with a device": lambda model: model.to("cpu", torch.bfloat16),
    "bfloat16": lambda model: model.bfloat16(),
    "a copy": lambda model: copy.deepcopy(model).bfloat16(),
}


def mean_iou(model: SamModel, reference: SamModel) -> float:
    """Mean IoU of the masks of two models of the tiny scenes."""
    ious = []
    for sample in tiny_data(4):
        masks = []
        for one in (model, reference):
            predictor = Predictor(one, tiny_processor())
            predictor.set_image(sample.image)
            boxes = np.array([instance.box for instance in sample.instances])
            masks.append(predictor.predict_batch(boxes=boxes)[0])
        both, either = masks[0] & masks[1], masks[0] | masks[1]
        ious.append(both.sum() / either.sum())
    return float(np.mean(ious))


@pytest.mark.slow
@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("integer", ["no", "before", "after"])
def test_activations_become_bfloat16(cast: str, integer: str) -> None:
    reference = mixed_tiny()
    model = copy.deepcopy(reference)
    if integer == "before":
        use_integer_kernels(model)
    model = CASTS[cast](model)
    if integer == "after":
        use_integer_kernels(model)
    assert model.dtype == model.config.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for name, tensor in reference.state_dict().items():
        if name.endswith((".scale", ".zero_point", ".codes")):
            assert torch.equal(model.state_dict()[name], tensor), name
    seen = set()

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.add((inputs[0].dtype, output.dtype))

    for module in model.modules():
        if isinstance(module, PackedLayer):
            module.register_forward_hook(note)
    masks = outputs(model)["box_masks"]
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    assert masks.dtype == torch.bfloat16
    expected = outputs(reference)["box_masks"]
    assert float((masks.float() - expected).square().mean().sqrt() / expected.std()) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["min-max", "ptq4sam-s", "saq-sam-plus"])
def test_masks_stay_close(method: str) -> None:
    reference = quantized_tiny(method, "w8a8")
    model = copy.deepcopy(reference).to(torch.bfloat16)
    assert mean_iou(model, reference) > 0.95


@pytest.mark.parametrize("place", [(200.3, 100.1), (201.3, 100.1)])
def test_coordinates_are_not_rounded(place: tuple[float, float]) -> None:
    model = copy.deepcopy(quantized_tiny())
    expected = copy.deepcopy(model)
    model.to(torch.bfloat16)
    found, exact = (
        one.shared_image_embedding(torch.tensor([[[place]]]), (1024, 1024)).float()
        for one in (model, expected)
    )
    # The matrix and the result are rounded to 8 bits; a coordinate so rounded would move by up to two pixels.
    assert float((found - exact).abs().max()) < 0.02
    other = model.shared_image_embedding(torch.tensor([[[(place[0] + 1, place[1])]]]), (1024, 1024))
    assert not torch.equal(found, other.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_transformers_loads_in_bfloat16(packed: Path, dtype: torch.dtype | str) -> None:
    model = SamModel.from_pretrained(packed, dtype=dtype)
    assert model.dtype == torch.bfloat16
    found, expected = outputs(model), outputs(copy.deepcopy(quantized_tiny()).to(torch.bfloat16))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, "float32", "auto", None])
def test_transformers_loads_in_float32(packed: Path, dtype: torch.dtype | str | None) -> None:
    model = SamModel.from_pretrained(packed, dtype=dtype)
    assert model.dtype == torch.float32
    assert_same_outputs(model, quantized_tiny())


def test_a_file_cannot_ask_for_another_dtype(packed: Path, tmp_path: Path) -> None:
    folder = save_checkpoint(copy.deepcopy(quantized_tiny()), tiny_processor(), tmp_path / "checkpoint")
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    assert '"bfloat16"' in path.read_text()
    for model in (SamModel.from_pretrained(folder), saqsam.load(folder)[0]):
        assert_same_outputs(model, quantized_tiny())


REFUSED: dict[str, Callable[[SamModel], object]] = {
    "float16": lambda model: model.to(torch.float16),
    "float64": lambda model: model.double(),
    "float64 and a device": lambda model: model.to("cpu", torch.float64),
    "half": lambda model: model.half(),
}


@pytest.mark.parametrize("cast", REFUSED)
def test_other_dtypes_are_refused_in_one_line(cast: str) -> None:
    model = copy.deepcopy(quantized_tiny())
    message = "computes in float32 or bfloat16, got float|not supported for quantized model"
    with pytest.raises(ValueError, match=message) as error:
        REFUSED[cast](model)
    assert "\n" not in str(error.value)
    assert_same_outputs(model, quantized_tiny())


@pytest.mark.parametrize("dtype", [torch.float16, "float16", torch.float64])
def test_transformers_refuses_other_dtypes(packed: Path, dtype: torch.dtype | str) -> None:
    with pytest.raises(ValueError, match="dtype: a quantized SAM computes in float32 or bfloat16, got float"):
        SamModel.from_pretrained(packed, dtype=dtype)


def test_bfloat16_is_for_good(tmp_path: Path) -> None:
    model = copy.deepcopy(quantized_tiny()).to(torch.bfloat16)
    assert model.to(torch.bfloat16) is model
    with pytest.raises(ValueError, match="load it again to use float32"):
        model.to(torch.float32)
    for save in (
        lambda: model.save_pretrained(tmp_path / "a"),
        lambda: save_checkpoint(model, tiny_processor(), tmp_path / "b"),
    ):
        with pytest.raises(ValueError, match="cast to bfloat16, which lost digits; save one that was loaded"):
            save()


@pytest.mark.parametrize("load", [load_checkpoint, SamModel.from_pretrained])
def test_casts_of_loaded_and_pickled_models(packed: Path, load: Callable[[Path], SamModel]) -> None:
    stored = io.BytesIO()
    torch.save(load(packed), stored)
    stored.seek(0)
    model = torch.load(stored, weights_only=False)
    assert_same_outputs(model, quantized_tiny())
    expected = outputs(copy.deepcopy(quantized_tiny()).bfloat16())
    for one in (model.bfloat16(), load(packed).bfloat16(), copy.deepcopy(load(packed)).bfloat16()):
        found = outputs(one)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    again = copy.deepcopy(model)
    assert torch.equal(outputs(again)["box_masks"], expected["box_masks"])


def test_moves_still_move() -> None:
    model = copy.deepcopy(quantized_tiny())
    assert model.to("meta", torch.bfloat16) is model
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert model.dtype == torch.bfloat16


def test_float_models_are_cast_as_ever() -> None:
    assert tiny_sam().to(torch.float16).dtype == torch.float16


def test_pixels_may_be_in_either_dtype() -> None:
    model = copy.deepcopy(quantized_tiny()).bfloat16()
    pixels = tiny_pixels()
    found = [model.get_image_embeddings(one) for one in (pixels, pixels.bfloat16())]
    assert torch.equal(*found)


FAMILIES: dict[str, Callable[[], SamModel]] = {
    "sam": tiny_sam,
    "sam_hq": tiny_sam_hq,
    "mobile_sam": tiny_mobile_sam,
    "sam2": tiny_sam2,
    "sam3_tracker": tiny_sam3_tracker,
}


@pytest.mark.parametrize("extra", [(), ("extra.patch_embedding=8",)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_float32_pixels_and_exact_coordinates(family: str, extra: tuple[str, ...]) -> None:
    recipe = with_overrides(saqsam.recipe_for("weight-only", "w8"), extra)
    result = saqsam.quantize(FAMILIES[family](), recipe=recipe)
    model, reference = copy.deepcopy(result.model).bfloat16(), result.model
    side = family_of(model.config).input_spec(model.config).image_size
    pixels = torch.rand(1, 3, side, side)
    found = [model.get_image_embeddings(one) for one in (pixels, pixels.bfloat16())]
    leaves = [tree_flatten(one)[0] for one in found]
    assert all(torch.equal(one, other) for one, other in zip(*leaves, strict=True))
    (name,) = (
        name
        for name, module in reference.named_modules()
        if type(module) is family_of(model.config).coordinate_encoding
        and not name.startswith("prompt_encoder")
    )
    place = torch.tensor([[[[0.7 * side + 0.3, 0.4 * side + 0.1]]]])
    encoded, exact = (one.get_submodule(name)(place, (side, side)).float() for one in (model, reference))
    assert float((encoded - exact).abs().max()) < 0.02
