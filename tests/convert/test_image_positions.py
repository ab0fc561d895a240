"""With `separate_positions`, the decoder rounds image tokens without their positions."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import saqsam
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepare, prepared_copy
from saqsam.export.exporter import export_model
from saqsam.export.packed import ExportError
from saqsam.models.registry import family_of
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import ChannelScale, PackedLinear, to_quant_layer
from saqsam.recipes.recipe import Recipe
from support.tiny_mobile_sam import tiny_mobile_sam
from support.tiny_quantized import quantized_tiny, tiny_data, tiny_plan, tiny_recipe
from support.tiny_sam import tiny_pixels, tiny_processor, tiny_sam
from support.tiny_sam2 import tiny_sam2
from support.tiny_sam3_tracker import tiny_sam3_tracker
from support.tiny_sam_hq import tiny_sam_hq

BOXES = torch.tensor([[[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0]]])
READERS = 5
"""Two queries of the image and three keys of the image, in a decoder of two layers."""


def separate(**changes: Any) -> Recipe:
    return tiny_recipe("mse", "w4a4", separate_positions=True, **changes)


def with_constants(model: nn.Module) -> list[str]:
    return [
        name for name, layer in model.named_modules() if getattr(layer, "input_constant", None) is not None
    ]


@pytest.mark.parametrize("make", [tiny_sam, tiny_sam2, tiny_sam_hq, tiny_mobile_sam, tiny_sam3_tracker])
def test_every_family_reads_its_positions_where_the_structure_says(make: Any) -> None:
    """Without an image and a prompt, what such a layer reads is the positions."""
    model = make()
    family = family_of(model.config)
    plan = plan_quantization(model.config, separate())
    prepare(model, plan)
    assert set(with_constants(model)) == set(plan.structure.position_readers)
    assert len(plan.structure.position_readers) == READERS
    seen: dict[str, Tensor] = {}
    for name in plan.structure.position_readers:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _module, inputs, name=name: seen.setdefault(name, inputs[0])
        )
    positions = family.image_positions(model)
    image = torch.zeros_like(positions)
    tokens = torch.zeros(1, 1, 3, positions.shape[-1])
    with torch.no_grad():
        family.run_decoder_layer(model, 0, tokens, image, tokens, positions)
    first = plan.structure.position_readers[:2]
    assert set(first) <= set(seen)
    for name in first:
        torch.testing.assert_close(
            seen[name].flatten(0, -2), model.get_submodule(name).input_constant, rtol=0, atol=1e-6
        )


@torch.no_grad()
def test_a_prepared_model_computes_what_it_did() -> None:
    model = tiny_sam()
    prepared = prepared_copy(model, tiny_plan(separate()))
    assert len(with_constants(prepared)) == READERS
    assert not with_constants(model)
    found, wanted = (m(pixel_values=tiny_pixels(), input_boxes=BOXES) for m in (prepared, model))
    torch.testing.assert_close(found.pred_masks, wanted.pred_masks, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scaled", [False, True])
def test_constants_are_neither_rounded_nor_clipped(scaled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = to_quant_layer(nn.Linear(6, 3))
    constant = 100 * torch.randn(4, 6, generator=generator)
    values = torch.randn(2, 4, 6, generator=generator)
    quantizer = AffineQuantizer(4, torch.tensor(0.3), torch.tensor(8))
    layer.input_constant, layer.input_quantizer = constant, quantizer
    gain = torch.ones(6)
    if scaled:
        layer.input_scale = ChannelScale(6)
        nn.init.uniform_(layer.input_scale.gain, 0.5, 2.0)
        gain = layer.input_scale.gain.detach()
    with torch.no_grad():
        found = layer(values + constant)
        # Off by a step where the float sum has moved a value across a tie.
        wanted = nn.functional.linear(quantizer(values * gain) + constant * gain, layer.weight, layer.bias)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("method", ["mse", "saq-sam-plus"])
@torch.no_grad()
def test_both_loaders_find_the_positions_again(method: str, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(method, "w4a4"), separate_positions=True)
    model = saqsam.quantize(tiny_sam(), tiny_processor(), recipe, calibration=tiny_data()).model
    assert len(with_constants(model)) == READERS
    assert not any("input_constant" in name for name in model.state_dict())
    saqsam.save_checkpoint(model, tiny_processor(), tmp_path / "saved")
    wanted = model(pixel_values=tiny_pixels(), input_boxes=BOXES).pred_masks
    loaded, _ = saqsam.load(tmp_path / "saved")
    for other in (loaded, type(model).from_pretrained(tmp_path / "saved"), copy.deepcopy(model)):
        assert len(with_constants(other)) == READERS
        assert torch.equal(other(pixel_values=tiny_pixels(), input_boxes=BOXES).pred_masks, wanted)


def test_codes_are_finer_where_positions_are_large() -> None:
    """The ranges that calibration finds are those of the tokens alone."""
    together, apart = (
        saqsam.quantize(tiny_sam(), tiny_processor(), recipe, calibration=tiny_data()).model
        for recipe in (replace(separate(), separate_positions=False), separate())
    )
    for name in with_constants(apart):
        layers = [model.get_submodule(name) for model in (apart, together)]
        assert all(isinstance(layer, PackedLinear) for layer in layers)
        fine, coarse = (float(layer.input_quantizer.scale) for layer in layers)
        assert fine != coarse
    first = [name for name in with_constants(apart) if "layers.0." in name]
    assert all(
        float(apart.get_submodule(name).input_quantizer.scale)
        < float(together.get_submodule(name).input_quantizer.scale)
        for name in first
    )


def test_exports_refuse_them(tmp_path: Path) -> None:
    recipe = replace(saqsam.deployable(tiny_recipe("mse", "w8a8")), separate_positions=True)
    model = saqsam.quantize(tiny_sam(), tiny_processor(), recipe, calibration=tiny_data()).model
    with pytest.raises(ExportError, match=r"exports add one bias per channel.*separate_positions=false"):
        export_model(model, tiny_processor(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not with_constants(quantized_tiny("mse"))
