"""The bytes of a tensor, for digests."""

from __future__ import annotations

import torch
from torch import Tensor


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor of any dtype and device, in row-major order."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
