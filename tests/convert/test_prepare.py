"""Preparing and packing: the exact tensor set, and what stays float is what a checkpoint can hold."""

import re
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import SamModel

from saqsam.convert.pack import (
    build_packed_skeleton,
    pack,
    pack_embeddings,
    pack_layer,
    place_empty_weight,
    round_float_parameters,
    round_weight,
)
from saqsam.convert.prepare import emptied, fill_slots, place_empty_quantizers, prepare
from saqsam.convert.quantizer_kinds import Observer
from saqsam.models.parts import DECODER_PARTS, FLOAT_PARTS, TOKEN_TO_IMAGE_PARTS
from saqsam.models.registry import structure_of
from saqsam.models.sam.attention import QuantDecoderAttention, QuantVisionAttention
from saqsam.models.structure import PROBABILITIES, SLOTS, ModelStructure
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import (
    PackedConv2d,
    PackedConvTranspose2d,
    PackedLinear,
    PackedTensor,
    QuantConv2d,
    QuantConvTranspose2d,
    QuantLinear,
)
from saqsam.quant.logarithmic import GranularityObserver, LogQuantizer, ValueTap
from saqsam.quant.range_observers import ChannelHistogramObserver, HistogramObserver
from saqsam.recipes.recipe import Override, ProbabilitySpec, Recipe
from support.tiny_quantized import (
    PARTS_OF_SAM,
    mixed_recipe,
    mixed_tiny,
    outputs,
    quantized_tiny,
    tiny_plan,
    tiny_recipe,
)
from support.tiny_sam import tiny_config, tiny_sam

PACKED = (PackedLinear, PackedConv2d, PackedConvTranspose2d)
QUANT = (QuantLinear, QuantConv2d, QuantConvTranspose2d)
FLOAT = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)

# The tiny model: 4 blocks in the encoder, 2 two-way layers with 3 attentions each and a final one, 4 masks.
LAYERS = {
    "encoder.qkv": 4,
    "encoder.proj": 4,
    "encoder.lin1": 4,
    "encoder.lin2": 4,
    "neck": 2,
    "decoder.self_attention": 2 * 4,
    "decoder.token_to_image": 2 * 4,
    "decoder.image_to_token": 2 * 4,
    "decoder.final_attention": 4,
    "decoder.mlp": 2 * 2,
}
ATTENTIONS = {
    "encoder.attention": 4,
    "decoder.self_attention": 2,
    "decoder.token_to_image": 2,
    "decoder.image_to_token": 2,
    "decoder.final_attention": 1,
}
FLOAT_LAYERS = {
    "patch_embedding": 1,
    "upscaling.hidden": 1,
    "upscaling.output": 1,
    "hypernetworks": 12,
    "iou_head": 3,
}
PROMPT_ENCODER_LAYERS = 3


LOG = ProbabilitySpec("log", 3)


@pytest.fixture(scope="module")
def structure() -> ModelStructure:
    return structure_of(tiny_config())


def modules(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def float_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in modules(model, FLOAT).items() if type(m) in FLOAT}


@pytest.mark.parametrize("bits", ["w4a4", "w6a6", "w8a8", "w4a8"])
def test_the_papers_recipe_quantizes_exactly_the_papers_set(bits: str) -> None:
    recipe = tiny_recipe(bits=bits)
    assert Counter(site.part for site, _ in tiny_plan(recipe).weights) == LAYERS
    slots = Counter(slot.part for slot in tiny_plan(recipe).slots)
    assert slots == {
        part: LAYERS.get(part, 0) + len(SLOTS) * ATTENTIONS.get(part, 0) for part in PARTS_OF_SAM
    }
    weight_bits, activation_bits = int(bits[1]), int(bits[3])
    assert {b for _, b in tiny_plan(recipe).weights} == {weight_bits}
    assert {slot.bits for slot in tiny_plan(recipe).slots} == {activation_bits}


def test_a_quantized_model_holds_that_set_and_float_elsewhere(structure: ModelStructure) -> None:
    model = quantized_tiny(bits="w4a8")
    part_of = {site.name: site.part for site in structure.weighted_sites}
    packed = modules(model, PACKED)
    assert Counter(part_of[name] for name in packed) == LAYERS
    assert {layer.weight.bits for layer in packed.values()} == {4}
    quantizers = modules(model, (AffineQuantizer,))
    attention_of = {site.name: site.part for site in structure.attentions}
    owners = Counter(
        part_of.get(name.rpartition(".")[0]) or attention_of[name.rpartition(".")[0]] for name in quantizers
    )
    assert owners == {part: LAYERS.get(part, 0) + 4 * ATTENTIONS.get(part, 0) for part in PARTS_OF_SAM}
    assert {quantizer.bits for quantizer in quantizers.values()} == {8}
    # The rest is what it was.
    rest = Counter(part_of.get(name, "prompt encoder") for name in float_layers(model))
    assert rest == {**FLOAT_LAYERS, "prompt encoder": PROMPT_ENCODER_LAYERS}
    assert isinstance(model.vision_encoder.pos_embed, nn.Parameter)
    assert not modules(model, QUANT)
    assert not modules(model, (HistogramObserver,))


@pytest.mark.parametrize("part", FLOAT_PARTS)
def test_extra_adds_one_part_and_nothing_else(part: str) -> None:
    plain, more = tiny_recipe(), tiny_recipe(extra={part: 7})
    added_weights = set(tiny_plan(more).weights) - set(tiny_plan(plain).weights)
    added_slots = set(tiny_plan(more).slots) - set(tiny_plan(plain).slots)
    assert Counter(site.part for site, _ in added_weights) == (
        {} if part == "position_embedding" else {part: FLOAT_LAYERS[part]}
    )
    assert {bits for _, bits in added_weights} <= {7}
    weights_alone = part in ("patch_embedding", "position_embedding")
    assert Counter(slot.part for slot in added_slots) == ({} if weights_alone else {part: FLOAT_LAYERS[part]})
    assert {slot.bits for slot in added_slots} <= {7}


def test_overrides_reach_every_slot_and_layer_of_their_part() -> None:
    recipe = tiny_recipe(
        overrides={"decoder": Override(weights=6, activations=8), "neck": Override(weights=2)}
    )
    for site, bits in tiny_plan(recipe).weights:
        assert bits == (6 if site.part in DECODER_PARTS else 2 if site.part == "neck" else 4)
    for slot in tiny_plan(recipe).slots:
        assert slot.bits == (8 if slot.part in DECODER_PARTS else 4)


def test_everything_with_weights_can_be_packed() -> None:
    model = mixed_tiny()
    assert len(modules(model, PACKED)) == sum(LAYERS.values()) + sum(FLOAT_LAYERS.values())
    assert all(name.startswith("prompt_encoder.") for name in float_layers(model))
    assert isinstance(model.vision_encoder.packed_pos_embed, PackedTensor)
    assert model.vision_encoder.packed_pos_embed.bits == 7
    assert "vision_encoder.pos_embed" not in model.state_dict()
    # One scale per channel: a channel of the position embedding is an entry of its last axis.
    assert model.vision_encoder.packed_pos_embed.scale.shape == (32,)
    values = model.vision_encoder.pos_embed
    assert torch.equal(values, model.vision_encoder.packed_pos_embed())
    original = tiny_sam().vision_encoder.pos_embed
    step = model.vision_encoder.packed_pos_embed.scale
    assert ((values - original).abs() <= step / 2 + 1e-6).all()
    assert len(list(tiny_plan(mixed_recipe()).slots)) == len(modules(model, (AffineQuantizer,)))


def test_what_stays_float_is_representable_in_float16() -> None:
    for model in (quantized_tiny(), mixed_tiny()):
        names = [name for name, _ in model.named_parameters()]
        assert "vision_encoder.layers.0.attn.rel_pos_h" in names
        assert "mask_decoder.transformer.layers.0.layer_norm1.weight" in names
        for name, parameter in model.named_parameters():
            assert parameter.dtype == torch.float32, name
            assert torch.equal(parameter.half().float(), parameter), name
            assert not parameter.requires_grad, name


def test_prepared_models_compute_as_before_and_share_names(structure: ModelStructure) -> None:
    model, expected = tiny_sam(), tiny_sam()
    before = dict(model.named_parameters())
    prepare(model, tiny_plan(mixed_recipe()))
    assert {name for name, _ in modules(model, QUANT).items()} == {
        site.name for site, _ in tiny_plan(mixed_recipe()).weights
    }
    attentions = modules(model, (QuantVisionAttention, QuantDecoderAttention))
    assert set(attentions) == {site.name for site in structure.attentions}
    # The very same parameters under the same names: nothing was copied.
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    for name, value in outputs(model).items():
        torch.testing.assert_close(value, outputs(expected)[name], rtol=1e-4, atol=1e-4)
    slots = [model.get_submodule(slot.name) for slot in tiny_plan(mixed_recipe()).slots]
    assert all(type(slot) is nn.Identity for slot in slots)


def test_quantized_rel_pos_query_reaches_every_encoder_attention() -> None:
    for flag in (False, True):
        model = tiny_sam()
        prepare(model, tiny_plan(tiny_recipe(quantized_rel_pos_query=flag)))
        attentions = modules(model, (QuantVisionAttention,))
        assert [a.quantized_rel_pos_query for a in attentions.values()] == [flag] * 4


def test_probabilities_have_bits_and_a_kind_of_their_own() -> None:
    for kind in ("uniform", "log"):
        for bits in (None, 7):
            recipe = tiny_recipe(
                bits="w4a5",
                probabilities=ProbabilitySpec(kind, bits),
                overrides={"decoder": Override(activations=6)},
            )
            for slot in tiny_plan(recipe).slots:
                activations = 6 if slot.part in DECODER_PARTS else 5
                if slot.name.endswith(PROBABILITIES):
                    assert (slot.bits, slot.kind == "log") == (bits or activations, kind == "log")
                else:
                    assert (slot.bits, slot.kind) == (activations, "affine")


def observed(recipe: Recipe) -> dict[str, Observer]:
    """Observers of the kinds that calibration gives, each with a range of its own."""
    observers: dict[str, Observer] = {}
    for index, slot in enumerate(tiny_plan(recipe).slots):
        if slot.kind == "log":
            tap = ValueTap()
            tap(torch.eye(2)[None])
            observer: Observer = GranularityObserver(slot.bits, tap)
            observer(torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]))
        elif recipe.bimodal and slot.part in TOKEN_TO_IMAGE_PARTS and slot.name.endswith("key_quantizer"):
            observer = ChannelHistogramObserver(axes=(1, 3))
            observer(torch.tensor([-1.0, 1.0 + index]).reshape(1, 2, 1, 1))
        else:
            observer = HistogramObserver()
            observer(torch.tensor([-1.0, 1.0 + index]))
        observers[slot.name] = observer
    return observers


def test_each_slot_gets_the_range_of_its_own_observer() -> None:
    model, recipe = tiny_sam(), tiny_recipe(bits="w4a6")
    prepare(model, tiny_plan(recipe))
    observers = observed(recipe)
    fill_slots(model, tiny_plan(recipe), observers)
    for name, observer in observers.items():
        quantizer = model.get_submodule(name)
        assert isinstance(quantizer, AffineQuantizer)
        assert isinstance(observer, HistogramObserver)
        low, high = quantizer.range
        step = float(quantizer.scale)
        assert (quantizer.bits, high - low) == (6, pytest.approx(observer.high - observer.low, rel=1e-5))
        assert abs(high - observer.high) <= 0.51 * step


def test_each_kind_of_observer_gives_the_quantizer_of_its_slot() -> None:
    model, recipe = tiny_sam(), tiny_recipe(bits="w4a6", probabilities=LOG, bimodal=True)
    plain = tiny_recipe(bits="w4a6")
    prepare(model, tiny_plan(recipe))
    observers, expected = observed(recipe), tiny_sam()
    fill_slots(model, tiny_plan(recipe), observers)
    prepare(expected, tiny_plan(plain))
    fill_slots(expected, tiny_plan(plain), observed(plain))
    assert {type(observer) for observer in observers.values()} == {
        HistogramObserver,
        ChannelHistogramObserver,
        GranularityObserver,
    }
    for slot in tiny_plan(recipe).slots:
        quantizer, observer = model.get_submodule(slot.name), observers[slot.name]
        if slot.kind == "log":
            assert isinstance(quantizer, LogQuantizer)
            assert isinstance(observer, GranularityObserver)
            assert quantizer.bits == 3
            assert quantizer.state_dict() == observer.quantizer().state_dict()
        else:
            # By channel or not: the range is that of all channels.
            assert isinstance(quantizer, AffineQuantizer)
            assert quantizer.state_dict() == expected.get_submodule(slot.name).state_dict()


@pytest.mark.parametrize(
    ("name", "empty"),
    [
        ("vision_encoder.layers.2.mlp.lin1.input_quantizer", HistogramObserver),
        ("vision_encoder.layers.2.attn.probability_quantizer", lambda: GranularityObserver(3, ValueTap())),
        (
            "mask_decoder.transformer.layers.1.cross_attn_token_to_image.key_quantizer",
            lambda: ChannelHistogramObserver((1, 3)),
        ),
    ],
)
def test_an_observer_that_saw_nothing_is_named(name: str, empty: Callable[[], Observer]) -> None:
    model, recipe = tiny_sam(), tiny_recipe(probabilities=LOG)
    prepare(model, tiny_plan(recipe))
    observers = {**observed(recipe), name: empty()}
    with pytest.raises(ValueError, match=rf"^{re.escape(name)}: no calibration value reached this quantizer"):
        fill_slots(model, tiny_plan(recipe), observers)


def test_slots_are_empty_inside_the_block_alone() -> None:
    model, recipe = tiny_sam(), tiny_recipe(probabilities=LOG)
    prepare(model, tiny_plan(recipe))
    place_empty_quantizers(model, tiny_plan(recipe))
    slots = [slot.name for slot in tiny_plan(recipe).slots]
    quantizers = {name: model.get_submodule(name) for name in slots}
    some = slots[::2]
    with pytest.raises(KeyError), emptied(model, some):  # noqa: PT012
        for name in slots:
            assert (type(model.get_submodule(name)) is nn.Identity) == (name in some)
        raise KeyError
    assert all(model.get_submodule(name) is quantizer for name, quantizer in quantizers.items())


def test_packed_layers_stay_as_they_are_when_the_rest_is_packed(structure: ModelStructure) -> None:
    recipe = mixed_recipe()
    model, whole = tiny_sam(), tiny_sam()
    for each in (model, whole):
        prepare(each, tiny_plan(recipe))
        place_empty_quantizers(each, tiny_plan(recipe))
    pack(whole, tiny_plan(recipe))
    # One layer with codes of its own, one whose codes are yet to load, and what comes before the first block.
    learned, waiting = "vision_encoder.layers.1.mlp.lin1", structure.layers[0]
    assert waiting.name == "vision_encoder.layers.0.attn.qkv"
    layer = model.get_submodule(learned).train()
    weight = round_weight(layer, 3, recipe)
    own = PackedTensor.from_codes(7 - weight.unpack(), weight.scale, weight.zero_point, 3)
    pack_layer(model, learned, own)
    place_empty_weight(model, waiting, 3)
    pack_embeddings(model, tiny_plan(recipe))
    before = modules(model, (*PACKED, PackedTensor))
    assert len(before) == 4 * 2 - 1  # three layers with their weights, and the position embedding
    assert model.get_submodule(learned).training
    pack(model, tiny_plan(recipe))
    assert all(model.get_submodule(name) is module for name, module in before.items())
    assert model.get_submodule(learned).weight is own
    found, expected = model.state_dict(), whole.state_dict()
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape for name in expected)
    different = {name for name in expected if not torch.equal(found[name], expected[name])}
    assert f"{learned}.weight.codes" in different
    assert all(name.startswith((learned, waiting.name)) for name in different)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_packing_before_the_first_block_is_that_of_packing_all() -> None:
    for recipe in (tiny_recipe(), mixed_recipe()):
        model, original = tiny_sam(), tiny_sam()
        for each in (model, original):
            prepare(each, tiny_plan(recipe))
        pack_embeddings(model, tiny_plan(recipe))
        pack_embeddings(model, tiny_plan(recipe))
        packed = modules(model, (*PACKED, PackedTensor))
        if not recipe.extra:
            assert not packed
            continue
        pack(original, tiny_plan(recipe))
        assert set(packed) == {
            "vision_encoder.patch_embed.projection",
            "vision_encoder.patch_embed.projection.weight",
            "vision_encoder.packed_pos_embed",
        }
        encoder, expected = model.vision_encoder, original.vision_encoder
        assert torch.equal(encoder.pos_embed, expected.pos_embed)
        assert torch.equal(encoder.patch_embed.projection.weight(), expected.patch_embed.projection.weight())


@pytest.mark.parametrize(
    "recipe",
    [tiny_recipe(bits="w5a7"), tiny_recipe(probabilities=LOG, bimodal=True), mixed_recipe()],
    ids=["plain", "log", "mixed"],
)
def test_the_skeleton_has_the_tensors_and_modules_of_a_packed_model(recipe: Recipe) -> None:
    model = tiny_sam()
    prepare(model, tiny_plan(recipe))
    fill_slots(model, tiny_plan(recipe), observed(recipe))
    pack(model, tiny_plan(recipe))
    with torch.device("meta"):
        skeleton = SamModel(tiny_config())
    build_packed_skeleton(skeleton, tiny_plan(recipe))
    assert all(tensor.is_meta for tensor in [*skeleton.parameters(), *skeleton.buffers()])

    def layout(packed: SamModel) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in packed.state_dict().items()}

    assert layout(skeleton) == layout(model)
    kinds = {name: (type(module), repr(module)) for name, module in model.named_modules()}
    assert {name: (type(module), repr(module)) for name, module in skeleton.named_modules()} == kinds
    assert not any(parameter.requires_grad for parameter in skeleton.parameters())


def test_rounding_touches_what_stays_float_and_nothing_else(structure: ModelStructure) -> None:
    for recipe in (tiny_recipe(), mixed_recipe()):
        model, original = tiny_sam(), tiny_sam()
        round_float_parameters(model, tiny_plan(recipe))
        packed = {f"{site.name}.weight" for site, _ in tiny_plan(recipe).weights}
        if recipe.extra:
            packed.add(structure.position_embedding)
        for (name, parameter), (_, before) in zip(
            model.named_parameters(), original.named_parameters(), strict=True
        ):
            expected = before if name in packed else before.half().float()
            assert torch.equal(parameter, expected), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["vision_encoder.layers.0.mlp.lin1.weight", "vision_encoder.neck.layer_norm1.bias"]
)
def test_weights_that_are_not_finite_are_refused(name: str, value: float) -> None:
    model = tiny_sam()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = value
    with pytest.raises(ValueError, match=f"^{name} holds NaN or infinity".replace(".", r"\.")):
        round_float_parameters(model, tiny_plan(tiny_recipe()))


def test_values_beyond_float16_are_refused_where_they_stay_float() -> None:
    model = tiny_sam()
    with torch.no_grad():
        model.mask_decoder.upscale_conv1.weight.view(-1)[0] = -1e5
    with pytest.raises(ValueError, match=r"upscale_conv1\.weight holds 100000, which float16 cannot store"):
        round_float_parameters(model, tiny_plan(tiny_recipe()))
    # Packed weights have scales in float32.
    round_float_parameters(model, tiny_plan(tiny_recipe(extra={"upscaling": 8})))


def test_a_model_without_position_embedding_has_none_to_pack() -> None:
    config = tiny_config()
    config.vision_config.use_abs_pos = False
    model = tiny_sam(0, config)
    recipe = tiny_recipe(extra={"position_embedding": 8})
    round_float_parameters(model, tiny_plan(recipe))
    prepare(model, tiny_plan(recipe))
    build_packed_skeleton(tiny_sam(0, config), tiny_plan(recipe))
