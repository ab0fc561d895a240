"""Logarithmic quantization: powers of one base and zero, and a base that makes the best product `P @ V`."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saqsam.quant.logarithmic import (
    GranularityObserver,
    LogQuantizer,
    ValueTap,
    dequantize_log,
    quantize_log,
)

examples = settings(max_examples=40, derandomize=True)
all_bits = st.integers(2, 8)
TAUS = (1, 2, 4)
taus = st.sampled_from((*TAUS, 8, 16, 32))
scales = st.floats(2.0**-8, 1.0, width=32)
SCALES = [2.0 ** (-i / 2) for i in range(17)]


def log_quantizer(bits: int, scale: float, tau: int) -> LogQuantizer:
    return LogQuantizer(bits, torch.tensor(scale), torch.tensor(tau))


def probabilities_of(seed: int, *shape: int, sharpness: float = 3.0) -> Tensor:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.softmax(sharpness * logits, -1)


def spread(count: int = 4000) -> Tensor:
    """Ascending values from zero over the smallest floats to 1."""
    return torch.cat([torch.zeros(1), torch.logspace(-44, -9, 100), torch.logspace(-8, 0, count)])


# ---- the grid


@examples
@given(bits=all_bits, scale=scales, tau=taus)
def test_there_are_2_to_the_b_values_and_zero_is_one_of_them(bits: int, scale: float, tau: int) -> None:
    quantizer = log_quantizer(bits, scale, tau)
    # From far below the last power, in steps of a tenth of one.
    exponents = torch.arange(0, 10 * (2**bits + 2)) / 10
    values = torch.cat([torch.zeros(1), scale * torch.exp2(-exponents / tau)])
    found = quantizer(values).unique()
    # 2**-126 is the smallest float of full precision; with 8 bits the powers go on beyond it.
    found = found[(found == 0) | (found > 2.0**-126)]
    in_reach = scale * 2 ** (-(2**bits - 2) / tau) > 2.0**-125
    assert len(found) == 2**bits if in_reach else len(found) < 2**bits
    assert quantizer.range == (float(found[0]), float(found[-1])) == (0.0, pytest.approx(scale))
    ratios = found[2:] / found[1:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 2 ** (1 / tau)), rtol=3e-5, atol=0)


@examples
@given(bits=all_bits, scale=scales, tau=taus, seed=st.integers(0, 99))
def test_forward_is_quantize_then_dequantize_bit_for_bit(
    bits: int, scale: float, tau: int, seed: int
) -> None:
    quantizer = log_quantizer(bits, scale, tau)
    values = torch.cat([probabilities_of(seed, 3, 50).flatten(), spread(500)])
    codes = quantize_log(values, quantizer.scale, quantizer.tau, bits)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) < 2**bits
    once = dequantize_log(codes, quantizer.scale, quantizer.tau, bits)
    assert once.dtype == torch.float32
    assert torch.equal(once, quantizer(values))
    # What has a code keeps it.
    assert torch.equal(quantize_log(once, quantizer.scale, quantizer.tau, bits), codes)


@examples
@given(bits=all_bits, scale=scales, tau=taus)
def test_order_is_kept(bits: int, scale: float, tau: int) -> None:
    assert (log_quantizer(bits, scale, tau)(spread()).diff() >= 0).all()


@examples
@given(bits=all_bits, scale=scales, tau=taus)
def test_zero_stays_zero_and_nothing_exceeds_the_scale(bits: int, scale: float, tau: int) -> None:
    quantizer = log_quantizer(bits, scale, tau)
    assert torch.equal(quantizer(torch.zeros(2)), torch.zeros(2))
    above = torch.linspace(scale, 1.0, 50)
    assert torch.equal(quantizer(above), quantizer.scale.expand(50))


@examples
@given(bits=all_bits, scale=scales, tau=taus)
def test_error_within_the_powers_is_half_a_step_of_the_exponent(bits: int, scale: float, tau: int) -> None:
    quantizer = log_quantizer(bits, scale, tau)
    smallest = scale * 2 ** (-(2**bits - 2) / tau)
    values = torch.logspace(math.log10(max(smallest, 1e-37)), math.log10(scale), 300)
    steps = tau * (quantizer(values).log2() - values.log2())
    assert (steps.abs() <= 0.5 + 1e-3).all()


def test_a_power_of_the_base_comes_back_exactly() -> None:
    for tau in TAUS:
        quantizer = log_quantizer(4, 1.0, tau)
        powers = torch.exp2(-torch.arange(15) / tau)
        assert torch.equal(quantizer(powers), powers)
        assert quantizer(torch.exp2(torch.tensor(-15 / tau))) == 0


def test_buffers_are_scalars_that_travel_with_the_quantizer() -> None:
    quantizer = LogQuantizer(4, torch.tensor([[0.25]]), torch.tensor([2.0]))
    state = quantizer.state_dict()
    assert {name: (t.dtype, tuple(t.shape)) for name, t in state.items()} == {
        "scale": (torch.float32, ()),
        "tau": (torch.int32, ()),
    }
    other = LogQuantizer.empty(4)
    assert not torch.equal(other(spread()), quantizer(spread()))
    other.load_state_dict(state)
    assert torch.equal(other(spread()), quantizer(spread()))
    assert "bits=4" in repr(quantizer)
    with pytest.raises(ValueError, match="bits must be an integer from 2 to 8, got 9"):
        LogQuantizer.empty(9)


# ---- the search


def observe(bits: int, *calls: tuple[Tensor, Tensor], **limits: int) -> GranularityObserver:
    observer = GranularityObserver(bits, ValueTap(), **limits)
    for call in calls:
        feed(observer, call)
    return observer


def feed(observer: GranularityObserver, call: tuple[Tensor, Tensor]) -> None:
    probabilities, values = call
    assert observer.tap(values) is values
    assert observer(probabilities) is probabilities


def product_error(calls: Sequence[tuple[Tensor, Tensor]], bits: int, tau: int, scale: float) -> float:
    """Squared error of `P @ V`, from the definition of the code, in double precision."""
    total = 0.0
    for p, v in calls:
        p, v = p.double(), v.double()
        code = torch.round(-tau * torch.log2(p / scale)).clamp(min=0)
        rounded = torch.where(code < 2**bits - 1, scale * 2.0 ** (-code / tau), 0.0)
        total += float((rounded @ v - p @ v).square().mean())
    return total


def random_values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def attention(seed: int, keys: int = 24, sharpness: float = 3.0, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """P [2, 3, 7, K] and V [2, 3, K, 5]."""
    generator = torch.Generator().manual_seed(seed + 1000)
    values = shift + torch.randn(2, 3, keys, 5, generator=generator)
    return probabilities_of(seed, 2, 3, 7, keys, sharpness=sharpness), values


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_the_least_error_of_the_product_is_found(bits: int, sharpness: float, shift: float) -> None:
    calls = [attention(seed, sharpness=sharpness, shift=shift) for seed in range(3)]
    found = observe(bits, *calls).quantizer()
    assert found.bits == bits
    grids = list(itertools.product(TAUS, SCALES))
    errors = [product_error(calls, bits, tau, scale) for tau, scale in grids]
    # The first of those whose error is the least: where no probability exceeds the scale, some differ by nothing.
    least = next(grid for grid, error in zip(grids, errors, strict=True) if error <= 1.0001 * min(errors))
    assert (int(found.tau), float(found.scale)) == pytest.approx(least)


@pytest.mark.parametrize("finest", [1, 4, 16])
def test_finer_steps_are_tried_up_to_the_finest(finest: int) -> None:
    # Probabilities within one octave: the more steps it has, the better.
    p, v = attention(0, sharpness=0.1)
    assert int(observe(8, (p, v), max_tau=finest).quantizer().tau) == finest


@pytest.mark.parametrize("coarsest", [1, 2, 4])
def test_coarser_steps_than_the_coarsest_are_not_tried(coarsest: int) -> None:
    call = attention(0, sharpness=5.0)
    free, bound = observe(3, call), observe(3, call, min_tau=coarsest)
    assert bound.taus == [tau for tau in TAUS if tau >= coarsest]
    assert int(bound.quantizer().tau) == max(coarsest, int(free.quantizer().tau))
    assert torch.equal(bound.errors, free.errors[TAUS.index(coarsest) :])


def test_with_rows_scaled_the_product_is_divided_before_it_is_compared() -> None:
    # Every probability is rounded up by the same share, which the division undoes.
    rows, values = torch.full((1, 1, 3, 4), 2.0**-0.25), random_values(1, 1, 4, 5)
    found = observe(4, (rows, values), row_scaled=True)
    assert float(found.errors.min()) < 1e-12
    assert float(found.errors[0, 0]) < 1e-12
    assert float(observe(4, (rows, values)).errors[0, 0]) > 1e-3


def test_the_error_counts_after_the_product_and_not_before() -> None:
    # The same probabilities: each key has a value of its own, or only the likeliest or the least likely one has any.
    p, _ = attention(0, sharpness=2.0)
    p = p.sort(-1).values
    chosen = set()
    for value in (torch.eye(24), torch.eye(24)[:, -1:], torch.eye(24)[:, :1]):
        found = observe(3, (p, value.expand(2, 3, -1, -1))).quantizer()
        chosen.add((int(found.tau), float(found.scale)))
    assert len(chosen) == 3


@settings(examples, max_examples=10)
@given(
    first=st.lists(st.integers(0, 99), max_size=3),
    second=st.lists(st.integers(0, 99), max_size=3),
    bits=st.integers(2, 5),
)
def test_merged_shards_are_the_whole(first: list[int], second: list[int], bits: int) -> None:
    whole = observe(bits, *(attention(seed) for seed in [*first, *second]))
    # Calls are divided as images are among processes: odd numbers were seen by the second.
    seeds = [*first, *second]
    merged, other = (observe(bits) for _ in range(2))
    for call, seed in enumerate(seeds):
        observer = (merged, other)[call % 2]
        observer.next_call = call
        feed(observer, attention(seed))
    merged.merge(other)
    assert torch.equal(merged.errors, whole.errors)
    assert sorted(merged.errors_by_call) == sorted(whole.errors_by_call) == [*range(len(seeds))]
    if seeds:
        assert merged.quantizer().state_dict() == whole.quantizer().state_dict()


def test_ties_go_to_the_smallest_tau_and_then_to_the_largest_scale() -> None:
    # A probability of 1 is a power for each scale 2**(-k) and tau; with 0 and 1 alone all fit that hold 1.
    certain = torch.eye(4)[None]
    values = torch.ones(1, 4, 2)
    observer = observe(4, (certain, values))
    found = observer.quantizer()
    assert (int(found.tau), float(found.scale)) == (1, 1.0)
    assert int((observer.errors == observer.errors.min()).sum()) > 1
    # 1/16 is a power of each base, below each scale 2**(-k) from 1 to it.
    even = torch.full((1, 4, 16), 1 / 16)
    observer = observe(4, (even, torch.ones(1, 16, 2)))
    found = observer.quantizer()
    assert int((observer.errors == 0).sum()) > 2
    assert (int(found.tau), float(found.scale)) == (1, 1.0)


def test_only_the_first_calls_are_looked_at() -> None:
    calls = [attention(seed) for seed in range(5)]
    observer = observe(4, *calls, max_calls=2)
    assert torch.equal(observer.errors, observe(4, *calls[:2]).errors)


def test_values_that_all_prompts_share_count_for_each_of_them() -> None:
    p, v = attention(0)
    shared = v[:1]
    found, expected = observe(4, (p, shared)), observe(4, (p, shared.expand_as(v).contiguous()))
    assert torch.equal(found.errors, expected.errors)


# ---- what is looked at


class Counted(GranularityObserver):
    """Keeps what it looks at."""

    def _errors(self, rows: Tensor, values: Tensor) -> Tensor:
        self.rows, self.values = rows, values
        return super()._errors(rows, values)


@examples
@given(
    matrices=st.integers(1, 12),
    queries=st.integers(1, 12),
    keys=st.integers(1, 9),
    most=st.integers(1, 1500),
)
def test_at_most_so_many_are_looked_at_in_whole_rows_with_their_own_values(
    matrices: int, queries: int, keys: int, most: int
) -> None:
    p = probabilities_of(0, matrices, queries, keys)
    v = torch.randn(matrices, keys, 2, generator=torch.Generator().manual_seed(1))
    tap = ValueTap()
    observer = Counted(4, tap, max_probabilities=most)
    tap(v)
    observer(p)
    looked = observer.rows
    assert looked.numel() <= max(most, keys)
    # No less than half of what could be: as many rows of each matrix.
    assert 2 * looked.numel() >= min(most // keys, matrices * queries) * keys
    for rows, values in zip(looked, observer.values, strict=True):
        (origin,) = [i for i in range(matrices) if torch.equal(v[i], values)]
        assert len(rows.unique(dim=0)) == len(rows) or keys == 1
        assert all((row == p[origin]).all(-1).any() for row in rows)


def test_every_head_and_every_token_can_be_looked_at() -> None:
    heads, tokens, keys = 8, 7, 64
    p = probabilities_of(0, 16, heads, tokens, keys)
    tap = ValueTap()
    observer = Counted(4, tap, max_probabilities=40 * keys)  # fewer rows than there are matrices
    tap(torch.randn(16, heads, keys, 2, generator=torch.Generator().manual_seed(1)))
    observer(p)
    places = (observer.rows[:, :, None] == p.flatten(0, 2)).all(-1).nonzero()[:, 2]
    assert len(places) == 40
    assert set((places // tokens % heads).tolist()) == set(range(heads))
    assert set((places % tokens).tolist()) == set(range(tokens))


def test_an_observer_that_saw_nothing_has_no_quantizer() -> None:
    with pytest.raises(ValueError, match="no calibration value reached this quantizer"):
        GranularityObserver(4, ValueTap()).quantizer()
    with pytest.raises(AssertionError, match="the values must pass the tap before the probabilities"):
        GranularityObserver(4, ValueTap())(torch.ones(1, 2, 2))
