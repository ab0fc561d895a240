"""Linear layers with integer kernels of torch: 8-bit codes in, 32-bit sums, then scales and bias.

`IntegerLinear` is a `PackedLinear` with a kernel. Both compute the same sums: the packed layer multiplies dequantized
values, the integer layer multiplies codes. Kernels of torch 2.13:

- `FbgemmKernel` (x86) takes and returns floats, with 8-bit products in between. It is the fastest on a CPU.
- `IntMmKernel` calls `torch._int_mm`, which accelerators support. On a CPU without 8-bit dot products it is a plain
  loop, twenty times slower than float, and not chosen there.
- `torch.ops.onednn.qlinear_pointwise` is not used: without 8-bit dot products it refuses most shapes and saturates in
  others.

Without 8-bit dot products (VNNI, AMX), x86 adds pairs of unsigned times signed bytes in 16 bits, which saturate: 255
times two weights of 127 exceeds 32,767. Operands whose bits add up to at most 15 cannot saturate; the remaining layers
stay packed and multiply dequantized values.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saqsam.quant import triton_kernels
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import PackedLinear, PackedTensor, without
from saqsam.quant.tables import TableQuantizer

FLOAT_INPUT = "float inputs"
TABLE_INPUT = "inputs without uniform codes"
SATURATING = "8-bit operands, for which this processor has no exact product"
NO_KERNEL = "no kernel on this device"

_EXACT_BITS = 15
"""Largest a + w for which (2**a - 1) * 2**w, the largest sum of two products of an a-bit code with a signed w-bit code,
fits into 16 bits."""
_FBGEMM_PRODUCT = "linear_with_input_q_dq_qweight_dq_output_fp32"
_LEAST_ROWS, _MULTIPLE = 17, 8
"""Requirements of `torch._int_mm` on CUDA: more than 16 rows, and numbers of channels divisible by 8."""


class Kernel(nn.Module):
    """Integer matrix product of quantized rows with a packed weight.

    Args:
        weight: Packed weight [C, K], with any zero points.
        bias: float32 [C] or None.
        quantizer: Quantizer of the rows.
    """

    rows_scale: Tensor

    def __init__(self, weight: PackedTensor, bias: Tensor | None, quantizer: AffineQuantizer) -> None:
        super().__init__()
        # Python numbers: reading a tensor from a GPU in each call would synchronize with it.
        self.zero_point, self.bits = int(quantizer.zero_point), quantizer.bits
        self.register_buffer("rows_scale", quantizer.scale, persistent=False)

    def codes(self, rows: Tensor) -> Tensor:
        """Return the codes minus the zero point, float32 in the shape of `rows` (float)."""
        codes = torch.div(rows.float(), self.rows_scale).round_()
        return codes.clamp_(-self.zero_point, 2**self.bits - 1 - self.zero_point)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows [R, K], float, to [R, C], float32 or the dtype of the rows."""
        raise NotImplementedError


class FbgemmKernel(Kernel):
    """Integer product by FBGEMM on x86, with float rows and float results."""

    def __init__(self, weight: PackedTensor, bias: Tensor | None, quantizer: AffineQuantizer) -> None:
        super().__init__(weight, bias, quantizer)
        codes, zero_point = signed_weight(weight)
        # The scale of the rows is folded into that of the weight: rows are integers, and rounding them again is exact.
        step = (weight.scale * quantizer.scale).double()
        with _fbgemm():
            # From codes; the public constructor would quantize float weights again.
            stored = torch._make_per_channel_quantized_tensor(codes, step, zero_point.long(), 0)
            self._packed = torch.ops.quantized.linear_prepack(stored, _float32(bias))

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows [R, K], float, to [R, C], float32."""
        multiply = getattr(torch.ops.quantized, _FBGEMM_PRODUCT)
        output: Tensor = multiply(self.codes(rows), 1.0, self.zero_point, self._packed)
        return output


class IntMmKernel(Kernel):
    """Integer product by `torch._int_mm`: int8 times int8 to int32, zero points subtracted from the sums."""

    columns: Tensor
    weight_zero_point: Tensor
    from_shift: Tensor
    step: Tensor
    bias: Tensor | None

    def __init__(self, weight: PackedTensor, bias: Tensor | None, quantizer: AffineQuantizer) -> None:
        super().__init__(weight, bias, quantizer)
        codes, zero_point = signed_weight(weight)
        channels, inputs = codes.shape
        # Rows are stored as codes minus the middle code; `_shift` is the zero point relative to it.
        self._shift = self.zero_point - 2 ** (self.bits - 1)
        padded = F.pad(codes, (0, -inputs % _MULTIPLE, 0, -channels % _MULTIPLE))
        # [K', C'], column-major: the layout in which cuBLAS multiplies bytes.
        self.register_buffer("columns", padded.contiguous().t(), persistent=False)
        sums = (codes.long() - zero_point.long()[:, None]).sum(1)
        self.register_buffer("from_shift", (sums * self._shift).to(torch.int32), persistent=False)
        self.register_buffer("weight_zero_point", zero_point, persistent=False)
        self.register_buffer("step", weight.scale * quantizer.scale, persistent=False)
        self.register_buffer("bias", _float32(bias), persistent=False)
        self._has_zero_points = bool(zero_point.any())

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows [R, K], float, to [R, C], float32 or the dtype of the rows."""
        if triton_kernels.is_fused(rows):
            return self._forward_fused(rows)
        count, inputs = rows.shape
        codes = self.codes(rows).add_(self._shift).to(torch.int8)
        padding = (self.columns.shape[0] - inputs, max(0, _LEAST_ROWS - count))
        if any(padding):
            codes = F.pad(codes, (0, padding[0], 0, padding[1]))
        sums = torch._int_mm(codes, self.columns)[:count, : len(self.step)]  # [R, C]
        if self._has_zero_points:
            sums = sums - codes[:count].sum(1, keepdim=True, dtype=torch.int32) * self.weight_zero_point
        output = (sums - self.from_shift).float() * self.step
        return output if self.bias is None else output + self.bias

    def _forward_fused(self, rows: Tensor) -> Tensor:
        shape = max(_LEAST_ROWS, len(rows)), self.columns.shape[0]
        codes, row_sums = triton_kernels.row_codes(rows, self.rows_scale, self.zero_point, self.bits, shape)
        sums = torch._int_mm(codes, self.columns)
        reals = (self.weight_zero_point, self.from_shift, self.step, self.bias)
        return triton_kernels.scale_sums(sums, row_sums, *reals, dtype=rows.dtype)


def _float32(bias: Tensor | None) -> Tensor | None:
    """Return a bias without gradients in float32, in which it is added to the scaled sums."""
    return None if bias is None else bias.detach().float()


class IntegerLinear(PackedLinear):
    """A packed linear layer that multiplies integers; its state dict is that of `PackedLinear`.

    The kernel holds an 8-bit copy of the weight from the time of construction. FBGEMM's kernel cannot be moved to
    another device.

    Attributes:
        kernel: Kernel of the product.
        from_constant: Product of the input's constant part with the weight, float32 [T, C]; None if there is none.
    """

    from_constant: Tensor | None

    def __init__(self, layer: PackedLinear, kernel: type[Kernel]) -> None:
        assert isinstance(layer.input_quantizer, AffineQuantizer)
        super().__init__(
            layer.weight, layer.bias, layer.input_scale, layer.input_quantizer, layer.input_constant
        )
        self.kernel = kernel(layer.weight, layer.bias, layer.input_quantizer)
        constant = layer.scaled_constant()
        product = None if constant is None else F.linear(constant, layer.weight()).detach()
        self.register_buffer("from_constant", product, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map input [..., K] to [..., C]."""
        rows = without(self.input_scale(input), self.scaled_constant())
        output: Tensor = self.kernel(rows.reshape(-1, self.in_features))
        output = output.reshape(*input.shape[:-1], self.out_features)
        return (output if self.from_constant is None else output + self.from_constant).to(input.dtype)


def choose_kernel(layer: PackedLinear) -> type[Kernel] | str:
    """Return the kernel that computes a layer's exact sums on its device, or the reason why there is none."""
    quantizer = layer.input_quantizer
    if not isinstance(quantizer, AffineQuantizer):
        return TABLE_INPUT if isinstance(quantizer, TableQuantizer) else FLOAT_INPUT
    device = layer.weight.codes.device.type
    if device == "cuda":
        return IntMmKernel
    if device != "cpu" or not has_fbgemm():
        return NO_KERNEL
    if quantizer.bits + layer.weight.bits > _EXACT_BITS and not has_exact_bytes():
        return SATURATING
    return FbgemmKernel


def signed_weight(weight: PackedTensor) -> tuple[Tensor, Tensor]:
    """Return a weight's codes, int8 [C, K], and zero points, int32 [C], both minus the middle code."""
    middle = 2 ** (weight.bits - 1)
    codes = (weight.unpack().to(torch.int16) - middle).to(torch.int8)
    return codes, weight.zero_point.to(torch.int32) - middle


def has_fbgemm() -> bool:
    """Return whether this build of torch has FBGEMM and the processor can run it."""
    is_built = hasattr(torch.ops.quantized, _FBGEMM_PRODUCT)
    return is_built and "fbgemm" in torch.backends.quantized.supported_engines


@functools.cache
def has_exact_bytes() -> bool:
    """Return whether FBGEMM's products of full bytes are exact on this processor, by a trial product."""
    inputs = 64
    weight = PackedTensor.from_codes(
        torch.full((32, inputs), 255, dtype=torch.uint8), torch.ones(32), torch.full((32,), 128), 8
    )
    quantizer = AffineQuantizer(8, torch.ones(()), torch.zeros(()))
    sums: Tensor = FbgemmKernel(weight, None, quantizer)(torch.full((4, inputs), 255.0))
    return bool((sums == 255 * 127 * inputs).all())


@contextmanager
def _fbgemm() -> Iterator[None]:
    """Make FBGEMM torch's engine of quantized operators while the block runs; it decides how weights are packed."""
    previous = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            # Quantized dtypes are deprecated in torch, but packing weights for FBGEMM needs one.
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.backends.quantized.engine = previous
