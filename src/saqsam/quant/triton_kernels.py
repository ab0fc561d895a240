"""Fused GPU kernels for rounding and for both ends of an integer product, each instead of five to nine of torch's.

Their results equal those of torch's operators; where values are rounded to codes, bit for bit. Triton is part of the
CUDA builds of torch. Without it, and inside `torch.compile`, which fuses by itself, torch's operators are used.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

_ELEMENTS, _LONGEST_ROW = 1024, 2048
"""Most elements, and the longest part of a row, that one program of a kernel processes at once."""
HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON:
    import triton
    import triton.language as tl

    _TO_INTEGER = tl.constexpr(1.5 * 2**23)
    """Adding it to a float32 below 2**22 and subtracting it again rounds to the nearest integer, ties to even."""

    @triton.jit  # type: ignore[untyped-decorator]
    def _centered_codes(values, scale, zero_point, LEVELS: tl.constexpr):  # type: ignore[no-untyped-def]
        """Return codes minus the zero point, float32; clamping first is exact, and NaN stays NaN."""
        codes = tl.div_rn(values.to(tl.float32), scale)
        codes = tl.where(codes < -zero_point, -zero_point, codes)
        codes = tl.where(codes > LEVELS - zero_point, LEVELS - zero_point, codes)
        return (codes + _TO_INTEGER) - _TO_INTEGER

    @triton.jit  # type: ignore[untyped-decorator]
    def _round(values, out, scale, zero_point, count, LEVELS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        step, zero = tl.load(scale), tl.load(zero_point).to(tl.float32)
        codes = _centered_codes(tl.load(values + at, mask=at < count), step, zero, LEVELS)
        tl.store(out + at, (codes * step).to(out.dtype.element_ty), mask=at < count)

    # Triton would specialize the kernel for a zero point of 1.
    @triton.jit(do_not_specialize=["zero_point"])  # type: ignore[untyped-decorator]
    def _to_codes(  # type: ignore[no-untyped-def]
        values,
        codes,
        sums,
        scale,
        zero_point,
        inputs,
        PADDED: tl.constexpr,
        LEVELS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        step, zero = tl.load(scale), zero_point.to(tl.float32)
        total = tl.zeros([BLOCK], tl.int32)
        for start in range(0, PADDED, BLOCK):
            at = start + tl.arange(0, BLOCK)
            centered = _centered_codes(
                tl.load(values + row * inputs + at, mask=at < inputs), step, zero, LEVELS
            )
            stored = centered.to(tl.int32) + zero_point - (LEVELS + 1) // 2
            stored = tl.where(at < inputs, stored, 0)
            tl.store(codes + row * PADDED + at, stored.to(tl.int8), mask=at < PADDED)
            total += stored
        tl.store(sums + row, tl.sum(total))

    @triton.jit  # type: ignore[untyped-decorator]
    def _from_sums(  # type: ignore[no-untyped-def]
        sums, out, row_sums, zero_point, from_shift, step, bias, channels, padded,
        HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = at < channels
        total = tl.load(sums + row * padded + at, mask=inside)
        total -= tl.load(row_sums + row) * tl.load(zero_point + at, mask=inside)
        total -= tl.load(from_shift + at, mask=inside)
        scaled = total.to(tl.float32) * tl.load(step + at, mask=inside)
        if HAS_BIAS:
            scaled += tl.load(bias + at, mask=inside)
        tl.store(out + row * channels + at, scaled.to(out.dtype.element_ty), mask=inside)


def is_fused(values: Tensor) -> bool:
    """Return whether these kernels can process `values`: on CUDA, outside of `torch.compile`."""
    return not torch.compiler.is_compiling() and HAS_TRITON and values.is_cuda


def round_affine(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Quantize and dequantize like `affine.round_affine`, for a scale and a zero point of shape []."""
    values = values.contiguous()
    out = torch.empty_like(values)
    if values.numel():
        grid = (triton.cdiv(values.numel(), _ELEMENTS),)
        _round[grid](values, out, scale, zero_point, values.numel(), LEVELS=2**bits - 1, BLOCK=_ELEMENTS)
    return out


def row_codes(
    rows: Tensor, scale: Tensor, zero_point: int, bits: int, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Quantize rows to codes minus the middle code.

    Args:
        rows: [R, K], float.
        scale: float32, shape [].
        zero_point: Zero point, a code.
        bits: Bits of the codes.
        shape: Shape [R', K'] of the result, at least that of `rows`; the padding is 0.

    Returns:
        Codes, int8 [R', K'], and the sum of each row, int32 [R].
    """
    rows = rows.contiguous()
    count, inputs = rows.shape
    create = torch.empty if shape[0] == count else torch.zeros
    codes = create(shape, dtype=torch.int8, device=rows.device)
    sums = torch.empty(count, dtype=torch.int32, device=rows.device)
    if count:
        block = min(_LONGEST_ROW, triton.next_power_of_2(shape[1]))
        _to_codes[(count,)](
            rows, codes, sums, scale, zero_point, inputs, PADDED=shape[1], LEVELS=2**bits - 1, BLOCK=block
        )
    return codes, sums


def scale_sums(
    sums: Tensor,
    row_sums: Tensor,
    zero_point: Tensor,
    from_shift: Tensor,
    step: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Dequantize an integer product: ``(sums - row_sums * zero_point - from_shift) * step + bias``.

    Args:
        sums: Sums of products of codes, int32 [R', C'].
        row_sums: Sum of the codes of each row, int32 [R].
        zero_point: Zero points of the weight, int32 [C].
        from_shift: Contribution of the zero point of the rows, int32 [C].
        step: Product of the scales of rows and weight, float32 [C].
        bias: float32 [C] or None.
        dtype: Dtype of the result.

    Returns:
        [R, C].
    """
    count, channels = len(row_sums), len(step)
    out = torch.empty(count, channels, dtype=dtype, device=sums.device)
    if count:
        block = min(_ELEMENTS, triton.next_power_of_2(channels))
        _from_sums[(count, triton.cdiv(channels, block))](
            sums, out, row_sums, zero_point, from_shift, step, step if bias is None else bias,
            channels, sums.shape[1], HAS_BIAS=bias is not None, BLOCK=block,
        )  # fmt: skip
    return out
