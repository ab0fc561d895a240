"""The result of `quantize`: what it holds, and that saving it removes the finished steps."""

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

import saqsam
from saqsam.checkpoint import recipe_of
from saqsam.ptq.journal import remove_steps
from saqsam.ptq.pipeline import quantize
from saqsam.recipes import methods
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.recipe import Calibration, Recipe
from support.tiny_quantized import assert_same_outputs, quantized_tiny, tiny_data, tiny_recipe
from support.tiny_sam import tiny_processor, tiny_sam


def test_saving_writes_a_checkpoint_and_removes_the_steps(tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    recipe = tiny_recipe("saq-sam-s")
    result = quantize(tiny_sam(), tiny_processor(), recipe, tiny_data(), resume_dir=steps)
    assert (steps / "ranges.safetensors").exists()
    assert result.recipe == recipe == recipe_of(result.model)
    assert len(result.log.clipping) == 7
    assert result.save(tmp_path / "q") == tmp_path / "q"
    assert [path.name for path in tmp_path.iterdir()] == ["q"]
    model, _ = saqsam.load(tmp_path / "q", device="cpu")
    assert_same_outputs(model, result.model)
    result.save(tmp_path / "q", overwrite=True)


def test_the_steps_stay_if_saving_fails(tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    result = quantize(tiny_sam(), tiny_processor(), tiny_recipe(), tiny_data(), resume_dir=steps)
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="exists"):
        result.save(tmp_path / "q")
    assert (steps / "ranges.safetensors").exists()


def test_only_steps_are_removed(tmp_path: Path) -> None:
    for name in ("ranges.safetensors", "unit-00.safetensors", "arguments.json", "model.safetensors", "lock"):
        (tmp_path / name).write_bytes(b"")
    remove_steps(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "model.safetensors"]
    remove_steps(tmp_path / "nowhere")


def test_a_model_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipe, processor and calibration data have defaults; few images and steps keep the test short."""

    def few(weight_bits: int, activation_bits: int) -> Recipe:
        recipe = methods.mse(weight_bits, activation_bits)
        return dataclasses.replace(recipe, calibration=Calibration(images=2, prompts=2))

    monkeypatch.setitem(methods.METHODS, "saq-sam-plus", few)
    result = saqsam.quantize(tiny_sam())
    assert result.recipe.name == "mse-w4a4"
    assert (result.log.images, result.log.prompts) == (2, 4)
    size = {"height": 64, "width": 64}
    assert result.processor.image_processor.pad_size == size


def test_a_list_of_images_is_calibration_data() -> None:
    images = [tiny_data()[0].image, Image.fromarray(tiny_data()[1].image)]
    result = quantize(tiny_sam(), tiny_processor(), tiny_recipe(), images)
    assert result.log.images == 2
    assert result.log.prompts > 0


def test_a_recipe_can_be_named_and_memory_be_text(monkeypatch: pytest.MonkeyPatch) -> None:
    few = tiny_recipe()
    monkeypatch.setitem(methods.METHODS, "min-max", lambda *bits: few)
    result = quantize(tiny_sam(), None, "min-max", tiny_data(), memory="64MiB")
    assert_same_outputs(result.model, quantized_tiny())


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("saq-sma", {}, "no method 'saq-sma'; did you mean"),
        (4, {}, "recipe: expected a Recipe or the name of a method, got int"),
        ("mse", {"memory": "much"}, "a size must look like 4GiB"),
        ("mse", {"memory": 0}, "a size must be at least one byte, got 0"),
        ("mse", {"calibration": "nowhere"}, "no such folder"),
    ],
)
def test_unusable_arguments_are_refused_at_once(recipe: object, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(tiny_sam(), None, recipe, **options)  # type: ignore[arg-type]


def test_a_result_prints_on_one_line() -> None:
    result = quantize(tiny_sam(), None, recipe_for("weight-only", "w4"))
    assert repr(result) == "QuantizationResult(weight-only-w4, not calibrated)"
