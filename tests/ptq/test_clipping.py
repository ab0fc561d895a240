"""Perceptual-consistency clipping: the plain search's choices, its effect where it is exact, and where it loses."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.convert.plan import QuantizationPlan
from saqsam.convert.prepare import fill_slots, prepare
from saqsam.models.registry import structure_of
from saqsam.models.sam.attention import QuantDecoderAttention
from saqsam.ptq import clipping, focus_search
from saqsam.ptq.calibration import calibrate
from saqsam.ptq.calibration_images import CalibrationImages, choose_calibration_images
from saqsam.ptq.clipping import attention_inputs, clip_attentions
from saqsam.ptq.focus_search import QUANTILES, SEARCHED, AttentionInputs, FocusSearch
from saqsam.quant.affine import AffineQuantizer, affine_parameters
from saqsam.quant.range_observers import HistogramObserver
from saqsam.quant.ranges import activation_parameters, histogram_quantiles
from saqsam.recipes.recipe import Clipping, Recipe
from saqsam.recipes.specs import ClippingMeasure
from support.tiny_quantized import tiny_data, tiny_plan, tiny_recipe
from support.tiny_sam import tiny_config, tiny_processor, tiny_sam

STRUCTURE = structure_of(tiny_config())
EMPTY = {operand: nn.Identity() for operand in SEARCHED}
SLOTS = ("q_proj.input_quantizer", "k_proj.input_quantizer", "query_quantizer", "key_quantizer")


def calibrated(recipe: Recipe) -> tuple[SamModel, CalibrationImages]:
    model = tiny_sam()
    images = choose_calibration_images(model, tiny_processor(), tiny_data(), recipe.calibration)
    prepare(model, tiny_plan(recipe))
    fill_slots(model, tiny_plan(recipe), calibrate(model, tiny_plan(recipe), images))
    return model, images


def calibrated_with_plan(recipe: Recipe) -> tuple[SamModel, QuantizationPlan, CalibrationImages]:
    model, images = calibrated(recipe)
    return model, tiny_plan(recipe), images


def attention_of(model: SamModel, index: int = 0) -> QuantDecoderAttention:
    attention = model.mask_decoder.transformer.layers[index].cross_attn_token_to_image
    assert isinstance(attention, QuantDecoderAttention)
    return attention


def random_inputs(count: int = 1, seed: int = 0) -> list[AttentionInputs]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 1, 7, 32), (1, 1, 64, 32), (1, 1, 64, 32))
    found = []
    for _ in range(count):
        query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
        found.append((query, key, value))
    return found


def empty_attention() -> QuantDecoderAttention:
    model = tiny_sam()
    prepare(model, tiny_plan(tiny_recipe()))
    return attention_of(model)


# ---- focus


def probabilities(attention: QuantDecoderAttention, query: Tensor, key: Tensor) -> Tensor:
    attention = copy.deepcopy(attention)
    attention.probability_quantizer = nn.Identity()
    prompts = max(len(query), len(key))
    query, key = (t.expand(prompts, -1, -1, -1) for t in (query, key))
    return attention(query, key, key)[1]


@pytest.mark.parametrize("theta", [0.1, 0.5, 0.9])
def test_the_focus_is_where_the_probability_exceeds_theta_times_the_row_maximum(theta: float) -> None:
    attention = empty_attention()
    ((query, key, value),) = random_inputs()
    search = FocusSearch(attention, [(query, key, value)], theta)
    found = probabilities(attention, query, key)
    assert torch.equal(search.focus[0], found > theta * found.amax(-1, keepdim=True))
    assert search.focus[0].any(-1).all(), "the largest of a row is always in focus"


def test_the_deviation_is_zero_in_float_and_one_minus_iou_by_hand() -> None:
    search = FocusSearch(empty_attention(), random_inputs(2), 0.5)
    queries, keys = search.side(0, EMPTY), search.side(1, EMPTY)
    assert search.deviation(queries, keys) == 0
    other = [torch.roll(key, 1, 2) for key in keys]
    expected = []
    for focus, query, key in zip(search.focus, queries, other, strict=True):
        logits = query @ key.transpose(2, 3) * search.attention.scaling
        moved = logits > logits.amax(-1, keepdim=True) + math.log(0.5)
        for a, b in zip(focus.flatten(0, 1), moved.flatten(0, 1), strict=True):
            expected.append(1 - (a & b).sum().item() / (a | b).sum().item())
    assert search.deviation(queries, other) == pytest.approx(sum(expected) / len(expected))


# ---- search


def plain_search(
    attention: QuantDecoderAttention,
    inputs: list[tuple[Tensor, Tensor]],
    theta: float,
    bits: int,
    passes: int,
) -> dict[str, float]:
    """One forward of the whole attention for each candidate, softmax and all."""
    attention = copy.deepcopy(attention)
    holders = {slot: slot.rpartition(".") for slot in SLOTS}

    def put(slot: str, module: nn.Module) -> None:
        parent, _, child = holders[slot]
        setattr(attention.get_submodule(parent), child, module)

    def focus() -> list[Tensor]:
        found = [probabilities(attention, query, key) for query, key in inputs]
        return [p > theta * p.amax(-1, keepdim=True) for p in found]

    for slot in SLOTS:
        put(slot, nn.Identity())
    exact = focus()
    tensors = {
        "q_proj.input_quantizer": [q for q, _ in inputs],
        "k_proj.input_quantizer": [k for _, k in inputs],
        "query_quantizer": [attention.q_proj(q) for q, _ in inputs],
        "key_quantizer": [attention.k_proj(k) for _, k in inputs],
    }
    chosen: dict[str, float] = {}
    for _ in range(passes):
        for slot in SLOTS:
            observer = HistogramObserver()
            observer(torch.cat([t.flatten() for t in tensors[slot]]))
            best = (math.inf, 0.0, None)
            for share in QUANTILES[::-1]:
                low, high = histogram_quantiles(observer, torch.tensor([1 - share, share]).double())
                grid = affine_parameters(low, high, bits, symmetric=False)
                put(slot, AffineQuantizer(bits, *grid))
                deviation = 0.0
                for a, b in zip(exact, focus(), strict=True):
                    iou = (a & b).sum((-2, -1)) / (a | b).sum((-2, -1))
                    deviation += float((1 - iou).mean())
                if deviation < best[0]:
                    best = (deviation, share, attention.get_submodule(slot))
            assert best[2] is not None
            put(slot, best[2])
            chosen[slot] = best[1]
    return chosen


def once(values: Tensor) -> Tensor:
    """What all prompts share counts once in the quantiles."""
    return values[:1] if (values == values[:1]).all() else values


@pytest.mark.slow
@pytest.mark.parametrize(("images", "passes"), [(1, 2), (2, 1)])
@torch.no_grad()
def test_choices_of_an_exhaustive_search_are_those_of_a_plain_one(
    images: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(focus_search, "COARSE_STEP", 1)
    recipe = tiny_recipe("saq-sam-s", "w4a3", clipping=Clipping(images=images, passes=passes))
    model, data = calibrated(recipe)
    originals = copy.deepcopy(model)
    kept = {}
    for site in STRUCTURE.attentions:
        if site.part.startswith("decoder"):
            kept[site.name] = []
    handles = [
        originals.get_submodule(name).register_forward_pre_hook(
            lambda _m, _a, kw, found=found: found.append((once(kw["query"]), once(kw["key"]))),
            with_kwargs=True,
        )
        for name, found in kept.items()
    ]
    for slot in tiny_plan(recipe).slots:
        parent, _, child = slot.name.rpartition(".")
        setattr(originals.get_submodule(parent), child, nn.Identity())
    for index in range(images):
        pixels, prompts = data[index]
        boxes = prompts.boxes
        assert boxes is not None
        for_all = pixels.expand(len(boxes), -1, -1, -1)
        originals(pixel_values=for_all, input_boxes=boxes[:, None], multimask_output=False)
    for handle in handles:
        handle.remove()
    reports = clip_attentions(model, tiny_plan(recipe), data)
    assert [report.name for report in reports] == list(kept)
    for report in reports:
        attention = originals.get_submodule(report.name)
        assert isinstance(attention, QuantDecoderAttention)
        expected = plain_search(attention, kept[report.name], 0.5, 3, passes)
        assert {clip.slot: clip.quantile for clip in report.clips} == expected, report.name


def test_the_chosen_ranges_are_in_the_slots_and_nothing_else_changes() -> None:
    recipe = tiny_recipe("saq-sam-s", "w4a4")
    model, images = calibrated(recipe)
    before = {s.name: model.get_submodule(s.name).state_dict() for s in tiny_plan(recipe).slots}
    reports = clip_attentions(model, tiny_plan(recipe), images)
    searched = set()
    for report in reports:
        for clip in report.clips:
            quantizer = model.get_submodule(f"{report.name}.{clip.slot}")
            assert isinstance(quantizer, AffineQuantizer)
            assert quantizer.range == (clip.low, clip.high)
            searched.add(f"{report.name}.{clip.slot}")
    assert len(searched) == 4 * 7
    for name, state in before.items():
        if name not in searched:
            after = model.get_submodule(name).state_dict()
            assert all(torch.equal(state[key], after[key]) for key in state), name


def test_dynamic_queries_and_keys_stay_and_take_part_in_the_search_for_their_inputs() -> None:
    recipe = tiny_recipe("saq-sam-s", "w4a4", dynamic_queries=True)
    model, images = calibrated(recipe)
    dynamic = {slot.name for slot in tiny_plan(recipe).slots if slot.kind == "dynamic"}
    before = {name: model.get_submodule(name) for name in dynamic}
    reports = clip_attentions(model, tiny_plan(recipe), images)
    clipped = {f"{report.name}.{clip.slot}" for report in reports for clip in report.clips}
    assert len(dynamic) == 2 * 2
    assert len(clipped) == 4 * 7 - len(dynamic)
    assert not clipped & dynamic
    assert all(isinstance(model.get_submodule(name), type(old)) for name, old in before.items())
    static = tiny_recipe("saq-sam-s", "w4a4")
    others = clip_attentions(*calibrated_with_plan(static))
    for report, other in zip(reports, others, strict=True):
        # The deviation is that of all four operands as they are rounded.
        assert (report.before != other.before) == (report.name.endswith("image_to_token"))


def test_with_the_old_range_among_the_candidates_none_is_worse_at_its_own_step() -> None:
    """Greedy choices are each at least as good as the range that was there, all else being equal."""
    recipe = tiny_recipe("saq-sam-s", "w4a6", clipping=Clipping(passes=1, include_range=True))
    model, images = calibrated(recipe)
    reports = clip_attentions(model, tiny_plan(recipe), images)
    assert any(clip.quantile is None for report in reports for clip in report.clips)
    assert sum(report.after for report in reports) < sum(report.before for report in reports)


@torch.no_grad()
def test_ties_go_to_the_widest_range() -> None:
    attention = empty_attention()
    # All keys alike: every key is in focus whatever is done to the queries.
    query, key, value = random_inputs()[0]
    alike = key[:, :, :1].expand(-1, -1, 64, -1).contiguous()
    search = FocusSearch(attention, [(query, alike, value)], 0.5)
    candidates = search.candidates(0, "query", 4, symmetric=False)
    assert [share for share, _ in candidates] == sorted(QUANTILES, reverse=True)
    assert search.best(0, "query", [q for _, q in candidates], EMPTY) == 0


@torch.no_grad()
def test_among_few_tokens_every_candidate_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_inputs()[0][0]
    search = FocusSearch(empty_attention(), [(tokens, tokens, tokens)], 0.5)
    candidates = [q for _, q in search.candidates(0, "query", 4, symmetric=False)]
    errors = [1.0] * len(candidates)
    errors[13], errors[1] = 0.5, 0.25  # no neighbor of the best of every third
    monkeypatch.setattr(search, "error", lambda *_: errors.pop(0))
    assert search.best(0, "query", candidates, EMPTY) == 1
    assert not errors


@torch.no_grad()
@pytest.mark.parametrize("best", [0, 1, 5, 13, 26, 28])
def test_a_search_from_coarse_to_fine_finds_the_best_of_all_with_half_the_tries(
    best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = FocusSearch(empty_attention(), random_inputs(), 0.5)
    candidates = [q for _, q in search.candidates(0, "query", 4, symmetric=False)]
    tried: list[float] = []

    def error(queries: list[Tensor], _keys: list[Tensor]) -> float:
        tried.append(float(queries[0]))
        return abs(tried[-1] - best)

    def position(_index: int, _projected: Tensor, quantizers: Mapping[str, nn.Module]) -> Tensor:
        return torch.tensor(float(candidates.index(quantizers["query"])))  # type: ignore[arg-type]

    monkeypatch.setattr(search, "error", error)
    monkeypatch.setattr(search, "_output", position)
    monkeypatch.setattr(search, "side", lambda *_: [])
    assert search.best(0, "query", candidates, EMPTY) == best
    assert len(tried) == len(set(tried)) <= 14


@torch.no_grad()
def test_a_prompt_with_many_queries_is_compared_on_a_sample_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, _ = random_inputs()[0]
    attention = empty_attention()
    exact = FocusSearch(attention, [(key, query, query)], 0.5, "output")
    monkeypatch.setattr(focus_search, "MAX_QUERIES", 16)
    sampled = FocusSearch(attention, [(key, query, query)], 0.5, "output")
    assert sampled.inputs[0][0].shape == (1, 1, 16, 32)
    rows = [int((key[0, 0] == row).all(1).nonzero()) for row in sampled.inputs[0][0][0, 0]]
    assert rows == sorted(set(rows)) != list(range(16))
    assert torch.equal(sampled.inputs[0][1], query)
    assert torch.equal(sampled.focus[0], exact.focus[0][:, :, rows])
    again = FocusSearch(attention, [(key, query, query)], 0.5)
    assert torch.equal(again.inputs[0][0], sampled.inputs[0][0])


def test_prompts_are_sampled_evenly_over_images(monkeypatch: pytest.MonkeyPatch) -> None:
    name = STRUCTURE.decoder_attentions[0].name
    model, images = calibrated(tiny_recipe("saq-sam-s", "w4a4"))
    seen: list[Tensor] = []

    def watch(model: SamModel, names: Sequence[str], *image: Any) -> dict[str, AttentionInputs]:
        inputs = attention_inputs(model, names, *image)
        seen.append(inputs[name][0])
        return inputs

    monkeypatch.setattr(clipping, "attention_inputs", watch)
    plan = tiny_plan(tiny_recipe("saq-sam-s", clipping=Clipping(images=2)))
    clip_attentions(model, plan, images)
    everything = seen.copy()
    seen.clear()
    monkeypatch.setattr(clipping, "MAX_PROMPTS", 4)
    clip_attentions(model, plan, images)
    assert max(map(len, seen)) == 2
    for some, prompts in zip(seen, everything, strict=True):
        torch.testing.assert_close(some, prompts[:: -(-len(prompts) // 2)])


def test_a_range_is_not_searched_again_while_the_others_are_unchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched: list[str] = []

    def best(self: FocusSearch, index: int, operand: str, *_: object) -> int:
        searched.append(operand)
        return 0

    monkeypatch.setattr(FocusSearch, "best", best)
    recipe = tiny_recipe("saq-sam-s", "w4a4", clipping=Clipping(passes=3))
    clip_attentions(*calibrated_with_plan(recipe))
    # The last operand was searched with the final ranges of the others in the first pass, all others in the second.
    assert searched == [*SEARCHED, *SEARCHED[:-1]] * len(STRUCTURE.decoder_attentions)


# ---- outliers that leave the softmax as it was


def plant(attention: QuantDecoderAttention, query: Tensor, strength: float) -> Tensor:
    """Make one channel of a head constant over all keys, and huge in the queries of one token in 200.

    The logits of those rows shift by a constant, so probabilities stay as they were.
    """
    with torch.no_grad():
        for layer in (attention.q_proj, attention.k_proj):
            layer.weight[0] = 0
            layer.bias[0] = 0
        attention.k_proj.bias[0] = 1.0
        # The input's last channel says "huge"; nothing else reads it.
        attention.q_proj.weight[:, -1] = 0
        attention.k_proj.weight[:, -1] = 0
        attention.q_proj.weight[0, -1] = 1.0
    query = query.clone()
    query[..., -1] = 0
    query[:, :, ::200, -1] = strength
    return query


def both_quantizers(search: FocusSearch, bits: int) -> tuple[AffineQuantizer, AffineQuantizer]:
    """Quantizers of the queries: with the range of least error, and with that of the search."""
    (values,) = search.side(0, EMPTY)
    observer = HistogramObserver()
    observer(values)
    mse = AffineQuantizer(bits, *activation_parameters(observer, bits, symmetric=False, method="mse"))
    candidates = [q for _, q in search.candidates(0, "query", bits, symmetric=False)]
    return mse, candidates[search.best(0, "query", candidates, EMPTY)]


@torch.no_grad()
def planted(strength: float, measure: ClippingMeasure = "focus", bits: int = 4) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(3)
    attention = copy.deepcopy(empty_attention())
    query = torch.randn(1, 1, 400, 32, generator=generator)
    key = 2 * torch.randn(1, 1, 64, 32, generator=generator)
    without = probabilities(attention, plant(attention, query, 0.0), key)
    query = plant(attention, query, strength)
    torch.testing.assert_close(probabilities(attention, query, key), without, rtol=1e-3, atol=1e-4)
    search = FocusSearch(attention, [(query, key, key)], 0.5, measure)
    (queries,), keys = search.side(0, EMPTY), search.side(1, EMPTY)
    mse, clipped = both_quantizers(search, bits)
    return search.deviation([mse(queries)], keys), search.deviation([clipped(queries)], keys)


@pytest.mark.parametrize("measure", ["focus", "output"])
def test_planted_outliers_break_least_error_and_not_the_search(measure: ClippingMeasure) -> None:
    calm_mse, calm = planted(0.0, measure)
    for strength in (30.0, 100.0):
        mse, clipped = planted(strength, measure)
        assert mse > 2 * calm_mse, "the outliers stretch the least-error range"
        assert clipped < 1.3 * calm, "clipping them costs the focus nothing"
        assert clipped < 0.6 * mse


@torch.no_grad()
def test_clipping_loses_where_sharpness_matters_and_the_focus_does_not_show_it() -> None:
    """A tenth of the queries are four times as long: their focus is one key, clipped or not, but clipping blurs it.

    The focus of the many decides, so the search clips the few, whose probabilities then spread: the attention's output
    is further from float than with the range of least error. Chosen by that output, the range is the better one.
    """
    generator = torch.Generator().manual_seed(4)
    attention = copy.deepcopy(empty_attention())
    query = torch.randn(1, 1, 400, 32, generator=generator)
    key = 2 * torch.randn(1, 1, 64, 32, generator=generator)
    query[:, :, ::10] *= 4
    value = torch.randn(1, 1, 64, 32, generator=generator)
    search = FocusSearch(attention, [(query, key, value)], 0.5)
    by_output = FocusSearch(attention, [(query, key, value)], 0.5, "output")
    mse, by_focus = both_quantizers(search, 6)
    (exact,), keys = search.side(0, EMPTY), search.side(1, EMPTY)

    def error(quantizer: AffineQuantizer) -> float:
        return by_output.error([quantizer(exact)], keys)

    assert search.deviation([by_focus(exact)], keys) <= search.deviation([mse(exact)], keys)
    assert error(by_focus) > 1.5 * error(mse)
    assert error(both_quantizers(by_output, 6)[1]) <= 1.05 * error(mse)


@torch.no_grad()
@pytest.mark.parametrize("separate", [False, True])
def test_the_error_of_the_output_is_that_of_the_attention_itself(separate: bool) -> None:
    attention = empty_attention()
    ((query, key, value),) = random_inputs()
    if separate:
        for layer, tensor in zip(attention.input_projections[:2], (query, key), strict=True):
            layer.input_constant = torch.randn_like(tensor[0, 0])
    search = FocusSearch(attention, [(query, key, value)], 0.5, "output")
    queries, keys = search.side(0, EMPTY), search.side(1, EMPTY)
    assert search.error(queries, keys) == 0
    shared = (tensor.expand(3, -1, -1, -1) for tensor in (key, value))
    exact = attention(query, *shared)[0] - attention.out_proj.bias
    put = AffineQuantizer(3, torch.tensor(0.4), torch.tensor(4))
    attention.query_quantizer = put
    found = (
        attention(query, key.expand(3, -1, -1, -1), value.expand(3, -1, -1, -1))[0] - attention.out_proj.bias
    )
    expected = float((found - exact).square().mean() / exact.square().mean())
    assert search.error([put(queries[0])], keys) == pytest.approx(expected, rel=1e-4)
    attention.query_quantizer = nn.Identity()
    attention.k_proj.input_quantizer = put
    found = attention(query, *(t.expand(3, -1, -1, -1) for t in (key, value)))[0] - attention.out_proj.bias
    expected = float((found - exact).square().mean() / exact.square().mean())
    rounded = search.side(1, {**EMPTY, "key input": put})
    assert search.error(queries, rounded) == pytest.approx(expected, rel=1e-4)
