"""Attentions with slots: equal to transformers' eager ones while empty, and each slot in the right place."""

import pytest
import torch
from torch import Tensor, nn
from transformers import SamModel
from transformers.models.sam.modeling_sam import SamAttention, SamVisionAttention

from saqsam.models.attention_chunks import MAX_CHUNK_LOGITS
from saqsam.models.average import RowScaledAverage, SoftmaxAverage
from saqsam.models.registry import structure_of
from saqsam.models.sam.attention import (
    QuantDecoderAttention,
    QuantVisionAttention,
    to_quant_attention,
)
from saqsam.models.structure import PROBABILITIES, SLOTS, replace_module
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.learned import LearnedAffineQuantizer, RandomDrop, StraightThrough
from saqsam.quant.logarithmic import GranularityObserver, LogQuantizer, ValueTap
from saqsam.quant.range_observers import HistogramObserver
from support.tiny_quantized import quantize_tiny, tiny_recipe
from support.tiny_sam import tiny_config, tiny_pixels, tiny_sam

WINDOWED, GLOBAL = "vision_encoder.layers.0.attn", "vision_encoder.layers.1.attn"
TOKEN_TO_IMAGE = "mask_decoder.transformer.layers.1.cross_attn_token_to_image"


class Keep(nn.Module):
    """Passes a tensor on and keeps it."""

    def forward(self, values: Tensor) -> Tensor:
        self.seen = values
        return values


class Zero(nn.Module):
    """All zeros."""

    def forward(self, values: Tensor) -> Tensor:
        return torch.zeros_like(values)


@pytest.fixture(scope="module")
def model() -> SamModel:
    return tiny_sam(1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vision(model: SamModel, name: str) -> tuple[SamVisionAttention, Tensor]:
    side = 3 if name == WINDOWED else 8
    attention = model.get_submodule(name)
    assert attention.use_rel_pos
    assert attention.rel_pos_h.abs().min() > 0
    return attention, random(2, side, side, 32)


def decoder_inputs() -> dict[str, Tensor]:
    return {
        "query": random(2, 3, 5, 32),
        "key": random(2, 3, 64, 32, seed=1),
        "value": random(2, 3, 64, 32, seed=2),
    }


@pytest.mark.parametrize("name", [WINDOWED, GLOBAL])
@torch.inference_mode()
def test_vision_attention_with_empty_slots_is_the_eager_one(model: SamModel, name: str) -> None:
    attention, hidden = vision(model, name)
    output, probabilities = to_quant_attention(attention)(hidden)
    expected, expected_probabilities = SamVisionAttention.forward(attention, hidden)
    assert torch.equal(output, expected)
    assert torch.equal(probabilities, expected_probabilities)


@torch.inference_mode()
def test_vision_attention_of_an_oblong_grid_without_relative_positions() -> None:
    config = tiny_config()
    config.vision_config.use_rel_pos = False
    attention = tiny_sam(0, config).vision_encoder.layers[1].attn
    hidden = random(1, 4, 6, 32)
    assert torch.equal(
        to_quant_attention(attention)(hidden)[0], SamVisionAttention.forward(attention, hidden)[0]
    )


@pytest.mark.parametrize("with_similarity", [False, True])
@torch.inference_mode()
def test_decoder_attention_with_empty_slots_is_the_eager_one(model: SamModel, with_similarity: bool) -> None:
    attention = model.get_submodule(TOKEN_TO_IMAGE)
    inputs = decoder_inputs()
    if with_similarity:
        inputs["attention_similarity"] = random(6, 1, 5, 64, seed=3)
    before = attention.config._attn_implementation
    attention.config._attn_implementation = "eager"
    try:
        expected, expected_probabilities = attention(**inputs)
    finally:
        attention.config._attn_implementation = before
    output, probabilities = to_quant_attention(attention)(**inputs)
    assert torch.equal(output, expected)
    assert torch.equal(probabilities, expected_probabilities)


@torch.inference_mode()
def test_a_whole_model_with_empty_slots_gives_the_same_masks(model: SamModel) -> None:
    prompts = {"input_boxes": torch.tensor([[[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0]]])}
    expected = model(pixel_values=tiny_pixels(), **prompts)
    other = tiny_sam(1)
    for site in structure_of(other.config).attentions:
        replace_module(other, site.name, to_quant_attention(other.get_submodule(site.name)))
    found = other(pixel_values=tiny_pixels(), **prompts)
    # The original runs on the fused kernel, which sums in another order.
    torch.testing.assert_close(found.pred_masks, expected.pred_masks, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.iou_scores, expected.iou_scores, rtol=1e-4, atol=1e-4)
    assert other.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", [WINDOWED, TOKEN_TO_IMAGE])
def test_parameters_are_shared_and_the_original_is_untouched(model: SamModel, name: str) -> None:
    attention = model.get_submodule(name)
    quant = to_quant_attention(attention)
    assert type(quant) is (QuantVisionAttention if name == WINDOWED else QuantDecoderAttention)
    assert [slot for slot in SLOTS if isinstance(getattr(quant, slot), nn.Identity)] == list(SLOTS)
    assert dict(quant.named_parameters()) == dict(attention.named_parameters())
    assert not [child for child, _ in attention.named_children() if child in SLOTS]
    # A slot, or a layer, of one is not one of the other.
    before = dict(attention.named_children())
    for child, _ in list(quant.named_children()):
        replace_module(quant, child, nn.Identity())
    assert dict(attention.named_children()) == before


@pytest.mark.parametrize("name", [WINDOWED, GLOBAL])
@torch.inference_mode()
def test_slots_of_vision_attention_see_the_operands(model: SamModel, name: str) -> None:
    attention, hidden = vision(model, name)
    quant = to_quant_attention(attention)
    for slot in SLOTS:
        replace_module(quant, slot, Keep())
    output, _ = quant(hidden)
    query, key, value, probabilities = (getattr(quant, slot).seen for slot in SLOTS)
    tokens = hidden.shape[1] * hidden.shape[2]
    assert query.shape == key.shape == value.shape == (4, tokens, 16)
    assert probabilities.shape == (4, tokens, tokens)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(4, tokens))
    # Queries are as the layer gives them: not yet scaled.
    parts = (
        attention.qkv(hidden).reshape(2, tokens, 3, 2, 16).permute(2, 0, 3, 1, 4).reshape(3, 4, tokens, 16)
    )
    assert torch.equal(torch.stack([query, key, value]), parts)
    mixed = (probabilities @ value).reshape(2, 2, tokens, 16).transpose(1, 2).reshape(hidden.shape)
    torch.testing.assert_close(attention.proj(mixed), output)


@torch.inference_mode()
def test_slots_of_decoder_attention_see_the_operands(model: SamModel) -> None:
    attention = model.get_submodule(TOKEN_TO_IMAGE)
    inputs = decoder_inputs()
    quant = to_quant_attention(attention)
    for slot in SLOTS:
        replace_module(quant, slot, Keep())
    output, _ = quant(**inputs)
    query, key, value, probabilities = (getattr(quant, slot).seen for slot in SLOTS)
    assert query.shape == (6, 4, 5, 4)
    assert key.shape == value.shape == (6, 4, 64, 4)
    torch.testing.assert_close(probabilities, torch.softmax(query @ key.mT / 2, -1))
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(6, 4, 5))
    mixed = (probabilities @ value).transpose(1, 2).reshape(2, 3, 5, 16)
    torch.testing.assert_close(attention.out_proj(mixed), output)


@pytest.mark.parametrize("name", [GLOBAL, TOKEN_TO_IMAGE])
@pytest.mark.parametrize("slot", SLOTS)
@torch.inference_mode()
def test_what_is_in_a_slot_takes_the_place_of_the_operand(model: SamModel, name: str, slot: str) -> None:
    attention = model.get_submodule(name)
    inputs = (vision(model, name)[1],) if name == GLOBAL else tuple(decoder_inputs().values())
    quant = to_quant_attention(attention)
    clean, clean_probabilities = quant(*inputs)
    replace_module(quant, slot, Zero())
    output, probabilities = quant(*inputs)
    assert not torch.allclose(output, clean)
    if slot in ("value_quantizer", "probability_quantizer"):
        last = attention.proj if name == GLOBAL else attention.out_proj
        torch.testing.assert_close(output, last.bias.expand_as(output))
    if slot == "value_quantizer":
        assert torch.equal(probabilities, clean_probabilities)
    elif slot == "probability_quantizer":
        assert not probabilities.any()
    elif name == TOKEN_TO_IMAGE:
        torch.testing.assert_close(probabilities, torch.full_like(probabilities, 1 / 64))


@pytest.mark.parametrize("name", [GLOBAL, TOKEN_TO_IMAGE])
@torch.inference_mode()
def test_values_come_before_the_probabilities(model: SamModel, name: str) -> None:
    # So that whoever looks at the probabilities knows what they will be multiplied by.
    inputs = (vision(model, name)[1],) if name == GLOBAL else tuple(decoder_inputs().values())
    quant = to_quant_attention(model.get_submodule(name))
    seen: list[str] = []
    for slot in SLOTS:
        quant.get_submodule(slot).register_forward_hook(lambda *_, slot=slot: seen.append(slot))
    quant(*inputs)
    assert sorted(seen) == sorted(SLOTS)
    assert seen.index("value_quantizer") < seen.index(PROBABILITIES)
    assert seen[-1] == PROBABILITIES == SLOTS[-1]


@torch.inference_mode()
def test_relative_positions_take_the_query_that_the_recipe_says(model: SamModel) -> None:
    attention, hidden = vision(model, GLOBAL)
    coarse = AffineQuantizer(2, torch.tensor(1.0), torch.tensor(2))
    results = []
    for quantized in (False, True):
        quant = to_quant_attention(attention, quantized_rel_pos_query=quantized)
        results.append(quant(hidden)[0])
        quant.query_quantizer = coarse
        results.append(quant(hidden)[0])
    float_clean, float_coarse, quantized_clean, quantized_coarse = results
    assert torch.equal(float_clean, quantized_clean)
    assert not torch.allclose(float_coarse, quantized_coarse)
    # With a query of zeros, only the float variant still knows where things are.
    for quantized in (False, True):
        quant = to_quant_attention(attention, quantized_rel_pos_query=quantized)
        quant.query_quantizer = Zero()
        _, probabilities = quant(hidden)
        is_uniform = torch.allclose(probabilities, torch.full_like(probabilities, 1 / 64))
        assert is_uniform == quantized


def test_preparing_again_empties_the_slots(model: SamModel) -> None:
    quant = to_quant_attention(model.get_submodule(GLOBAL))
    quant.query_quantizer = Zero()
    again = to_quant_attention(quant)
    assert isinstance(again.query_quantizer, nn.Identity)
    assert isinstance(quant.query_quantizer, Zero)


def test_other_modules_are_no_attention() -> None:
    with pytest.raises(AssertionError):
        to_quant_attention(nn.Linear(2, 2))
    assert issubclass(QuantDecoderAttention, SamAttention)


@pytest.mark.parametrize("name", [WINDOWED, GLOBAL])
@torch.inference_mode()
def test_rows_scaled_with_empty_slots_is_the_same_function(model: SamModel, name: str) -> None:
    attention, hidden = vision(model, name)
    for found, expected in zip(
        to_quant_attention(attention, row_scaled=True)(hidden),
        to_quant_attention(attention)(hidden),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


@torch.inference_mode()
def test_rows_scaled_in_the_decoder_is_the_same_function(model: SamModel) -> None:
    attention = model.get_submodule(TOKEN_TO_IMAGE)
    for found, expected in zip(
        to_quant_attention(attention, row_scaled=True)(**decoder_inputs()),
        to_quant_attention(attention)(**decoder_inputs()),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_a_row_that_looks_at_many_keys_survives_uniform_codes_only_if_rows_are_scaled() -> None:
    logits = random(1, 4, 2048) * 0.3  # probabilities about 1 / 2048, half a step of 8 bits is 1 / 510
    value = random(1, 2048, 8, seed=1)
    quantizer = AffineQuantizer(8, torch.tensor(1 / 255), torch.tensor(0))
    exact = torch.softmax(logits, -1) @ value
    lost, zeros = SoftmaxAverage()(logits, value, quantizer)
    assert not lost.any()
    assert not zeros.any()
    kept, rows = RowScaledAverage()(logits, value, quantizer)
    assert (kept - exact).norm() < 0.05 * exact.norm()
    torch.testing.assert_close(rows.sum(-1), torch.ones(1, 4))


def test_a_row_whose_numerators_all_round_to_zero_gives_zeros() -> None:
    quantizer = AffineQuantizer(2, torch.tensor(100.0), torch.tensor(0))
    output, _ = RowScaledAverage()(random(1, 3, 5), random(1, 5, 2, seed=1), quantizer)
    assert torch.equal(output, torch.zeros(1, 3, 2))


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("at_once", [1, 64**2, 3 * 64**2])
@pytest.mark.parametrize("row_scaled", [False, True])
def test_chunks_give_the_same_gradients(
    model: SamModel, monkeypatch: pytest.MonkeyPatch, drop: float, at_once: int, row_scaled: bool
) -> None:
    original, hidden = vision(model, GLOBAL)
    found = []
    for limit in (2**25, at_once):
        monkeypatch.setitem(MAX_CHUNK_LOGITS, "cpu", limit)
        attention = to_quant_attention(original, row_scaled=row_scaled)
        for slot in SLOTS:
            quantizer = LearnedAffineQuantizer(AffineQuantizer(4, torch.tensor(0.1), torch.tensor(7)))
            # A group of heads draws after another; all heads at once draw in the same order only if none is dropped.
            generator = torch.Generator().manual_seed(0)
            setattr(attention, slot, RandomDrop(quantizer, drop if slot != PROBABILITIES else 0.0, generator))
        given = hidden.clone().requires_grad_(True)
        output, _ = attention(given)
        output.square().sum().backward()
        scales = [getattr(attention, slot).quantizer.log_scale.grad for slot in SLOTS]
        found.append([output, given.grad, *scales])
    for whole, grouped in zip(*found, strict=True):
        assert whole.abs().max() > 0
        torch.testing.assert_close(grouped, whole, rtol=1e-4, atol=1e-5)


def test_chunks_are_recomputed_with_the_draws_of_the_first_time(
    model: SamModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, hidden = vision(model, GLOBAL)
    monkeypatch.setitem(MAX_CHUNK_LOGITS, "cpu", 1)
    attention = to_quant_attention(original)
    generator = torch.Generator().manual_seed(0)
    drop = RandomDrop(StraightThrough(Zero()), 0.5, generator)
    calls: list[Tensor] = []
    drop.register_forward_hook(lambda _, __, output: calls.append(output.detach()))
    setattr(attention, PROBABILITIES, drop)
    given = hidden.clone().requires_grad_(True)
    output, probabilities = attention(given)
    assert probabilities is None
    groups, after = len(calls), generator.get_state()
    output.sum().backward()
    assert len(calls) == 2 * groups
    assert not calls[0].equal(calls[1])
    recomputed = {tuple(c.flatten().tolist()) for c in calls[groups:]}
    assert recomputed == {tuple(c.flatten().tolist()) for c in calls[:groups]}
    assert generator.get_state().equal(after)


@pytest.mark.parametrize("bits", [None, 4])
def test_chunks_give_the_same_output(
    model: SamModel, monkeypatch: pytest.MonkeyPatch, bits: int | None
) -> None:
    original, hidden = vision(model, GLOBAL)
    attention = to_quant_attention(original)
    if bits is not None:
        setattr(attention, PROBABILITIES, LogQuantizer(bits, torch.tensor(0.5), torch.tensor(2)))
    with torch.no_grad():
        whole, _ = attention(hidden)
        monkeypatch.setitem(MAX_CHUNK_LOGITS, "cpu", 3 * 64**2)
        grouped, probabilities = attention(hidden)
    torch.testing.assert_close(grouped, whole, rtol=1e-5, atol=1e-6)
    assert probabilities is None  # never held together


def test_a_histogram_counts_chunk_by_chunk(model: SamModel, monkeypatch: pytest.MonkeyPatch) -> None:
    original, hidden = vision(model, GLOBAL)
    observers = []
    for limit in (2**25, 64**2):
        monkeypatch.setitem(MAX_CHUNK_LOGITS, "cpu", limit)
        attention = to_quant_attention(original)
        observers.append(HistogramObserver())
        setattr(attention, PROBABILITIES, observers[-1])
        with torch.no_grad():
            assert (attention(hidden)[1] is None) == (limit == 64**2)
    whole, grouped = observers
    assert grouped.counts.equal(whole.counts)
    assert (grouped.low, grouped.high) == (whole.low, whole.high)


def test_an_observer_sees_all_probabilities_at_once(model: SamModel, monkeypatch: pytest.MonkeyPatch) -> None:
    original, hidden = vision(model, GLOBAL)
    attention = to_quant_attention(original)
    keep = Keep()
    setattr(attention, PROBABILITIES, keep)
    monkeypatch.setitem(MAX_CHUNK_LOGITS, "cpu", 1)
    with torch.no_grad():
        _, probabilities = attention(hidden)
    assert keep.seen.shape == probabilities.shape


@pytest.mark.parametrize("name", [WINDOWED, GLOBAL])
@pytest.mark.parametrize("at_once", [2**25, 3 * 64**2])
def test_float_products_of_a_checkpoint_are_torchs_fused_attention(
    name: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = quantize_tiny(tiny_recipe("mse", "w8a8", encoder_products="float"))
    attention, hidden = vision(packed, name)
    assert isinstance(attention, QuantVisionAttention)
    monkeypatch.setitem(MAX_CHUNK_LOGITS, "cpu", at_once)
    calls: list[Tensor] = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, *given, **named: calls.append(query) or fused(query, *given, **named),
    )
    with torch.no_grad():
        output, probabilities = attention(hidden)
    assert probabilities is None
    assert calls
    calls.clear()
    monkeypatch.setattr(QuantVisionAttention, "_is_fused", lambda self: False)
    with torch.no_grad():
        wanted, _ = attention(hidden)
    assert not calls
    # The projection's input is rounded: some of its values lie on the border of two codes.
    assert float((output - wanted).norm() / wanted.norm()) < 0.01


def test_a_model_to_be_calibrated_or_with_a_quantized_product_is_not_fused(model: SamModel) -> None:
    original, _ = vision(model, GLOBAL)
    assert not to_quant_attention(original)._is_fused()
    packed = quantize_tiny(tiny_recipe("mse", "w8a8"))
    assert not vision(packed, GLOBAL)[0]._is_fused()


@pytest.mark.parametrize("row_scaled", [False, True])
def test_granularity_samples_the_same_rows_of_chunks(
    model: SamModel, monkeypatch: pytest.MonkeyPatch, row_scaled: bool
) -> None:
    original, hidden = vision(model, GLOBAL)
    monkeypatch.setitem(MAX_CHUNK_LOGITS, "cpu", 64**2)
    attention = to_quant_attention(original, row_scaled=row_scaled)
    tap = ValueTap()
    attention.value_quantizer = tap
    observer = GranularityObserver(4, tap, max_calls=2, max_probabilities=64 * 10, row_scaled=row_scaled)
    setattr(attention, PROBABILITIES, observer)
    with torch.no_grad():
        for _ in range(3):
            assert attention(hidden)[1] is None
        in_chunks = observer.errors_by_call
        monkeypatch.setitem(MAX_CHUNK_LOGITS, "cpu", 2**25)
        observer.errors_by_call, observer.next_call = {}, 0
        for _ in range(3):
            assert attention(hidden)[1] is not None
    assert sorted(in_chunks) == sorted(observer.errors_by_call) == [0, 1]
    assert in_chunks[0].min() > 0
    torch.testing.assert_close(in_chunks[0], observer.errors_by_call[0], rtol=1e-4, atol=0)
