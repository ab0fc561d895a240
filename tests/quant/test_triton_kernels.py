"""Triton's kernels against torch's operators: on a GPU, or interpreted on a CPU where Triton is installed."""

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="Triton is not installed")

from saqsam.quant import affine, triton_kernels
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.integer import IntegerLinear, IntMmKernel
from saqsam.quant.layers import PackedLinear, PackedTensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Triton's interpreter cuts off what bfloat16 cannot hold, where a GPU rounds.
DTYPES = [torch.float32, torch.bfloat16] if DEVICE == "cuda" else [torch.float32]


def reals(*shape: int, step: float, seed: int = 0) -> Tensor:
    """Values within and beyond the grid, ties and their neighbors, infinities and zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator) * 100 * step
    flat = values.view(-1)
    ties = (torch.arange(40) - 20 + 0.5) * step
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf")])
    found = torch.cat([ties, ties.nextafter(torch.tensor(9.0)), ties.nextafter(torch.tensor(-9.0)), special])
    flat[: len(found)] = found[: len(flat)]
    return values.to(DEVICE)


@pytest.fixture
def as_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "is_fused", lambda values: False)


@pytest.mark.usefixtures("as_operators")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "zero_point"), [(8, 0), (8, 128), (4, 3), (6, 63), (2, 1)])
def test_rounding_is_that_of_torch_to_the_last_bit(bits: int, zero_point: int, dtype: torch.dtype) -> None:
    scale = torch.tensor(0.037, device=DEVICE)
    zero = torch.tensor(zero_point, dtype=torch.int32, device=DEVICE)
    values = reals(3, 700, step=0.037).to(dtype)
    for given in (values, values.t(), values[:, ::3]):
        wanted = affine.round_affine(given, scale, zero, bits)
        found = triton_kernels.round_affine(given, scale, zero, bits)
        assert found.dtype == dtype
        assert torch.equal(found, wanted)
    nan = torch.full((2, 3), float("nan"), device=DEVICE)
    assert triton_kernels.round_affine(nan, scale, zero, bits).isnan().all()
    assert triton_kernels.round_affine(values[:0], scale, zero, bits).shape == (0, 700)


@pytest.mark.usefixtures("as_operators")
@pytest.mark.parametrize(("weight_bits", "bits"), [(8, 8), (4, 8), (3, 6), (2, 2)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("count", "inputs", "outputs"), [(3, 37, 21), (40, 64, 24), (20, 2100, 1030)])
def test_a_layer_is_that_of_torch(
    weight_bits: int, bits: int, symmetric: bool, count: int, inputs: int, outputs: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**weight_bits, (outputs, inputs), generator=generator).to(torch.uint8)
    zero_point = torch.full((outputs,), 2 ** (weight_bits - 1))
    if not symmetric:
        zero_point = torch.randint(0, 2**weight_bits, (outputs,), generator=generator)
    scale = 0.001 + 0.01 * torch.rand(outputs, generator=generator)
    weight = PackedTensor.from_codes(codes, scale, zero_point.to(torch.uint8), weight_bits)
    bias = torch.randn(outputs, generator=generator) if symmetric else None
    quantizer = AffineQuantizer(bits, torch.tensor(0.037), torch.tensor(2**bits // 3))
    layer = PackedLinear(weight, bias, nn.Identity(), quantizer).requires_grad_(False)
    kernel = IntegerLinear(layer, IntMmKernel).to(DEVICE).kernel
    assert isinstance(kernel, IntMmKernel)
    rows = reals(count, inputs, step=0.037, seed=1)
    wanted, found = kernel(rows), kernel._forward_fused(rows)
    assert found.dtype == torch.float32
    # One rounding less, where product and sum are one operation.
    torch.testing.assert_close(found, wanted, rtol=0, atol=2 * 2**-24 * float(wanted.abs().max()))
    less = kernel._forward_fused(rows.bfloat16())
    assert less.dtype == torch.bfloat16
