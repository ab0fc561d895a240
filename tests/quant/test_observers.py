"""Observers: histograms that add up, of fixed size, over all of float32."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saqsam.quant.observers import BINS, MANTISSA_BITS, HistogramObserver, bin_edges

examples = settings(max_examples=40, deadline=None, derandomize=True)
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
