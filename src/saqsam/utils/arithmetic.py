"""Reproducible float32 arithmetic on accelerators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_arithmetic() -> Iterator[None]:
    """Disable TF32 and nondeterministic cuDNN kernels while the block runs.

    By default torch lets cuDNN round the operands of float32 convolutions to the 10 mantissa bits of TF32, and choose
    kernels whose gradients differ from run to run. The context manager has no effect on a CPU.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before
