"""Linear layers that torch computes on integers: 8-bit codes in, 32-bit sums, scales and bias afterwards.

`IntegerLinear` is a `PackedLinear` with a kernel. Both compute the same sums; the packed layer rounds its input to
float values and multiplies these, the integer layer multiplies the codes. Kernels of torch 2.13, and what came of them:

- `FbgemmKernel` (x86): reads floats and gives floats, in between 8-bit products. The fastest of those on a CPU.
- `IntMmKernel`: `torch._int_mm`, which accelerators have. On a CPU without 8-bit dot products it is a plain loop,
  twenty times slower than float, and not chosen there.
- `torch.ops.onednn.qlinear_pointwise` is not used: without 8-bit dot products it refuses most shapes and saturates in
  others.

Without 8-bit dot products (VNNI, AMX) x86 adds pairs of unsigned times signed bytes in 16 bits, where they saturate:
255 times two weights of 127 is beyond 32,767. Operands whose bits sum up to 15 cannot get there; others stay as they
are, de-quantized.
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
from saqsam.quant.layers import PackedLinear, PackedTensor

FLOAT_INPUT = "float inputs"
SATURATING = "8-bit operands, for which this processor has no exact product"
NO_KERNEL = "no kernel on this device"

_EXACT_BITS = 15
"""Up to here (2**a - 1) * 2**w, the largest sum of two products of a-bit with signed w-bit codes, fits into 16 bits."""
_FBGEMM_PRODUCT = "linear_with_input_q_dq_qweight_dq_output_fp32"
_LEAST_ROWS, _MULTIPLE = 17, 8
"""What `torch._int_mm` takes on CUDA: more than 16 rows, channels in eights."""


class Kernel(nn.Module):
    """Rounds float rows to a quantizer's codes and multiplies these with a weight's.

    Args:
        weight: [C, K]; its zero points may be any.
        bias: float32 [C] or None.
        quantizer: Of the rows.
    """

    rows_scale: Tensor

    def __init__(self, weight: PackedTensor, bias: Tensor | None, quantizer: AffineQuantizer) -> None:
        super().__init__()
        # As Python's numbers: to read a value from a GPU at each call would be to wait for it each time.
        self.zero_point, self.bits = int(quantizer.zero_point), quantizer.bits
        self.register_buffer("rows_scale", quantizer.scale, persistent=False)

    def codes(self, rows: Tensor) -> Tensor:
        """Codes of rows (any shape, float) minus the zero point, float32."""
        found = torch.div(rows.float(), self.rows_scale).round_()
        return found.clamp_(-self.zero_point, 2**self.bits - 1 - self.zero_point)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [R, K], float, to [R, C], float32 or of the rows' dtype."""
        raise NotImplementedError


class FbgemmKernel(Kernel):
    """FBGEMM's 8-bit product with float rows and float results, on x86."""

    def __init__(self, weight: PackedTensor, bias: Tensor | None, quantizer: AffineQuantizer) -> None:
        super().__init__(weight, bias, quantizer)
        codes, zero_point = signed_weight(weight)
        # With the rows' scale in the weights', rows are multiples of 1: rounding them once more changes nothing.
        step = (weight.scale * quantizer.scale).double()
        with _fbgemm():
            # From codes, where the public constructor would round float weights again.
            stored = torch._make_per_channel_quantized_tensor(codes, step, zero_point.long(), 0)
            self._packed = torch.ops.quantized.linear_prepack(stored, _float32(bias))

    def forward(self, rows: Tensor) -> Tensor:
        """See `Kernel.forward`."""
        product = getattr(torch.ops.quantized, _FBGEMM_PRODUCT)
        found: Tensor = product(self.codes(rows), 1.0, self.zero_point, self._packed)
        return found


class IntMmKernel(Kernel):
    """`torch._int_mm`: int8 times int8 to int32, zero points taken out of the sums afterwards."""

    columns: Tensor
    weight_zero_point: Tensor
    from_shift: Tensor
    step: Tensor
    bias: Tensor | None

    def __init__(self, weight: PackedTensor, bias: Tensor | None, quantizer: AffineQuantizer) -> None:
        super().__init__(weight, bias, quantizer)
        codes, zero_point = signed_weight(weight)
        channels, inputs = codes.shape
        # Rows are stored as codes minus the middle one; `shift` is what is then left of their zero point.
        self._shift = self.zero_point - 2 ** (self.bits - 1)
        padded = F.pad(codes, (0, -inputs % _MULTIPLE, 0, -channels % _MULTIPLE))
        # [K', C'], in memory column by column: the order that cuBLAS multiplies bytes in.
        self.register_buffer("columns", padded.contiguous().t(), persistent=False)
        sums = (codes.long() - zero_point.long()[:, None]).sum(1)
        self.register_buffer("from_shift", (sums * self._shift).to(torch.int32), persistent=False)
        self.register_buffer("weight_zero_point", zero_point, persistent=False)
        self.register_buffer("step", weight.scale * quantizer.scale, persistent=False)
        self.register_buffer("bias", _float32(bias), persistent=False)
        self._has_zero_points = bool(zero_point.any())

    def forward(self, rows: Tensor) -> Tensor:
        """See `Kernel.forward`."""
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
        found = (sums - self.from_shift).float() * self.step
        return found if self.bias is None else found + self.bias

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
    """A packed linear layer whose product is one of integers; its tensors in a checkpoint are the same.

    The kernel holds a copy of the weights in 8 bits, made when the layer is. FBGEMM's does not move to another device.

    Attributes:
        kernel: Computes the product.
    """

    def __init__(self, layer: PackedLinear, kernel: type[Kernel]) -> None:
        assert isinstance(layer.input_quantizer, AffineQuantizer)
        super().__init__(layer.weight, layer.bias, layer.input_scale, layer.input_quantizer)
        self.kernel = kernel(layer.weight, layer.bias, layer.input_quantizer)

    def forward(self, input: Tensor) -> Tensor:
        """Map input [..., K] to [..., C]."""
        found: Tensor = self.kernel(self.input_scale(input).reshape(-1, self.in_features))
        return found.reshape(*input.shape[:-1], self.out_features).to(input.dtype)


def choose_kernel(layer: PackedLinear) -> type[Kernel] | str:
    """The kernel that gives a layer's exact sums on its device, or why there is none."""
    quantizer = layer.input_quantizer
    if not isinstance(quantizer, AffineQuantizer):
        return FLOAT_INPUT
    device = layer.weight.codes.device.type
    if device == "cuda":
        return IntMmKernel
    if device != "cpu" or not has_fbgemm():
        return NO_KERNEL
    if quantizer.bits + layer.weight.bits > _EXACT_BITS and not has_exact_bytes():
        return SATURATING
    return FbgemmKernel


def signed_weight(weight: PackedTensor) -> tuple[Tensor, Tensor]:
    """A weight's codes minus the middle one, int8 [C, K], and its zero points so moved, int32 [C]."""
    middle = 2 ** (weight.bits - 1)
    codes = (weight.unpack().to(torch.int16) - middle).to(torch.int8)
    return codes, weight.zero_point.to(torch.int32) - middle


def has_fbgemm() -> bool:
    """Whether this build of torch has FBGEMM and the processor can run it."""
    is_there = hasattr(torch.ops.quantized, _FBGEMM_PRODUCT)
    return is_there and "fbgemm" in torch.backends.quantized.supported_engines


@functools.cache
def has_exact_bytes() -> bool:
    """Whether FBGEMM's products of full bytes are exact on this processor: tried out, not looked up."""
    inputs = 64
    weight = PackedTensor.from_codes(
        torch.full((32, inputs), 255, dtype=torch.uint8), torch.ones(32), torch.full((32,), 128), 8
    )
    quantizer = AffineQuantizer(8, torch.ones(()), torch.zeros(()))
    found: Tensor = FbgemmKernel(weight, None, quantizer)(torch.full((4, inputs), 255.0))
    return bool((found == 255 * 127 * inputs).all())


@contextmanager
def _fbgemm() -> Iterator[None]:
    """FBGEMM as torch's engine of quantized operators, which decides how weights are packed."""
    kept = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            # Tensors of quantized dtypes are to leave torch one day; packing weights for FBGEMM takes one.
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.backends.quantized.engine = kept
