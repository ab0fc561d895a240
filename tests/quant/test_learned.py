"""What stands in for quantizers while learning: the same values, and the gradients that the papers give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saqsam.quant.affine import AffineQuantizer, affine_parameters
from saqsam.quant.layers import PackedLinear, PackedTensor
from saqsam.quant.learned import LearnedAffineQuantizer, LearnedScaleLinear, RandomDrop, StraightThrough
from saqsam.quant.logarithmic import LogQuantizer

examples = settings(max_examples=40, derandomize=True)
all_bits = st.integers(2, 8)
ends = st.floats(-1e3, 1e3, width=32)


def quantizer_of(low: float, high: float, bits: int, symmetric: bool = False) -> AffineQuantizer:
    low, high = min(low, high), max(low, high)
    return AffineQuantizer(
        bits, *affine_parameters(torch.tensor(low), torch.tensor(high), bits, symmetric=symmetric)
    )


def values_around(quantizer: AffineQuantizer, seed: int = 0, count: int = 300) -> Tensor:
    """Values inside the range and up to half of it beyond."""
    low, high = quantizer.range
    share = torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 2 - 0.5
    return low + (high - low) * share


class Half(nn.Module):
    """A quantizer that is easy to tell apart."""

    def forward(self, values: Tensor) -> Tensor:
        return values / 2


# ---- a learned scale


@examples
@given(a=ends, b=ends, bits=all_bits, symmetric=st.booleans(), seed=st.integers(0, 99))
def test_it_computes_what_the_finished_quantizer_will(
    a: float, b: float, bits: int, symmetric: bool, seed: int
) -> None:
    start = quantizer_of(a, b, bits, symmetric)
    learned = LearnedAffineQuantizer(start)
    values = values_around(start, seed)
    assert torch.equal(learned(values), learned.fixed()(values))
    # And that is the one it started from, but for the rounding of the logarithm.
    fixed = learned.fixed()
    torch.testing.assert_close(fixed.scale, start.scale, rtol=2e-6, atol=0)
    assert torch.equal(fixed.zero_point, start.zero_point)
    assert (fixed.bits, fixed.zero_point.dtype) == (start.bits, torch.int32)
    assert ((learned(values) - start(values)).abs() <= 1.001 * start.scale).all()


def straight_through(values: Tensor, log_scale: Tensor, zero_point: int, last: int) -> Tensor:
    """The formula of LSQ with rounding as a constant: what autograd makes of it is the gradient of the paper."""
    scale = log_scale.exp()
    scaled = values / scale
    rounded = scaled + (torch.round(scaled) - scaled).detach()
    return (rounded + zero_point).clamp(0, last).sub(zero_point) * scale


@examples
@given(
    a=ends.filter(lambda x: abs(x) > 1e-2),
    b=ends.filter(lambda x: abs(x) > 1e-2),
    bits=all_bits,
    symmetric=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_the_straight_through_formula(
    a: float, b: float, bits: int, symmetric: bool, seed: int
) -> None:
    start = quantizer_of(a, b, bits, symmetric)
    learned = LearnedAffineQuantizer(start)
    values = values_around(start, seed).requires_grad_()
    weights = torch.randn(len(values), generator=torch.Generator().manual_seed(seed + 1))
    found = torch.autograd.grad((learned(values) * weights).sum(), [values, learned.log_scale])
    log_scale = learned.log_scale.detach().double().requires_grad_()
    other = values.detach().double().requires_grad_()
    formula = straight_through(other, log_scale, int(start.zero_point), 2**bits - 1)
    expected = torch.autograd.grad((formula * weights).sum(), [other, log_scale])
    assert torch.equal(found[0], expected[0].float())
    tolerance = 1e-5 * float((values.abs() * weights.abs()).sum().detach())
    torch.testing.assert_close(found[1], expected[1].float(), rtol=1e-3, atol=tolerance)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_scale_s_gradient_is_the_slope_while_no_code_changes(bits: int) -> None:
    learned = LearnedAffineQuantizer(quantizer_of(-1.0, 2.0, bits))
    low, high = learned.fixed().range
    # Outside, the value is the end of the range times the scale: a true slope. Inside, the code does not change,
    # and the straight-through part, -x, is all that differs from it.
    values = torch.tensor([low - 1, high + 1, 0.1 * high, 0.4 * high, 0.6 * low])
    slopes = []
    for value in values:
        (slope,) = torch.autograd.grad(learned(value), learned.log_scale)
        slopes.append(float(slope))
    step = 1e-4
    with torch.no_grad():
        before = learned(values)
        learned.log_scale.add_(step)
        numeric = (learned(values) - before) / step
    expected = numeric - torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]) * values
    torch.testing.assert_close(torch.tensor(slopes), expected, rtol=1e-2, atol=1e-2)


def test_learning_the_scale_finds_a_better_one() -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    start = quantizer_of(-12.0, 12.0, 4, symmetric=True)
    learned = LearnedAffineQuantizer(start)
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (learned(values) - values).square().mean().backward()
        optimizer.step()

    def error(quantizer: AffineQuantizer) -> float:
        return float((quantizer(values) - values).square().mean())

    best = min(error(quantizer_of(-i / 10, i / 10, 4, symmetric=True)) for i in range(10, 120))
    # Its gradient is not quite that of the error, so it stops a little beside the best.
    assert error(learned.fixed()) <= 1.15 * best < 0.3 * error(start)
    assert torch.equal(learned.fixed().zero_point, start.zero_point)


def test_the_quantizer_that_it_started_from_stays() -> None:
    start = quantizer_of(-1.0, 2.0, 4)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    learned = LearnedAffineQuantizer(start)
    with torch.no_grad():
        learned.log_scale.add_(1)
        learned.zero_point.add_(1)
    assert start.state_dict() == before
    assert [name for name, _ in learned.named_parameters()] == ["log_scale"]


# ---- nothing learned


@pytest.mark.parametrize(
    "quantizer", [quantizer_of(0.0, 0.8, 3), LogQuantizer(3, torch.tensor(0.5), torch.tensor(2))]
)
def test_straight_through_has_the_values_of_the_quantizer_and_the_gradient_of_the_identity(
    quantizer: nn.Module,
) -> None:
    values = torch.linspace(0, 1, 101).requires_grad_()
    found = StraightThrough(quantizer)(values)
    torch.testing.assert_close(found, quantizer(values.detach()), rtol=0, atol=1e-7)
    weights = torch.arange(101.0)
    (gradient,) = torch.autograd.grad((found * weights).sum(), values)
    assert torch.equal(gradient, weights)


@pytest.mark.parametrize(
    "quantizer",
    [StraightThrough(quantizer_of(0.0, 0.8, 3)), LearnedAffineQuantizer(quantizer_of(0.0, 0.8, 3))],
)
def test_what_is_marked_passes_as_it_is(quantizer: LearnedAffineQuantizer | StraightThrough) -> None:
    values = torch.linspace(-1, 2, 90).reshape(9, 10).requires_grad_()
    passes = (torch.arange(90) % 3 == 0).reshape(9, 10)
    found, whole = quantizer(values, (~passes).to(torch.uint8)), quantizer(values)
    assert torch.equal(found[passes], values[passes])
    torch.testing.assert_close(found[~passes], whole[~passes])
    assert not torch.equal(found, whole)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    (other,) = torch.autograd.grad(whole.sum(), values)
    assert torch.equal(gradient, torch.where(passes, 1.0, other))


# ---- random dropping


def drop(probability: float, seed: int = 0) -> RandomDrop:
    return RandomDrop(StraightThrough(Half()), probability, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.25, 0.5, 0.9, 0.99])
def test_so_many_values_pass_as_they_are_and_the_rest_is_quantized(probability: float) -> None:
    values = torch.rand(300, 251, generator=torch.Generator().manual_seed(1)) + 1
    found = drop(probability)(values)
    passed = found == values
    assert torch.equal(found, torch.where(passed, values, values / 2))
    # 75,000 draws: five standard deviations, and what the bytes can tell apart.
    deviation = (probability * (1 - probability) / values.numel()) ** 0.5
    assert abs(float(passed.double().mean()) - probability) <= 5 * deviation + 1 / 512
    # No row or column is special.
    for axis in (0, 1):
        share = passed.double().mean(axis)
        assert (share - probability).abs().max() <= 7 * (probability * (1 - probability) / 251) ** 0.5


@pytest.mark.parametrize("probability", [0.0, 0.0001, 0.001])
def test_nothing_is_dropped_at_zero(probability: float) -> None:
    values = torch.rand(5000) + 1
    assert torch.equal(drop(probability)(values), values / 2)


@pytest.mark.parametrize("probability", [1.0, 0.9999, 0.999])
def test_all_is_dropped_at_one(probability: float) -> None:
    values = torch.rand(5000) + 1
    assert torch.equal(drop(probability)(values), values)


def test_the_generator_alone_decides() -> None:
    values = torch.rand(1000) + 1
    first = drop(0.5, seed=3)
    one, two = first(values), first(values)
    assert not torch.equal(one, two)
    again = drop(0.5, seed=3)
    torch.manual_seed(99)
    assert torch.equal(again(values), one)
    assert torch.equal(again(values), two)
    assert not torch.equal(drop(0.5, seed=4)(values), one)
    state = torch.random.get_rng_state()
    first(values)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 0, 4)])
def test_any_shape_can_be_dropped(shape: tuple[int, ...]) -> None:
    values = torch.ones(shape)
    found = drop(0.5)(values)
    assert found.shape == shape
    assert ((found == 1) | (found == 0.5)).all()


def test_gradients_pass_dropped_values_and_quantized_ones() -> None:
    learned = LearnedAffineQuantizer(quantizer_of(-1.0, 1.0, 2))
    values = torch.linspace(-3, 3, 400).requires_grad_()
    layer = RandomDrop(learned, 0.5, torch.Generator().manual_seed(0))
    found = layer(values)
    passed = found == values
    (gradient, scale) = torch.autograd.grad(found.sum(), [values, learned.log_scale])
    low, high = learned.fixed().range
    outside = (values < low - 0.5 * learned.fixed().scale) | (values > high + 0.5 * learned.fixed().scale)
    assert torch.equal(gradient[passed], torch.ones(int(passed.sum())))
    assert not gradient[outside & ~passed].any()
    (whole,) = torch.autograd.grad(learned(values.detach())[~passed].sum(), learned.log_scale)
    torch.testing.assert_close(scale, whole)


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_scales_of_a_packed_layer_are_learned_and_its_codes_stay(with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 8, (5, 3), generator=generator).to(torch.uint8)
    packed = PackedTensor.from_codes(codes, torch.rand(5) + 0.1, torch.full((5,), 4), 3)
    bias = torch.randn(5, generator=generator) if with_bias else None
    layer = PackedLinear(packed, bias, nn.Identity(), nn.Identity())
    values = torch.randn(7, 3, generator=generator)
    before, weight = layer(values), packed()
    learned = LearnedScaleLinear(layer)
    torch.testing.assert_close(learned(values), before)
    (slope,) = torch.autograd.grad(learned(values).sum(), learned.log_gain)
    torch.testing.assert_close(slope, (values @ weight.T).sum(0))
    with torch.no_grad():
        learned.log_gain[1] = torch.tensor(2.0).log()
    expected = learned(values)
    fixed = learned.fixed()
    assert type(fixed) is PackedLinear
    torch.testing.assert_close(fixed(values), expected)
    torch.testing.assert_close(fixed.weight()[1], 2 * weight[1])
    assert torch.equal(fixed.weight.unpack(), codes)
