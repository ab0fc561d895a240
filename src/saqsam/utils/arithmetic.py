"""The same arithmetic on accelerators as on a CPU: products in float32, and sums that do not depend on chance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_arithmetic() -> Iterator[None]:
    """Neither TF32 nor kernels of cuDNN that add in a random order, while the block runs.

    By default torch lets cuDNN round the operands of float32 convolutions to TF32's 10 bits, and take kernels for their
    gradients whose results differ from run to run. On a CPU nothing changes.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before
