import csv
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from transformers import SamModel

import saqsam
from saqsam.models.parts import TOKEN_TO_IMAGE_PARTS
from saqsam.models.registry import structure_of
from saqsam.ptq.calibration import run_image
from saqsam.ptq.calibration_images import CalibrationImages, choose_calibration_images
from saqsam.recipes.recipe import Calibration
from support.script_modules import scripts
from support.tiny_quantized import outputs, tiny_data, tiny_recipe
from support.tiny_sam import tiny_config, tiny_processor, tiny_sam

SITES = structure_of(tiny_config()).decoder_attentions


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    with scripts("benchmarks", ["outlier_twin", "outlier_heads", "outlier_errors"]) as found:
        yield found


@pytest.fixture(scope="module")
def images() -> CalibrationImages:
    return choose_calibration_images(tiny_sam(), tiny_processor(), tiny_data(), tiny_recipe().calibration)


@torch.no_grad()
def redundant_sam() -> SamModel:
    """A tiny SAM with a channel to spare in every head: two channels of the keys are proportional.

    A trained head has 16 or 32 channels, and the least of them hardly matters; four random ones all matter.
    """
    model = tiny_sam()
    for site in SITES:
        layer = model.get_submodule(site.key)
        for head in layer.weight.chunk(model.get_submodule(site.name).num_attention_heads):
            head[-1] = 0.5 * head[0]
    return model


def projected(model: SamModel, images: CalibrationImages) -> dict[str, Tensor]:
    """Queries and keys of every decoder attention, [T, C], by the name of their layer."""
    found: dict[str, list[Tensor]] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: found.setdefault(name, []).append(
                output.flatten(0, -2)
            )
        )
        for site in SITES
        for name in (site.query, site.key)
    ]
    with torch.inference_mode():
        for index in range(len(images)):
            run_image(model, images, index, {})
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


@pytest.fixture(scope="module")
def twin(modules, images) -> SamModel:
    return modules["outlier_twin"].make_twin(redundant_sam(), images)


@pytest.mark.parametrize("kinds", [("humps",), ("axis",), ("oblique",), ("humps", "axis", "oblique")])
def test_the_outputs_stay(modules, images, kinds) -> None:
    model = redundant_sam()
    twin = modules["outlier_twin"].make_twin(model, images, kinds)
    before, after = outputs(model), outputs(twin)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    for name, expected in before.items():
        assert (after[name] - expected).std() < 0.05 * expected.std(), name
    for (name, old), new in zip(redundant_sam().named_parameters(), model.parameters(), strict=True):
        assert torch.equal(old, new), f"{name} of the original was changed"


def test_queries_and_keys_have_rare_outliers(twin, images) -> None:
    before = projected(redundant_sam(), images)
    for name, values in projected(twin, images).items():
        magnitude = values.abs()
        # Two heads of four hold outliers in one channel and in two: 3 of 16 or 32 channels.
        assert 120 < magnitude.max() < 220, name
        assert magnitude.max() > 15 * before[name].abs().max(), name
        channels = magnitude.amax(0) > 50
        assert channels.sum() == 3, name
        common = magnitude[:, ~channels]
        assert common.max() < 30, name


def test_one_kind_lies_on_an_axis_and_the_other_on_a_diagonal(modules, images) -> None:
    for kind, count in (("axis", 1), ("oblique", 2)):
        twin = modules["outlier_twin"].make_twin(redundant_sam(), images, (kind,))
        found = projected(twin, images)
        for site in SITES:
            queries, keys = found[site.query], found[site.key]
            channels = (queries.abs().amax(0) > 50).nonzero()[:, 0]
            assert len(channels) == count, site.name
            # What the huge queries see of the keys is constant.
            seen = keys[:, channels].sum(1) if kind == "oblique" else keys[:, channels[0]]
            other = keys[:, channels].diff(dim=1).std() if kind == "oblique" else keys.std()
            assert seen.std() < 0.01 * other, site.name


def test_keys_of_tokens_to_the_image_have_two_humps(twin, images) -> None:
    found = projected(twin, images)
    for site in SITES:
        means = found[site.key].mean(0)
        if site.part in TOKEN_TO_IMAGE_PARTS:
            calm = found[site.key].abs().amax(0) < 50
            torch.testing.assert_close(means[calm].abs(), torch.full_like(means[calm], 8.0), rtol=0.1, atol=0)
            assert 2 < (means > 0).sum() < len(means) - 2, site.name
        else:
            assert means.abs().median() < 2, site.name


@pytest.mark.slow
def test_the_folder_loads_and_holds_the_twin(modules, tmp_path: Path) -> None:
    source, folder = tmp_path / "tiny", tmp_path / "tiny-outliers"
    redundant_sam().save_pretrained(source)
    tiny_processor().save_pretrained(source)
    arguments = ["--model", str(source), "--out", str(folder), "--data-root", str(tmp_path / "none")]
    assert modules["outlier_twin"].main(arguments) == 0
    model, processor = saqsam.load(folder)
    assert processor.image_processor.size == tiny_processor().image_processor.size
    expected, found = outputs(redundant_sam()), outputs(model)
    for name in expected:
        assert (found[name] - expected[name]).std() < 0.02 * expected[name].std(), name
    assert model.get_submodule(SITES[-1].key).bias.abs().median() > 5


def test_the_cached_twin_is_made_once_and_again_for_other_weights(modules, tmp_path, monkeypatch) -> None:
    script = modules["outlier_twin"]
    made: list[Path] = []

    def save(folder: Path, *_: object) -> None:
        made.append(folder)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()

    monkeypatch.setattr(script, "CACHE", tmp_path)
    monkeypatch.setattr(script, "save_twin", save)
    first = script.cached_twin(tmp_path)
    assert first.name == "sam-mini-outliers"
    assert script.cached_twin(tmp_path) == first
    assert made == [first]
    monkeypatch.setattr(script, "FloatModel", lambda *_: type("Model", (), {"hash": "other"}))
    assert script.cached_twin(tmp_path) != first


def test_the_rarest_direction_is_that_of_the_planted_tokens(modules) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2000, 8, generator=generator)
    direction = torch.randn(8, generator=generator)
    tokens[::400] += 20 * direction
    row = modules["outlier_heads"].rare_direction(tokens)
    values = tokens.double() @ row[:-1] + row[-1]
    assert values.median().abs() < 1e-9
    assert values.abs().max() == pytest.approx(1)
    assert set((values.abs() > 0.8).nonzero()[:, 0].tolist()) == set(range(0, 2000, 400))


@pytest.mark.slow
def test_equalization_repairs_outliers_on_an_axis_and_balancing_and_clipping_both_kinds(
    modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = modules["outlier_errors"]
    monkeypatch.setattr(script, "IMAGES", Calibration(images=2, prompts=4))
    monkeypatch.setattr(script, "MEASURED", Calibration(images=1, prompts=4))
    source, out = tmp_path / "tiny", tmp_path / "errors.csv"
    redundant_sam().save_pretrained(source)
    tiny_processor().save_pretrained(source)
    arguments = ["--model", str(source), "--out", str(out), "--data-root", str(tmp_path / "none")]
    assert script.main([*arguments, "--planted", "axis", "oblique"]) == 0
    with out.open(newline="") as file:
        error = {
            (line["outliers"], line["channels"], line["ranges"]): float(line["error"])
            for line in csv.DictReader(file)
        }
    plain = "as they are"
    assert error["axis", "equalized", "mse"] < 0.8 * error["axis", plain, "mse"]
    assert error["oblique", "equalized", "mse"] > 0.9 * error["oblique", plain, "mse"]
    for kind in ("axis", "oblique"):
        assert error[kind, plain, "clipped"] < 0.3 * error[kind, plain, "mse"]
        assert error[kind, "balanced", "mse"] < 0.3 * error[kind, plain, "mse"]
    assert error["oblique", "equalized", "clipped"] > 1.5 * error["oblique", plain, "clipped"]
    assert error["oblique", "balanced", "clipped"] < 0.8 * error["oblique", "equalized", "clipped"]
