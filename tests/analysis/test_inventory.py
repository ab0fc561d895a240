import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import SamConfig

from saqsam.analysis.inventory import Inventory, PartInventory, mac_width, mixed_name, take_inventory
from saqsam.analysis.macs import count_macs
from saqsam.checkpoint import save_checkpoint
from saqsam.models.parts import FLOAT_PARTS
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import PackedTensor
from saqsam.quant.logarithmic import LogQuantizer
from saqsam.recipes.recipe import ATTENTION_PARTS, Override, ProbabilitySpec
from support.tiny_quantized import (
    PARTS_OF_SAM,
    mixed_recipe,
    mixed_tiny,
    quantize_tiny,
    quantized_tiny,
    tiny_recipe,
)
from support.tiny_sam import tiny_config, tiny_processor, tiny_sam


@pytest.fixture(scope="module")
def uniform() -> Inventory:
    return take_inventory(quantized_tiny())


@pytest.fixture(scope="module")
def mixed() -> Inventory:
    return take_inventory(mixed_tiny())


def by_part(inventory: Inventory) -> dict[str, PartInventory]:
    return {part.part: part for part in inventory.parts}


def test_multiply_accumulates_of_the_tiny_sam_are_those_counted_by_hand() -> None:
    width, hidden, grid, blocks, windowed = 32, 64, 8, 4, 2
    tokens = grid**2
    # The window of 3 pads 8x8 to 9x9: 9 windows of 9 tokens. The MLP sees the 64 tokens alone.
    window, windows = 3, 9
    padded = windows * window**2
    seen = windowed * padded + (blocks - windowed) * tokens
    products = windowed * windows * (window**2) ** 2 + (blocks - windowed) * tokens**2
    relative = windowed * padded * 2 * window + (blocks - windowed) * tokens * 2 * grid
    # A box is two tokens, before them the IoU token and four mask tokens; expected one of two decoder layers.
    queries, inner = 1 + 4 + 2, width // 2
    cross = 2 * queries * width * inner + 2 * tokens * width * inner + 2 * queries * tokens * inner
    low_res = 4 * grid
    expected = {
        "patch_embedding": tokens * width * 3 * 8 * 8,
        "encoder.qkv": seen * width * 3 * width,
        "encoder.attention": 2 * products * width,
        "relative_positions": relative * width,
        "encoder.proj": seen * width * width,
        "encoder.lin1": blocks * tokens * width * hidden,
        "encoder.lin2": blocks * tokens * hidden * width,
        "neck": tokens * width * width * (1 + 9),
        "decoder.self_attention": 2 * (4 * queries * width**2 + 2 * queries**2 * width),
        "decoder.token_to_image": 2 * cross,
        "decoder.image_to_token": 2 * cross,
        "decoder.final_attention": cross,
        "decoder.mlp": 2 * 2 * queries * width * 64,
        "upscaling.hidden": (2 * grid) ** 2 * 8 * width,
        "upscaling.output": low_res**2 * 4 * 8,
        "hypernetworks": 4 * (2 * width**2 + width * 4),
        "iou_head": 2 * 32**2 + 32 * 4,
        "mask_product": 4 * low_res**2 * 4,
    }
    assert count_macs(tiny_config()).parts == expected


def test_decoder_work_grows_with_prompts_and_encoder_work_does_not() -> None:
    one, three = count_macs(tiny_config()).parts, count_macs(tiny_config(), prompts=3).parts
    for part, count in one.items():
        in_encoder = part.startswith("encoder") or part in ("patch_embedding", "neck", "relative_positions")
        assert three[part] == (count if in_encoder else 3 * count), part


def test_sam_b_has_the_known_number_of_multiply_accumulates() -> None:
    macs = count_macs(SamConfig()).parts
    encoder = sum(count for part, count in macs.items() if part.startswith("encoder"))
    total = encoder + macs["patch_embedding"] + macs["neck"] + macs["relative_positions"]
    assert total / 1e9 == pytest.approx(488, rel=0.01)
    # 8 blocks of windows padded from 64x64 to 70x70, 4 global ones.
    assert macs["encoder.qkv"] == (8 * 70**2 + 4 * 64**2) * 768 * 2304


def test_bytes_are_those_of_the_stored_tensors(uniform: Inventory, tmp_path: Path) -> None:
    save_checkpoint(quantized_tiny(), tiny_processor(), tmp_path / "q")
    stored = load_file(tmp_path / "q" / "model.safetensors")
    assert uniform.bytes == sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    kinds = {"w4": 0, "scales": 0, "float16": 0}
    for name, tensor in stored.items():
        kind = {"codes": "w4", "scale": "scales", "zero_point": "scales"}.get(
            name.rpartition(".")[2], "float16"
        )
        kinds[kind] += tensor.numel() * tensor.element_size()
    assert uniform.share_of_bytes() == pytest.approx({k: v / uniform.bytes for k, v in kinds.items()})


@pytest.mark.slow
def test_logarithmic_probabilities_are_counted_with_their_ranges() -> None:
    recipe = tiny_recipe(probabilities=ProbabilitySpec("log"), bits="w4a6")
    model, plain = quantize_tiny(recipe), quantize_tiny(tiny_recipe(bits="w4a6"))
    inventory, before = by_part(take_inventory(model)), by_part(take_inventory(plain))
    for name, part in inventory.items():
        # Base and scale take what zero point and scale take.
        assert (part.bytes, part.scale_bytes) == (before[name].bytes, before[name].scale_bytes)
        assert part.activation_bits == before[name].activation_bits
    ends = [module.range for name, module in model.named_modules() if isinstance(module, LogQuantizer)]
    assert len(ends) == 11
    for name in ("encoder.attention", "decoder.token_to_image"):
        low, high = inventory[name].low, inventory[name].high
        assert low is not None
        assert high is not None
        assert low <= 0 < min(scale for _, scale in ends) <= high


@pytest.mark.slow
def test_the_range_of_a_part_reaches_to_that_of_its_probabilities() -> None:
    model = quantize_tiny(tiny_recipe(probabilities=ProbabilitySpec("log")))
    for name, module in model.named_modules():
        if isinstance(module, (AffineQuantizer, LogQuantizer)) and name.startswith("vision_encoder.layers"):
            module.scale.copy_(torch.tensor(1e-3))
    for index in range(4):
        log = model.vision_encoder.layers[index].attn.probability_quantizer
        log.scale.copy_(torch.tensor(0.25 + index))
    part = by_part(take_inventory(model))["encoder.attention"]
    assert part.high == 3.25


def test_every_parameter_is_counted_once(uniform: Inventory, mixed: Inventory) -> None:
    count = sum(parameter.numel() for parameter in tiny_sam().parameters())
    for inventory in (uniform, mixed):
        assert sum(part.parameters for part in inventory.parts) == count
        assert inventory.float32_bytes == 4 * count


def test_parts_of_the_papers_set_have_the_recipes_bits_and_all_else_is_float(uniform: Inventory) -> None:
    parts = by_part(uniform)
    assert set(parts) == {*PARTS_OF_SAM, *FLOAT_PARTS, "relative_positions", "mask_product", "other"}
    for name, part in parts.items():
        if name == "encoder.attention":
            assert (part.weight_bits, part.activation_bits, part.code_bytes) == (None, 4, 0)
            assert mac_width(part) == "a4a4"
        elif name in PARTS_OF_SAM:
            assert (part.weight_bits, part.activation_bits, mac_width(part)) == (4, 4, "w4a4")
        else:
            assert (part.weight_bits, part.activation_bits, mac_width(part)) == (None, None, "float")
            assert part.low is None
            assert part.bytes == part.float_bytes == 2 * part.parameters
    assert uniform.name == "min-max-w4a4"


def test_codes_take_the_bytes_of_their_bits(mixed: Inventory) -> None:
    layers = [module for module in mixed_tiny().modules() if isinstance(module, PackedTensor)]
    for bits in {part.weight_bits for part in mixed.parts} - {None}:
        numbers = [layer.shape.numel() for layer in layers if layer.bits == bits]
        parts = [part for part in mixed.parts if part.weight_bits == bits]
        assert sum(part.packed for part in parts) == sum(numbers)
        assert sum(part.code_bytes for part in parts) == sum(math.ceil(n * bits / 8) for n in numbers)


def test_a_mixed_recipe_is_named_with_its_mean_bits(mixed: Inventory) -> None:
    layers = [module for module in mixed_tiny().modules() if isinstance(module, PackedTensor)]
    mean = sum(m.bits * m.shape.numel() for m in layers) / sum(m.shape.numel() for m in layers)
    macs = {part.part: part.macs for part in mixed.parts}
    # Activations have 8 bits in the papers' set and those of `extra` elsewhere; embeddings' stay float.
    bits = dict.fromkeys(PARTS_OF_SAM, 8) | {"hypernetworks": 5, "iou_head": 8}
    bits |= {"upscaling.hidden": 6, "upscaling.output": 6}
    activations = sum(bits[p] * macs[p] for p in bits) / sum(macs[p] for p in bits)
    assert mixed.name == f"min-max-w3a8-mixed-w{mean:.2f}a{activations:.2f}"
    widths = {part.part: mac_width(part) for part in mixed.parts}
    assert (widths["patch_embedding"], widths["position_embedding"]) == ("w8", "w7")
    assert (widths["upscaling.output"], widths["relative_positions"]) == ("w6a6", "float")


def test_an_override_moves_the_mean() -> None:
    recipe = tiny_recipe(overrides={"decoder": Override(weights=8)})
    encoder = PartInventory("encoder.qkv", 4, 4, 30, 30, 15, 0, 0, 100)
    decoder = PartInventory("decoder.mlp", 8, 4, 10, 10, 10, 0, 0, 100)
    assert mixed_name(recipe, [encoder, decoder]) == "min-max-w4a4-mixed-w5.00a4.00"
    assert mixed_name(tiny_recipe(), [encoder, decoder]) == "min-max-w4a4"


def test_probabilities_of_other_bits_are_told_apart(uniform: Inventory) -> None:
    # The product of probabilities and values is half of what an attention multiplies.
    probabilities = count_macs(tiny_config()).probabilities
    encoder = by_part(uniform)["encoder.attention"]
    assert probabilities["encoder.attention"] == encoder.macs / 2
    assert set(probabilities) == set(ATTENTION_PARTS)
    own = dataclasses.replace(encoder, probability_bits=8)
    other = dataclasses.replace(uniform, parts=(own,))
    assert other.share_of_macs() == {"a4a4": 0.5, "a8a4": 0.5}
    recipe = tiny_recipe(probabilities=ProbabilitySpec(bits=8))
    weights = by_part(uniform)["encoder.qkv"]
    rest = dataclasses.replace(weights, macs=encoder.macs)
    assert mixed_name(recipe, [rest, own]) == "min-max-w4a4-mixed-w4.00a4.50"


def test_shares_are_of_the_whole_and_ordered(uniform: Inventory, mixed: Inventory) -> None:
    for inventory in (uniform, mixed):
        for shares in (inventory.share_of_bytes(), inventory.share_of_macs()):
            assert sum(shares.values()) == pytest.approx(1)
            assert list(shares.values()) == sorted(shares.values(), reverse=True)
            assert min(shares.values()) > 0
    macs = sum(part.macs for part in uniform.parts if mac_width(part) == "w4a4")
    assert uniform.share_of_macs()["w4a4"] == macs / count_macs(tiny_config()).parts.total()
    assert set(uniform.share_of_macs()) == {"w4a4", "a4a4", "float"}


def test_ranges_enclose_those_of_the_parts_quantizers(uniform: Inventory) -> None:
    model = quantized_tiny()
    ends = [
        module.range
        for name, module in model.named_modules()
        if isinstance(module, AffineQuantizer) and name.endswith("qkv.input_quantizer")
    ]
    part = by_part(uniform)["encoder.qkv"]
    assert (part.low, part.high) == (min(low for low, _ in ends), max(high for _, high in ends))


def test_the_inventory_is_plain_json(mixed: Inventory) -> None:
    content = json.loads(json.dumps(mixed.to_dict(), allow_nan=False))
    assert content["recipe"] == json.loads(mixed_recipe().to_json())
    assert content["bytes"] == sum(part["bytes"] for part in content["parts"])
    assert content["macs"] == sum(part["macs"] for part in content["parts"])
    assert [part["part"] for part in content["parts"]] == [part.part for part in mixed.parts]
    assert set(content["parts"][0]) == {f.name for f in dataclasses.fields(PartInventory)} | {"bytes"}


def test_a_float_model_has_no_inventory() -> None:
    with pytest.raises(ValueError, match="float"):
        take_inventory(tiny_sam())


def test_counting_draws_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    count_macs(tiny_config())
    assert torch.equal(before, torch.random.get_rng_state())
