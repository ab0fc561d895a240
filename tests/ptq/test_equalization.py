"""Equalization: the float model computes the same masks, and channels that share a grid have ranges alike."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import SamModel

from saqsam.checkpoint import load_checkpoint, save_checkpoint
from saqsam.convert.prepare import prepare
from saqsam.inference.backend import TorchBackend
from saqsam.models.registry import structure_of
from saqsam.ptq.calibration_images import CalibrationImages, choose_calibration_images
from saqsam.ptq.equalization import (
    MAX_IMAGES,
    MIN_HALF_RANGE,
    ChannelRange,
    equalize,
    observe_channels,
    scale_inputs,
)
from saqsam.ptq.pipeline import quantize
from saqsam.quant.layers import ChannelScale
from saqsam.recipes.recipe import Calibration, Equalization, Reconstruction
from support.tiny_quantized import quantize_tiny, tiny_data, tiny_plan, tiny_recipe
from support.tiny_sam import tiny_config, tiny_processor, tiny_sam

STRUCTURE = structure_of(tiny_config())
ENDS = (torch.amin, torch.amax)


@torch.no_grad()
def uneven_sam() -> SamModel:
    """A tiny SAM whose channels differ by factors of up to e^2 (7), and whose keys sit in two peaks."""
    model = tiny_sam()
    generator = torch.Generator().manual_seed(5)

    def uneven(count: int) -> Tensor:
        return torch.randn(count, generator=generator).clamp(-1, 1).exp()

    for block in model.vision_encoder.layers:
        for norm in (block.layer_norm1, block.layer_norm2):
            norm.weight.mul_(uneven(32))
            norm.bias.add_(torch.randn(32, generator=generator))
    model.vision_encoder.neck.layer_norm1.weight.mul_(uneven(32))
    for site in STRUCTURE.attentions:
        if site.part.startswith("decoder"):
            keys = model.get_submodule(f"{site.name}.k_proj")
            keys.bias.add_(8 * torch.randn(len(keys.bias), generator=generator).sign())
    for layer in model.mask_decoder.transformer.layers:
        layer.mlp.lin1.weight.mul_(uneven(64)[:, None])
    return model


def images_of(model: SamModel) -> CalibrationImages:
    return choose_calibration_images(model, tiny_processor(), tiny_data(), Calibration(images=2, prompts=4))


@torch.no_grad()
def masks(model: SamModel, images: CalibrationImages) -> list[Tensor]:
    backend = TorchBackend(model)
    found = []
    for index in range(len(images)):
        pixels, prompts = images[index]
        found += backend.decode(backend.encode(pixels), prompts, multimask_output=True)
    return found


def ranges_of(model: SamModel, images: CalibrationImages) -> dict[str, ChannelRange]:
    return observe_channels(model, STRUCTURE, images)


def test_an_equalized_model_computes_what_it_did_before_also_in_windows_that_are_filled_up() -> None:
    model = uneven_sam()
    images = images_of(model)
    equalized = copy.deepcopy(model)
    equalize(equalized, STRUCTURE, ranges_of(model, images))
    changed = [
        name
        for name, parameter in equalized.named_parameters()
        if not torch.equal(parameter, model.get_parameter(name))
    ]
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in changed} == {
        *("layer_norm1", "layer_norm2", "qkv", "proj", "lin1", "lin2", "conv2"),
        *("q_proj", "k_proj", "v_proj", "out_proj"),
    }
    for found, expected in zip(masks(equalized, images), masks(model, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_channels_that_share_a_grid_have_ranges_alike_afterwards() -> None:
    model = uneven_sam()
    images = images_of(model)
    before = ranges_of(model, images)
    equalize(model, STRUCTURE, before)
    after = ranges_of(model, images)
    block = "vision_encoder.layers.1"  # global: its tokens can be moved too
    for name in (f"{block}.attn.qkv input", f"{block}.mlp.lin1 input"):
        assert before[name].half.max() > 4 * before[name].half.min()
        torch.testing.assert_close(after[name].half, after[name].half.mean().expand(32), rtol=1e-3, atol=1e-4)
        assert float(after[name].middle.abs().max()) < 1e-3
    windowed = after["vision_encoder.layers.0.attn.qkv input"]
    assert float(windowed.middle.abs().max()) > 0.01
    attention = "mask_decoder.transformer.layers.0.cross_attn_token_to_image"
    queries, keys = (after[f"{attention}.{name}_proj output"] for name in "qk")
    torch.testing.assert_close(queries.half, keys.half, rtol=1e-3, atol=1e-4)
    assert before[f"{attention}.k_proj output"].middle.abs().min() > 4
    for name in (f"{attention}.k_proj output", f"{attention}.v_proj output", f"{block}.attn.qkv output"):
        channels = slice(-64, None) if "qkv" in name else slice(None)
        assert float(after[name][channels].middle.abs().max()) < 1e-3


NORMALIZATIONS = Equalization(layers="normalizations")


@pytest.mark.parametrize(
    "equalization",
    [
        NORMALIZATIONS,
        Equalization(layers="normalizations", groups=4),
        Equalization(groups=2),
        Equalization(strength=0.5),
        Equalization(layers="normalizations", strength=0.0),
    ],
)
def test_every_kind_of_equalization_keeps_the_masks(equalization: Equalization) -> None:
    model = uneven_sam()
    images = images_of(model)
    equalized = copy.deepcopy(model)
    equalize(equalized, STRUCTURE, ranges_of(model, images), equalization)
    pair = STRUCTURE.normalized_layers[0]
    assert not torch.equal(equalized.get_submodule(pair.norm).weight, model.get_submodule(pair.norm).weight)
    for found, expected in zip(masks(equalized, images), masks(model, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_normalizations_alone_leave_all_other_layers_as_they_are() -> None:
    model = uneven_sam()
    equalized = copy.deepcopy(model)
    equalize(equalized, STRUCTURE, ranges_of(model, images_of(model)), NORMALIZATIONS)
    changed = {
        name.rpartition(".")[0]
        for name, parameter in equalized.named_parameters()
        if not torch.equal(parameter, model.get_parameter(name))
    }
    assert changed == {name for pair in STRUCTURE.normalized_layers for name in (pair.norm, *pair.layers)}


@pytest.mark.parametrize("groups", [1, 4])
def test_groups_of_channels_share_a_factor_and_an_offset(groups: int) -> None:
    model = uneven_sam()
    equalized = copy.deepcopy(model)
    spec = Equalization(layers="normalizations", groups=groups)
    equalize(equalized, STRUCTURE, ranges_of(model, images_of(model)), spec)
    for pair in STRUCTURE.normalized_layers:
        before, after = (made.get_submodule(pair.norm) for made in (model, equalized))
        factors = before.weight / after.weight
        offsets = before.bias - after.bias * factors
        shared = {(round(f, 4), round(m, 3)) for f, m in zip(factors.tolist(), offsets.tolist(), strict=True)}
        assert len(shared) == groups
        assert pair.shifts or max(abs(offset) for _, offset in shared) == 0
    if groups == 1:
        assert factors.tolist() == pytest.approx([1.0] * len(factors))


def test_the_strength_shares_ranges_between_activations_and_weights() -> None:
    model = uneven_sam()
    ranges = ranges_of(model, images_of(model))
    default, whole, half, none = (copy.deepcopy(model) for _ in range(4))
    equalize(default, STRUCTURE, ranges)
    for made, strength in ((whole, 1.0), (half, 0.5), (none, 0.0)):
        layers = "normalizations" if strength == 0 else "all"  # others scale rows of the same weights
        equalize(made, STRUCTURE, ranges, Equalization(layers, strength=strength))
    assert all(
        torch.equal(parameter, whole.get_parameter(name)) for name, parameter in default.named_parameters()
    )
    for pair in STRUCTURE.normalized_layers:
        columns = model.get_submodule(pair.layers[0]).weight.transpose(0, 1).flatten(1)
        weight = (columns.amax(1) - columns.amin(1)) / 2
        activation = ranges[f"{pair.layers[0]} input"].half
        norm = model.get_submodule(pair.norm).weight
        expected = activation.sqrt() / weight.sqrt()
        found = norm / half.get_submodule(pair.norm).weight
        torch.testing.assert_close(found, expected / expected.mean(), rtol=1e-4, atol=1e-5)
        # Without migration, all columns of the weight get the same range.
        columns = none.get_submodule(pair.layers[0]).weight.transpose(0, 1).flatten(1)
        width = columns.amax(1) - columns.amin(1)
        torch.testing.assert_close(width, width.mean().expand_as(width), rtol=1e-4, atol=1e-5)


def test_a_channel_without_a_range_gets_a_bounded_factor() -> None:
    seen = ChannelRange(torch.tensor([0.0, -1.0]), torch.tensor([0.0, 3.0]))
    assert seen.half.tolist() == [MIN_HALF_RANGE * 2, 2]
    assert ChannelRange(torch.zeros(2), torch.zeros(2)).half.tolist() == [1, 1]
    model = uneven_sam()
    with torch.no_grad():
        model.mask_decoder.transformer.layers[0].mlp.lin1.bias[3] = -1e3  # dead behind the ReLU
    images = images_of(model)
    expected = masks(model, images)
    equalize(model, STRUCTURE, ranges_of(model, images))
    for found, wanted in zip(masks(model, images), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("bits", "gains"), [("w8a4", True), ("w4a8", False)])
def test_it_gains_where_activations_are_the_narrower_and_loses_where_weights_are(
    bits: str, gains: bool
) -> None:
    """What activations need not tell apart any more, columns of weights must."""
    model = uneven_sam()
    images = images_of(model)
    exact = masks(model, images)
    errors = []
    for equalized in (False, True):
        recipe = dataclasses.replace(tiny_recipe("mse", bits), equalized=equalized)
        found = masks(quantize(uneven_sam(), tiny_processor(), recipe, tiny_data()).model, images)
        errors.append(sum(float((f - e).square().mean()) for f, e in zip(found, exact, strict=True)))
    assert (errors[1] < errors[0]) == gains, errors


def scaled(model: SamModel, images: CalibrationImages) -> SamModel:
    ranges = ranges_of(model, images)
    model = copy.deepcopy(model)
    prepare(model, tiny_plan(tiny_recipe("mse", input_scales=True)))
    scale_inputs(model, STRUCTURE, ranges)
    return model


def test_scaled_inputs_leave_the_masks_as_they_were_and_give_channels_one_range() -> None:
    model = uneven_sam()
    images = images_of(model)
    found = scaled(model, images)
    for found_masks, expected in zip(masks(found, images), masks(model, images), strict=True):
        torch.testing.assert_close(found_masks, expected, rtol=1e-3, atol=1e-3)
    before = ranges_of(model, images)
    with_scale = [name for name, module in found.named_modules() if isinstance(module, ChannelScale)]
    assert {name.removesuffix(".input_scale") for name in with_scale} == set(STRUCTURE.residual_readers)
    assert len(with_scale) == 2 * (3 * 3 + 1) + 3
    for name in STRUCTURE.residual_readers:
        scale = found.get_submodule(f"{name}.input_scale")
        seen = before[f"{name} input"]
        half, middle = seen.half, seen.middle
        torch.testing.assert_close(
            scale(middle), torch.zeros_like(middle), rtol=0, atol=2e-3 * float(half.max())
        )
        torch.testing.assert_close(scale(middle + half), half.mean().expand_as(half), rtol=5e-3, atol=1e-3)


def test_equalization_leaves_the_ranges_of_scaled_inputs_unchanged() -> None:
    model = uneven_sam()
    images = images_of(model)
    before = ranges_of(model, images)
    equalize(model, STRUCTURE, before)
    after = ranges_of(model, images)
    for name in STRUCTURE.residual_readers:
        for seen, expected in zip(
            (after[f"{name} input"].low, after[f"{name} input"].high),
            (before[f"{name} input"].low, before[f"{name} input"].high),
            strict=True,
        ):
            torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-3)


def test_channel_ranges_are_averages_over_evenly_spaced_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model = uneven_sam()
    images = choose_calibration_images(
        model, tiny_processor(), tiny_data(4), Calibration(images=4, prompts=4)
    )
    name = "vision_encoder.layers.1.mlp.lin1"
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    masks(model, images)
    handle.remove()
    monkeypatch.setattr("saqsam.ptq.equalization.MAX_IMAGES", 2)
    found = ranges_of(model, images)[f"{name} input"]
    assert found.images == 2 < MAX_IMAGES
    low, high = (torch.stack([end(t.flatten(0, -2), 0) for t in (seen[0], seen[2])]) for end in ENDS)
    torch.testing.assert_close(found.low, low.mean(0))
    torch.testing.assert_close(found.high, high.mean(0))


def test_scaled_inputs_gain_where_activations_are_narrow_and_survive_the_file(tmp_path: Path) -> None:
    model = uneven_sam()
    with torch.no_grad():
        for layer in model.mask_decoder.transformer.layers:
            for norm in (layer.layer_norm1, layer.layer_norm2, layer.layer_norm3, layer.layer_norm4):
                norm.weight.mul_(torch.linspace(0.1, 4, 32))
    images = images_of(model)
    exact = masks(model, images)
    errors = []
    for input_scales in (False, True):
        recipe = tiny_recipe("mse", "w8a4", input_scales=input_scales)
        quantized = quantize(model, tiny_processor(), recipe, tiny_data()).model
        folder = save_checkpoint(quantized, tiny_processor(), tmp_path / f"{input_scales}")
        found = masks(load_checkpoint(folder), images)
        for a, b in zip(found, masks(quantized, images), strict=True):
            assert torch.equal(a, b)
        errors.append(sum(float((f - e).square().mean()) for f, e in zip(found, exact, strict=True)))
    assert errors[1] < errors[0], errors


def test_gains_and_offsets_are_learned_with_biases() -> None:
    spec = {"equalized": True, "input_scales": True}
    plain = quantize_tiny(tiny_recipe("mse", **spec))
    learned = Reconstruction(steps=4, prompts=2, affine=True, affine_rate=0.01)
    found = quantize_tiny(tiny_recipe("mse", **spec, reconstruction=learned))
    for name in STRUCTURE.residual_readers:
        before, after = (m.get_submodule(f"{name}.input_scale") for m in (plain, found))
        assert not torch.equal(before.gain, after.gain), name
        assert not torch.equal(before.offset, after.offset), name


def test_what_stays_float_is_float16_after_equalization_too() -> None:
    quantized = quantize_tiny(tiny_recipe("mse", equalized=True, input_scales=True))
    for name, parameter in quantized.named_parameters():
        assert torch.equal(parameter, parameter.half().float()), name
