"""Observers: histograms that add up, of fixed size, over all of float32."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saqsam.quant.range_observers import (
    BINS,
    MANTISSA_BITS,
    ChannelHistogramObserver,
    HistogramObserver,
    bin_edges,
)

examples = settings(max_examples=40, derandomize=True)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=8), elements=finite)
MAX = float(torch.finfo(torch.float32).max)
SMALLEST = 1e-45  # the smallest subnormal


def observe(*parts: torch.Tensor | np.ndarray) -> HistogramObserver:
    observer = HistogramObserver()
    for part in parts:
        observer(torch.as_tensor(part))
    return observer


def assert_same(a: HistogramObserver, b: HistogramObserver) -> None:
    assert torch.equal(a.counts, b.counts)
    assert (a.low, a.high) == (b.low, b.high)


def test_edges_ascend_and_touch() -> None:
    low, high = bin_edges()
    assert low.shape == high.shape == (BINS,)
    assert torch.equal(low[1:], high[:-1])
    assert (high >= low).all()
    assert (low[0], high[-1]) == (-MAX, MAX)
    used = (low > -MAX) & (high < MAX)
    assert (high > low)[used].all()


def test_bins_have_the_promised_relative_width() -> None:
    low, high = bin_edges()
    normal = (low >= torch.finfo(torch.float32).tiny) & (high < MAX)
    assert (high / low)[normal].max() <= 1 + 2.0**-MANTISSA_BITS
    octave = (low >= 1) & (high <= 2)
    assert int(octave.sum()) == 2**MANTISSA_BITS


@examples
@given(values=arrays)
def test_counts_are_those_of_a_search_among_the_edges(values: np.ndarray) -> None:
    low, high = bin_edges()
    observer = observe(values)
    assert int(observer.counts.sum()) == values.size
    # Bins hold their end nearer to zero and not the other; the two zeros have bins of their own.
    magnitude, is_negative = np.abs(values.astype(np.float64)).ravel(), np.signbit(values).ravel()
    half = BINS // 2
    position = np.digitize(magnitude, low[half:].numpy()) - 1
    # Empty bins beyond the largest float start where it does.
    position = np.minimum(position, int((high[half:] < MAX).sum()))
    index = np.where(is_negative, half - 1 - position, half + position)
    np.testing.assert_array_equal(observer.counts.numpy(), np.bincount(index, minlength=BINS))


@examples
@given(parts=st.lists(arrays, min_size=1, max_size=4))
def test_streaming_equals_all_at_once(parts: list[np.ndarray]) -> None:
    whole = torch.cat([torch.as_tensor(part).flatten() for part in parts])
    assert_same(observe(*parts), observe(whole))


@examples
@given(first=st.lists(arrays, max_size=3), second=st.lists(arrays, max_size=3))
def test_merged_shards_equal_one_observer(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    merged = observe(*first)
    merged.merge(observe(*second))
    assert_same(merged, observe(*first, *second))


def test_merging_works_on_what_was_observed_in_inference_mode() -> None:
    with torch.inference_mode():
        a, b = observe(torch.ones(3)), observe(torch.zeros(2))
    a.merge(b)
    assert int(a.counts.sum()) == 5


@examples
@given(values=arrays)
def test_extremes_are_exact_and_bins_hold_all_values(values: np.ndarray) -> None:
    observer = observe(values)
    assert (observer.low, observer.high) == (float(values.min()), float(values.max()))
    for merge in (1, 2, 8, 32):
        low, high, counts = observer.histogram(merge)
        assert low.dtype == high.dtype == counts.dtype == torch.float64
        assert float(counts.sum()) == values.size
        assert (counts > 0).all()
        assert (low <= high).all()
        assert (high[:-1] <= low[1:]).all()
        assert (low[0], high[-1]) == (observer.low, observer.high)


@pytest.mark.parametrize("value", [0.0, -0.0, SMALLEST, -SMALLEST, 1e-40, -1e-39, 1.0, -1.0, 3e38, MAX, -MAX])
def test_every_finite_value_falls_into_a_bin_around_it(value: float) -> None:
    low, high = bin_edges()
    observer = observe(torch.tensor([value]))
    (index,) = observer.counts.nonzero().flatten().tolist()
    exact = float(torch.tensor(value))
    assert low[index] <= exact <= high[index]
    bins = observer.histogram()
    assert [float(t) for t in bins] == [exact, exact, 1.0]


def test_both_zeros_lie_next_to_each_other_in_the_middle() -> None:
    assert observe(torch.tensor([-0.0])).counts.nonzero().item() == BINS // 2 - 1
    assert observe(torch.tensor([0.0])).counts.nonzero().item() == BINS // 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    observer = observe(torch.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        observer(torch.tensor([0.0, bad]))
    assert_same(observer, observe(torch.ones(3)))


def test_the_tensor_passes_through_untouched() -> None:
    values = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).transpose(0, 2)
    observer = HistogramObserver()
    assert observer.is_empty
    assert observer(values) is values
    assert not observer.is_empty
    assert_same(observer, observe(values.contiguous()))


def test_half_precision_is_counted_as_float32() -> None:
    values = torch.linspace(-3, 3, 50).half()
    assert_same(observe(values), observe(values.float()))


def test_size_does_not_depend_on_how_much_was_seen() -> None:
    observer = HistogramObserver()
    size = observer.counts.untyped_storage().nbytes()
    for seed in range(5):
        observer(torch.randn(1000, generator=torch.Generator().manual_seed(seed)))
    assert observer.counts.untyped_storage().nbytes() == size == BINS * 8
    assert not list(observer.state_dict())


@pytest.mark.parametrize("shape", [(3, 1, 40, 24), (2, 64, 64), (7, 3001), (5000,)])
def test_large_tensors_are_sampled_evenly_and_their_extremes_are_exact(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values[..., -1] *= 100  # one channel that a stride with a common divisor would miss or overrate
    exact = observe(values)
    monkeypatch.setattr("saqsam.quant.range_observers.MAX_SAMPLE", 900)
    sampled = observe(values)
    assert (sampled.low, sampled.high) == (exact.low, exact.high)
    counted = int((sampled.counts > 0).sum())
    assert 1 < counted <= 900
    assert int(sampled.counts.sum()) == pytest.approx(values.numel(), rel=0.03)
    far = bin_edges()[0] >= 5
    assert int(sampled.counts[far].sum()) == pytest.approx(int(exact.counts[far].sum()), rel=0.5, abs=60)
    assert_same(sampled, observe(values))


def test_a_sample_of_a_transposed_tensor_is_taken_in_the_order_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = torch.randn(40, 30, 20, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("saqsam.quant.range_observers.MAX_SAMPLE", 500)
    assert_same(observe(values), observe(values.permute(2, 0, 1)))


# ---- by channel


def observe_channels(
    *parts: torch.Tensor, axes: tuple[int, ...] = (1, 3), first_call: int = 0
) -> ChannelHistogramObserver:
    observer = ChannelHistogramObserver(axes)
    observer.next_call = first_call
    for part in parts:
        assert observer(part) is part
    return observer


def assert_same_channels(a: ChannelHistogramObserver, b: ChannelHistogramObserver) -> None:
    assert torch.equal(a.counts, b.counts)
    assert torch.equal(a.low, b.low)
    assert torch.equal(a.high, b.high)
    torch.testing.assert_close(a.sums, b.sums, rtol=1e-12, atol=1e-12)


def heads(seed: int, prompts: int = 2, tokens: int = 5) -> torch.Tensor:
    """Queries or keys [P, 3, T, 4]: channels of 12 sizes, some of them zero, with both signs of zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(prompts, 3, tokens, 4, generator=generator)
    values *= torch.logspace(-20, 20, 12).reshape(3, 1, 4)
    values[:, 1, :, 2] = 0.0
    values[:, 2, :, 0] = -0.0
    return values


shards = st.lists(st.integers(0, 99), max_size=3)


@examples
@given(seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3))
def test_pooled_channels_are_what_a_plain_observer_sees(seeds: list[int]) -> None:
    parts = [heads(seed, 1 + seed % 3, 1 + seed % 4) for seed in seeds]
    assert_same(observe_channels(*parts).pooled(), observe(*parts))
    assert_same(observe_channels(*parts, axes=(3,)).pooled(), observe(*parts))
    assert_same(
        observe_channels(*(part[..., 0] for part in parts), axes=(1,)).pooled(),
        observe(*(p[..., 0] for p in parts)),
    )


@examples
@given(
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3),
    signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=12, max_size=12),
)
def test_pooled_channels_with_signs_are_what_a_plain_observer_sees_of_the_flipped(
    seeds: list[int], signs: list[float]
) -> None:
    parts, flip = [heads(seed) for seed in seeds], torch.tensor(signs)
    # Channels are numbered head after head, as the rows of the projection.
    flipped = [part * flip.reshape(1, 3, 1, 4) for part in parts]
    assert_same(observe_channels(*parts).pooled(flip), observe(*flipped))


@examples
@given(values=hnp.arrays(np.float32, (2, 3, 2, 2), elements=finite), bits=st.integers(0, 63))
def test_any_float_can_change_its_sign(values: np.ndarray, bits: int) -> None:
    flip = torch.tensor([-1.0 if bits >> i & 1 else 1.0 for i in range(6)])
    part = torch.as_tensor(values)
    expected = observe(part * flip.reshape(1, 3, 1, 2))
    assert_same(observe_channels(part).pooled(flip), expected)


@settings(examples, max_examples=15)
@given(first=shards, second=shards)
def test_merged_channels_are_those_of_one_observer(first: list[int], second: list[int]) -> None:
    merged = observe_channels(*map(heads, first))
    other = observe_channels(*map(heads, second), first_call=len(first))
    merged.merge(other)
    expected = observe_channels(*map(heads, first + second))
    assert_same_channels(merged, expected)
    assert torch.equal(merged.sums, expected.sums)
    assert_same(merged.pooled(), expected.pooled())
    # What was merged is not bound to what it was merged into.
    merged(heads(100))
    assert_same_channels(other, observe_channels(*map(heads, second)))


def test_a_channel_s_own_values_are_counted() -> None:
    values = heads(0)
    observer = observe_channels(values)
    rows = values.transpose(1, 2).flatten(0, 1).flatten(1)  # [P * T, channels]
    for channel in range(12):
        alone = observe(rows[:, channel])
        assert torch.equal(observer.counts[channel], alone.counts)
        assert (observer.low[channel], observer.high[channel]) == (alone.low, alone.high)
    torch.testing.assert_close(observer.means(), rows.double().mean(0), rtol=1e-12, atol=0)


def test_tokens_are_sampled_of_every_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    values = heads(3, prompts=2, tokens=400)
    exact = observe_channels(values)
    monkeypatch.setattr("saqsam.quant.range_observers.MAX_SAMPLE", 12 * 2 * 40)
    sampled = observe_channels(values)
    assert torch.equal(sampled.low, exact.low)
    assert torch.equal(sampled.high, exact.high)
    # 400 is a multiple of 10, so that every 11th token is taken.
    rows = values[:, :, ::11].transpose(1, 2).flatten(0, 1).flatten(1)
    for channel in range(12):
        assert torch.equal(sampled.counts[channel], 11 * observe(rows[:, channel]).counts)
    torch.testing.assert_close(sampled.means(), rows.double().mean(0), rtol=1e-12, atol=0)


def test_sums_of_channels_are_added_in_the_order_of_calls() -> None:
    calls = [heads(seed) * 10.0**seed for seed in range(4)]
    whole = observe_channels(*calls)
    odd, even = (observe_channels(calls[first], first_call=first) for first in (1, 0))
    for observer, call in ((odd, 3), (even, 2)):
        observer.next_call = call
        observer(calls[call])
    odd.merge(even)
    assert torch.equal(odd.sums, whole.sums)
    assert odd.next_call == 4
    with pytest.raises(AssertionError, match="twice"):
        odd.merge(even)


def test_one_channel_is_not_taken_for_none() -> None:
    seen = observe_channels(torch.randn(2, 1, 3, 1, generator=torch.Generator().manual_seed(0)))
    merged = ChannelHistogramObserver((1, 3))
    merged.merge(seen)
    assert_same_channels(merged, seen)
    seen.merge(ChannelHistogramObserver((1, 3)))
    assert_same_channels(merged, seen)


def test_channels_that_saw_nothing() -> None:
    observer = ChannelHistogramObserver((1, 3))
    assert observer.is_empty
    assert observer.pooled().is_empty
    assert not observe_channels(heads(0)).is_empty
    with pytest.raises(ValueError, match="no calibration value reached this quantizer"):
        observer.means()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_channels_that_are_not_finite_are_refused(bad: float) -> None:
    observer = observe_channels(heads(0))
    values = heads(1)
    values[0, 1, 2, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        observer(values)
    assert_same_channels(observer, observe_channels(heads(0)))


def test_merging_channels_works_on_what_was_observed_in_inference_mode() -> None:
    with torch.inference_mode():
        a, b = observe_channels(heads(0)), observe_channels(heads(1), first_call=1)
    a.merge(b)
    assert_same_channels(a, observe_channels(heads(0), heads(1)))
