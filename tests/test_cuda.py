"""The main paths on a GPU; skipped where there is none. `SAQSAM_TEST_DEVICE=cpu` runs them on a CPU instead."""

import copy
import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SamModel

import saqsam
from saqsam.evaluation import PromptTask
from saqsam.evaluation.tasks.everything import EverythingTask
from saqsam.inference.mask_generator import GeneratorOptions
from saqsam.ptq.pipeline import quantize
from saqsam.recipes.deployment import deployable
from saqsam.recipes.methods import METHODS
from saqsam.recipes.recipe import Recipe
from saqsam.runtimes import compare_with_float, use_integer_kernels
from support.command_line import assert_done, run
from support.exact_layers import exact_layers
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam import tiny_processor, tiny_sam

DEVICE = os.environ.get("SAQSAM_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device is here"
)


def recipe(method: str, precision: str = "float32", bits: str = "w4a4") -> Recipe:
    made = tiny_recipe(method, bits)
    if made.reconstruction is None:
        return made
    learned = dataclasses.replace(made.reconstruction, steps=6, precision=precision, rounding_rate=0.05)  # type: ignore[arg-type]
    return dataclasses.replace(made, reconstruction=learned)


def quantized(made: Recipe, device: str = DEVICE, **options: object) -> SamModel:
    return quantize_on(made, device, **options).model


def quantize_on(made: Recipe, device: str = DEVICE, **options: object) -> saqsam.QuantizationResult:
    model = tiny_sam().to(device)
    return quantize(model, tiny_processor(), made, tiny_data(), **options)  # type: ignore[arg-type]


def checkpoint(model: SamModel, folder: Path) -> bytes:
    """The tensors' file of a model's checkpoint."""
    saqsam.save_checkpoint(model, tiny_processor(), folder)
    (file,) = folder.glob("*.safetensors")
    return file.read_bytes()


def masks(model: SamModel) -> np.ndarray:
    predictor = saqsam.Predictor(model, tiny_processor())
    predictor.set_image(tiny_data()[0].image)
    found = predictor.predict(box=np.array([4.0, 4.0, 40.0, 40.0]), return_logits=True)[0]
    assert isinstance(found, np.ndarray)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_gives_the_masks_of_the_model_in_memory(method: str, tmp_path: Path) -> None:
    model = quantized(recipe(method))
    assert model.device.type == torch.device(DEVICE).type
    saqsam.save_checkpoint(model, tiny_processor(), tmp_path / "q")
    reloaded, _ = saqsam.load(tmp_path / "q", device=DEVICE)
    np.testing.assert_array_equal(masks(reloaded), masks(model))


@pytest.mark.parametrize("method", ["mse", "saq-sam-plus"])
def test_a_checkpoint_gives_nearly_the_masks_that_it_gives_on_a_cpu(method: str, tmp_path: Path) -> None:
    saqsam.save_checkpoint(quantized(recipe(method, bits="w8a8")), tiny_processor(), tmp_path / "q")
    here, there = (masks(saqsam.load(tmp_path / "q", device=device)[0]) for device in (DEVICE, "cpu"))
    # Values on the border of two codes may fall either way.
    assert ((here > 0) == (there > 0)).mean() > 0.95


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["brecq", "ptq4sam", "saq-sam", "saq-sam-plus"])
def test_two_runs_are_byte_equal(method: str, precision: str, tmp_path: Path) -> None:
    made = recipe(method, precision)
    assert checkpoint(quantized(made), tmp_path / "one") == checkpoint(quantized(made), tmp_path / "two")


@pytest.mark.parametrize("method", ["mse", "saq-sam-s"])
def test_it_finds_what_a_cpu_finds(method: str) -> None:
    here, there = (dict(quantized(recipe(method), device).named_buffers()) for device in (DEVICE, "cpu"))
    assert here.keys() == there.keys()
    scales = [name for name in here if name.endswith("quantizer.scale")]
    ratios = torch.stack([here[name].cpu() / there[name] for name in scales])
    assert ((ratios - 1).abs() < 0.02).float().mean() > 0.9
    codes = [name for name in here if name.endswith(".codes")]
    same = sum(int((here[name].cpu() == there[name]).sum()) for name in codes)
    assert same / sum(there[name].numel() for name in codes) > 0.999


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])
def test_integer_products_are_exact(bits: str) -> None:
    plain = quantized(deployable(recipe("mse", bits=bits)))
    integer = copy.deepcopy(plain)
    layers = use_integer_kernels(integer)
    assert (layers.integer, layers.dequantized) == (layers.total, {})
    with exact_layers(integer) as (names, seen):
        found = masks(integer)
    assert seen == names
    assert ((found > 0) == (masks(plain) > 0)).mean() > 0.95


def test_speed_against_float_is_measured() -> None:
    model = quantized(recipe("mse", bits="w8a8"))
    use_integer_kernels(model)
    assert [speed.part for speed in compare_with_float(model, prompts=2)] == ["encoder", "decoder"]


def test_what_does_not_fit_the_budget_goes_to_disk(tmp_path: Path) -> None:
    made = recipe("saq-sam-plus")
    ample, little = quantized(made, memory=2**30), quantized(made, memory=2**16)
    assert checkpoint(ample, tmp_path / "one") == checkpoint(little, tmp_path / "two")


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    made = recipe("saq-sam-plus")

    class Stop(Exception):
        pass

    def stop(phase: str, done: int, total: int, note: str = "") -> None:
        if phase.startswith("4/"):
            raise Stop

    with pytest.raises(Stop):
        quantized(made, resume_dir=tmp_path / "unfinished", progress=stop)
    resumed = quantize_on(made, resume_dir=tmp_path / "unfinished")
    assert len(resumed.log.units) == 7
    assert checkpoint(resumed.model, tmp_path / "one") == checkpoint(quantized(made), tmp_path / "two")


@pytest.mark.parametrize("prompt", ["box", "point", "clicks"])
def test_evaluation(prompt: str) -> None:
    model = tiny_sam()
    tasks = [PromptTask(prompt), EverythingTask(GeneratorOptions(points_per_side=4))]  # type: ignore[arg-type]
    there = saqsam.evaluate(model, tiny_processor(), tiny_data(), tasks=tasks)
    here = saqsam.evaluate(tiny_sam().to(DEVICE), tiny_processor(), tiny_data(), tasks=tasks)
    assert here.metrics["prompt"]["instances"] == there.metrics["prompt"]["instances"]
    assert here.metrics["prompt"]["miou"] == pytest.approx(there.metrics["prompt"]["miou"], abs=0.02)


def test_the_command_line(tmp_path: Path) -> None:
    tiny_sam().save_pretrained(tmp_path / "tiny")
    tiny_processor().save_pretrained(tmp_path / "tiny")
    device = ("--device", DEVICE)
    few = ("--images", "2", "--check-images", "2", "--steps", "2")
    assert_done(run("quantize", tmp_path / "tiny", "--out", tmp_path / "q", *few, *device))
    assert_done(run("compare", tmp_path / "tiny", tmp_path / "q", "--limit", "2", *device))
    full = ("--limit", "2", "--sensitivity-images", "1")
    result = run("report", tmp_path / "q", *full, "--out", tmp_path / "r.html", *device)
    assert_done(result)
    assert "left out" not in result.stdout
    assert_done(run("evaluate", tmp_path / "q", "--limit", "2", *device))
    assert_done(run("evaluate", tmp_path / "q", "--limit", "2", "--runtime", "torch-int8", *device))
