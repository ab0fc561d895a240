"""Counting bits, bytes and multiply-accumulates."""

import dataclasses

import pytest
from transformers import SamConfig

import saqsam
from saqsam.data.scenes import ScenesDataset
from saqsam.inventory import MASK_PRODUCT, RELATIVE_POSITIONS, count_macs, take_inventory
from saqsam.recipe import Override
from tiny_sam import tiny_config, tiny_processor, tiny_sam


def test_macs_of_the_tiny_model_by_hand() -> None:
    macs = count_macs(tiny_config())
    width, tokens = 32, 8 * 8
    padded = 9 * 9  # windows of 3 pad the grid of 8
    windowed, whole = 2, 2
    assert macs["encoder.qkv"] == (windowed * padded + whole * tokens) * width * 3 * width
    assert macs["encoder.lin1"] == 4 * tokens * width * 64
    attention = windowed * 9 * 2 * 9 * 9 * width + whole * 2 * tokens * tokens * width
    assert macs["encoder.attention"] == attention
    assert macs[RELATIVE_POSITIONS] == windowed * 9 * 9 * 6 * width + whole * tokens * 16 * width
    assert macs["patch_embedding"] == tokens * width * 3 * 8 * 8
    assert macs["neck"] == tokens * (width * width + 9 * width * width)
    assert macs[MASK_PRODUCT] == 4 * 32 * 32 * 4
    prompt_tokens, inner = 5 + 2, 16
    linear = 2 * (prompt_tokens + tokens) * width * inner
    products = 2 * prompt_tokens * tokens * inner
    assert macs["decoder.token_to_image"] == 2 * (linear + products)


def test_macs_of_vit_b() -> None:
    macs = count_macs(SamConfig())
    encoder = sum(
        n for part, n in macs.items() if part.startswith(("encoder", "neck", "patch", RELATIVE_POSITIONS))
    )
    assert encoder == pytest.approx(486e9, rel=0.01)  # published: 486 GMACs


def test_prompts_scale_the_decoder_only() -> None:
    one, many = count_macs(tiny_config()), count_macs(tiny_config(), prompts=4)
    assert many["decoder.mlp"] == 4 * one["decoder.mlp"]
    assert many["encoder.qkv"] == one["encoder.qkv"]


def test_inventory_and_name_of_a_mixed_recipe() -> None:
    recipe = saqsam.recipe_for("min-max", "w4a4")
    recipe = dataclasses.replace(
        recipe,
        calibration=dataclasses.replace(recipe.calibration, images=1),
        overrides={"decoder": Override(8, 8)},
        extra={"patch_embedding": 8},
    )
    model = saqsam.quantize(tiny_sam(), tiny_processor(), recipe, ScenesDataset(1, size=(64, 64)))
    inventory = take_inventory(model)
    parts = {part.part: part for part in inventory.parts}
    assert parts["decoder.mlp"].weight_bits == 8
    assert (parts["patch_embedding"].weight_bits, parts["patch_embedding"].activation_bits) == (8, None)
    assert inventory.name.startswith("min-max-w4a4-mixed-")
    assert 4 < float(inventory.name.rpartition("-")[2]) < 8
    assert sum(inventory.share_of_bytes().values()) == pytest.approx(1)
    assert set(inventory.share_of_macs()) == {"w4a4", "a4a4", "w8a8", "w8", "float"}
    stored = sum(t.numel() * t.element_size() for t in saqsam.checkpoint.checkpoint_tensors(model).values())
    assert inventory.bytes == stored
    with pytest.raises(ValueError, match="float"):
        take_inventory(tiny_sam())
