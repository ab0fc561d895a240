"""Layers with slots compute what float ones do; packed ones compute with the weights of the grid."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import (
    PackedConv2d,
    PackedConvTranspose2d,
    PackedLayer,
    PackedLinear,
    PackedTensor,
    QuantConv2d,
    QuantConvTranspose2d,
    QuantLinear,
    channel_axis,
    to_packed_layer,
    to_quant_layer,
)
from saqsam.quant.packing import packed_size
from saqsam.quant.ranges import group_parameters, weight_parameters

examples = settings(max_examples=30, derandomize=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_and_input(kind: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "linear":
            return nn.Linear(7, 5), torch.randn(2, 3, 7)
        if kind == "linear without bias":
            return nn.Linear(7, 5, bias=False), torch.randn(4, 7)
        if kind == "patches":
            return nn.Conv2d(3, 6, kernel_size=4, stride=4), torch.randn(2, 3, 12, 8)
        if kind == "neck":
            return nn.Conv2d(3, 4, kernel_size=3, padding=1, bias=False), torch.randn(1, 3, 5, 6)
        return nn.ConvTranspose2d(6, 3, kernel_size=2, stride=2), torch.randn(2, 6, 4, 5)


KINDS = {
    "linear": (QuantLinear, PackedLinear),
    "linear without bias": (QuantLinear, PackedLinear),
    "patches": (QuantConv2d, PackedConv2d),
    "neck": (QuantConv2d, PackedConv2d),
    "upscaling": (QuantConvTranspose2d, PackedConvTranspose2d),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def packed(layer: nn.Module, bits: int = 4, input_quantizer: nn.Module | None = None) -> PackedLayer:
    axis = channel_axis(layer)
    assert isinstance(layer.weight, Tensor)
    rows = layer.weight.detach().movedim(axis, 0).flatten(1)
    scale, zero_point = weight_parameters(rows, bits, symmetric=False, method="min-max")
    weight = PackedTensor.from_float(layer.weight, scale, zero_point, bits, axis)
    return to_packed_layer(layer, weight, nn.Identity() if input_quantizer is None else input_quantizer)


@kinds
def test_empty_slots_change_nothing(kind: str) -> None:
    layer, values = layer_and_input(kind)
    quant = to_quant_layer(layer)
    assert type(quant) is KINDS[kind][0]
    assert torch.equal(quant(values), layer(values))
    # Parameters are shared, and called as before.
    assert dict(quant.named_parameters()) == dict(layer.named_parameters())
    assert list(quant.state_dict()) == list(layer.state_dict())
    assert "_quantizer" not in repr(layer)


@kinds
def test_both_slots_are_on_the_way(kind: str) -> None:
    layer, values = layer_and_input(kind)
    quant = to_quant_layer(layer)

    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    without_bias = layer(values) - layer(torch.zeros_like(values))
    quant.input_quantizer = Double()
    once = quant(values) - quant(torch.zeros_like(values))
    quant.weight_quantizer = Double()
    twice = quant(values) - quant(torch.zeros_like(values))
    torch.testing.assert_close(once, 2 * without_bias, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twice, 4 * without_bias, rtol=1e-4, atol=1e-5)


@kinds
@pytest.mark.parametrize("bits", [2, 4, 5, 8])
def test_a_packed_layer_computes_with_the_dequantized_weight(kind: str, bits: int) -> None:
    layer, values = layer_and_input(kind)
    quantizer = AffineQuantizer(bits, torch.tensor(0.3), torch.tensor(2.0))
    small = packed(layer, bits, quantizer)
    assert type(small) is KINDS[kind][1]
    weight, seen = small.weight(), quantizer(values)
    assert weight.dtype == torch.float32
    assert weight.shape == layer.weight.shape
    if isinstance(layer, nn.Linear):
        expected = F.linear(seen, weight, layer.bias)
    elif isinstance(layer, nn.ConvTranspose2d):
        expected = F.conv_transpose2d(seen, weight, layer.bias, stride=2)
    else:
        assert isinstance(layer, nn.Conv2d)
        expected = F.conv2d(seen, weight, layer.bias, layer.stride, layer.padding)
    assert torch.equal(small(values), expected)
    # The quant layer with the same weight is the same function: packing it changes no result.
    quant = to_quant_layer(layer)
    quant.input_quantizer = quantizer
    quant.weight = nn.Parameter(weight)
    assert torch.equal(to_packed_layer(quant, small.weight, quantizer)(values), small(values))
    torch.testing.assert_close(quant(values), small(values))


@kinds
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_each_channel_has_at_most_2_to_the_b_weights(kind: str, bits: int) -> None:
    layer, _ = layer_and_input(kind)
    rows = packed(layer, bits).weight().movedim(channel_axis(layer), 0).flatten(1)
    assert len(rows) == (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
    assert all(len(row.unique()) <= 2**bits for row in rows)


@kinds
def test_a_packed_layer_holds_codes_and_a_bias_and_no_weights(kind: str) -> None:
    layer, _ = layer_and_input(kind)
    small = packed(layer, 4, AffineQuantizer.empty(4))
    assert [name for name, _ in small.named_parameters()] == (["bias"] if layer.bias is not None else [])
    sizes = {name: (t.dtype, t.numel()) for name, t in small.named_buffers()}
    channels = layer.weight.shape[channel_axis(layer)]
    assert sizes == {
        "weight.codes": (torch.uint8, packed_size(layer.weight.numel(), 4)),
        "weight.scale": (torch.float32, channels),
        "weight.zero_point": (torch.uint8, channels),
        "input_quantizer.scale": (torch.float32, 1),
        "input_quantizer.zero_point": (torch.int32, 1),
    }
    assert "bits=4" in repr(small)


def test_transposed_convolutions_have_their_channels_on_the_second_axis() -> None:
    layer, values = layer_and_input("upscaling")
    assert (channel_axis(layer), channel_axis(nn.Linear(2, 3)), channel_axis(nn.Conv2d(1, 2, 3))) == (1, 0, 0)
    with torch.no_grad():
        layer.weight[:, 1] *= 1000
    small = packed(layer, 8)
    assert small.weight.scale.shape == (3,)
    # A large channel does not cost the others their precision.
    for channel in (0, 2):
        torch.testing.assert_close(small(values)[:, channel], layer(values)[:, channel], rtol=0, atol=0.05)


@examples
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), bits=st.integers(2, 8), data=st.data())
def test_from_float_is_exact_for_values_on_the_grid(shape: list[int], bits: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    seed = data.draw(st.integers(0, 999))
    channels = shape[axis]
    codes = torch.randint(0, 2**bits, shape, generator=generator(seed), dtype=torch.uint8)
    scale = 2.0 ** torch.randint(-6, 6, (channels,), generator=generator(seed + 1))
    zero_point = torch.randint(0, 2**bits, (channels,), generator=generator(seed + 2)).float()
    form = [channels if i == axis else 1 for i in range(len(shape))]
    values = (codes.float() - zero_point.reshape(form)) * scale.reshape(form)
    tensor = PackedTensor.from_float(values, scale, zero_point, bits, axis)
    assert torch.equal(tensor.unpack(), codes)
    assert torch.equal(tensor(), values)


def test_a_packed_tensor_is_restored_from_its_state() -> None:
    values = torch.randn(4, 9, generator=generator())
    scale, zero_point = weight_parameters(values, 3, symmetric=True, method="mse")
    tensor = PackedTensor.from_float(values, scale, zero_point, 3)
    other = PackedTensor((4, 9), 3, 0)
    assert {n: t.shape for n, t in other.state_dict().items()} == {
        n: t.shape for n, t in tensor.state_dict().items()
    }
    other.load_state_dict(tensor.state_dict())
    assert torch.equal(other(), tensor())


def test_what_cannot_be_quantized_is_refused() -> None:
    class Special(nn.Linear):
        pass

    for layer in (
        nn.LayerNorm(4),
        nn.Conv1d(2, 2, 3),
        Special(2, 2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 3, padding=1),
        nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1),
    ):
        with pytest.raises(TypeError, match="cannot quantize"):
            to_quant_layer(layer)
    with pytest.raises(TypeError, match="cannot pack a LayerNorm"):
        to_packed_layer(nn.LayerNorm(4), PackedTensor((4, 4), 4, 0), nn.Identity())


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="from 2 to 8"):
        PackedTensor((4, 4), bits, 0)


@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 40), 0), ((6, 5, 3, 3), 0), ((5, 6, 2, 2), 1), ((1, 4, 4, 6), 3)]
)
@pytest.mark.parametrize("group_size", [16, 32, 1024])
def test_each_group_has_a_grid_of_its_own(shape: tuple[int, ...], axis: int, group_size: int) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = values.movedim(axis, 0).flatten(1)
    steps = group_parameters(rows, group_size, 4, symmetric=False, method="min-max")
    packed = PackedTensor.from_float(values, *steps, 4, axis, group_size)
    count = math.ceil(rows.shape[1] / group_size)
    assert packed.scale.shape == packed.zero_point.shape == (6, count)
    found = packed().movedim(axis, 0).flatten(1)
    for start in range(0, rows.shape[1], group_size):
        part = slice(start, start + group_size)
        scale, zero_point = weight_parameters(rows[:, part], 4, symmetric=False, method="min-max")
        alone = PackedTensor.from_float(rows[:, part], scale, zero_point, 4)
        assert torch.equal(found[:, part], alone())
