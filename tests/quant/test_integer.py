import pytest
import torch
from torch import Tensor, nn

from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.integer import (
    FLOAT_INPUT,
    SATURATING,
    FbgemmKernel,
    IntegerLinear,
    IntMmKernel,
    Kernel,
    choose_kernel,
    has_exact_bytes,
    has_fbgemm,
)
from saqsam.quant.layers import ChannelScale, PackedLinear, PackedTensor

needs_fbgemm = pytest.mark.skipif(not has_fbgemm(), reason="torch without FBGEMM")
KERNELS = [IntMmKernel, pytest.param(FbgemmKernel, marks=needs_fbgemm)]


def packed_linear(
    weight_bits: int = 8,
    bits: int = 7,
    *,
    inputs: int = 37,
    outputs: int = 21,
    symmetric: bool = False,
    bias: bool = True,
    seed: int = 0,
) -> PackedLinear:
    """Random codes of all values, odd sizes, a zero point off the middle."""
    generator = torch.Generator().manual_seed(seed)

    def codes(count: int, *shape: int) -> Tensor:
        return torch.randint(0, 2**count, shape, generator=generator)

    zero_point = torch.full((outputs,), 2 ** (weight_bits - 1)) if symmetric else codes(weight_bits, outputs)
    scale = 0.001 + 0.01 * torch.rand(outputs, generator=generator)
    weight = PackedTensor.from_codes(
        codes(weight_bits, outputs, inputs).to(torch.uint8), scale, zero_point.to(torch.uint8), weight_bits
    )
    quantizer = AffineQuantizer(bits, torch.tensor(0.037), codes(bits, 1))
    values = torch.randn(outputs, generator=generator) if bias else None
    return PackedLinear(weight, values, nn.Identity(), quantizer).requires_grad_(False)


def rows_of(layer: PackedLinear, count: int = 50, seed: int = 1) -> Tensor:
    """Reals beyond both ends of the input's grid, ties among them."""
    assert isinstance(layer.input_quantizer, AffineQuantizer)
    generator = torch.Generator().manual_seed(seed)
    low, high = layer.input_quantizer.range
    rows = low - 0.2 + (high - low + 0.4) * torch.rand(count, layer.in_features, generator=generator)
    rows[0] = (torch.arange(layer.in_features) - layer.in_features // 2 + 0.5) * layer.input_quantizer.scale
    return rows


def exact(layer: PackedLinear, rows: Tensor) -> Tensor:
    """The layer's result from int64 sums, scaled in float64."""
    quantizer = layer.input_quantizer
    assert isinstance(quantizer, AffineQuantizer)
    codes = (quantizer(rows) / quantizer.scale).round().long()  # minus zero point
    weight = layer.weight.unpack().long() - layer.weight.zero_point.long()[:, None]
    scaled = (codes @ weight.T).double() * layer.weight.scale.double() * quantizer.scale.double()
    return scaled if layer.bias is None else scaled + layer.bias.double()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("weight_bits", "bits"), [(2, 2), (4, 4), (3, 6), (4, 8), (8, 7), (7, 8)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_sums_are_those_of_integers(
    kernel: type[Kernel], weight_bits: int, bits: int, symmetric: bool
) -> None:
    layer = packed_linear(weight_bits, bits, symmetric=symmetric)
    rows = rows_of(layer)
    wanted = exact(layer, rows)
    found = IntegerLinear(layer, kernel)(rows)
    assert found.dtype == torch.float32
    # Float32 holds each of the scales' product, the scaled sum and the sum with the bias to half a unit.
    largest = float(wanted.abs().max())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=4 * largest * 2**-24)


def test_int_mm_has_exact_full_bytes() -> None:
    layer = packed_linear(8, 8)
    rows = rows_of(layer)
    wanted = exact(layer, rows)
    largest = float(wanted.abs().max())
    found = IntegerLinear(layer, IntMmKernel)(rows)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=4 * largest * 2**-24)


@needs_fbgemm
@pytest.mark.parametrize(("weight_bits", "bits"), [(7, 8), (8, 7), (4, 8)])
def test_the_widest_operands_do_not_saturate(weight_bits: int, bits: int) -> None:
    outputs, inputs = 8, 256
    for code in (0, 2**weight_bits - 1):
        codes = torch.full((outputs, inputs), code, dtype=torch.uint8)
        zero_point = torch.full((outputs,), 2 ** (weight_bits - 1))
        weight = PackedTensor.from_codes(codes, torch.ones(outputs), zero_point, weight_bits)
        quantizer = AffineQuantizer(bits, torch.ones(()), torch.zeros(()))
        layer = PackedLinear(weight, None, nn.Identity(), quantizer)
        assert choose_kernel(layer) is FbgemmKernel
        found = IntegerLinear(layer, FbgemmKernel)(torch.full((3, inputs), 2.0**bits))
        expected = (2**bits - 1) * (code - 2 ** (weight_bits - 1)) * inputs
        assert torch.equal(found, torch.full((3, outputs), float(expected)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_shapes_bias_and_channel_scales(kernel: type[Kernel]) -> None:
    layer = packed_linear(4, 8, bias=False)
    scale = ChannelScale(layer.in_features)
    nn.init.uniform_(scale.gain, 0.5, 2.0)
    nn.init.uniform_(scale.offset, -1.0, 1.0)
    layer.input_scale = scale.requires_grad_(False)
    rows = rows_of(layer, 24).reshape(2, 3, 4, layer.in_features)
    found = IntegerLinear(layer, kernel)(rows)
    assert found.shape == (2, 3, 4, layer.out_features)
    torch.testing.assert_close(found, layer(rows), rtol=1e-5, atol=1e-5)
    one = rows[0, 0, 0]
    torch.testing.assert_close(IntegerLinear(layer, kernel)(one), layer(one), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scaled", [False, True])
def test_constant_parts_of_the_input_are_multiplied_beforehand(kernel: type[Kernel], scaled: bool) -> None:
    layer = packed_linear(4, 8)
    if scaled:
        scale = ChannelScale(layer.in_features)
        nn.init.uniform_(scale.gain, 0.5, 2.0)
        layer.input_scale = scale.requires_grad_(False)
    layer.input_constant = torch.randn(24, layer.in_features, generator=torch.Generator().manual_seed(3))
    rows = rows_of(layer, 24).reshape(1, 24, layer.in_features).repeat(3, 1, 1)
    with torch.no_grad():
        integer = IntegerLinear(layer, kernel)
        torch.testing.assert_close(integer(rows), layer(rows), rtol=1e-5, atol=1e-4)
    assert integer.state_dict().keys() == layer.state_dict().keys()


def test_its_tensors_are_those_of_the_packed_layer() -> None:
    layer = packed_linear(4, 8)
    before = layer.state_dict()
    after = IntegerLinear(layer, IntMmKernel).state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_what_has_no_kernel_says_why() -> None:
    layer = packed_linear(4, 8)
    layer.input_quantizer = nn.Identity()
    assert choose_kernel(layer) == FLOAT_INPUT
    assert choose_kernel(packed_linear(4, 8).to("meta")) != FbgemmKernel


@needs_fbgemm
def test_full_bytes_are_taken_only_where_they_are_exact() -> None:
    layer = packed_linear(8, 8)
    assert choose_kernel(layer) == (FbgemmKernel if has_exact_bytes() else SATURATING)
    if has_exact_bytes():
        rows = rows_of(layer)
        wanted = exact(layer, rows)
        torch.testing.assert_close(
            IntegerLinear(layer, FbgemmKernel)(rows).double(), wanted, rtol=1e-5, atol=1e-4
        )


@needs_fbgemm
def test_the_engine_of_quantized_operators_is_left_as_it_was() -> None:
    kept = torch.backends.quantized.engine
    IntegerLinear(packed_linear(4, 8), FbgemmKernel)
    assert torch.backends.quantized.engine == kept
