"""Convert array-like values (arrays, tensors on any device, nested lists of either) to NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saqsam.utils.errors import shorten_message


def to_array(values: Any, name: str) -> NDArray[Any]:
    """Convert array-like values to a NumPy array, detached and on the CPU.

    Args:
        values: An array, a tensor on any device and of any dtype, a number, or nested lists of these.
        name: Name of the argument, for messages.

    Raises:
        ValueError: The values do not form an array.
    """
    try:
        return np.asarray(_without_tensors(values))
    # Tensors that are sparse or on the meta device raise RuntimeErrors.
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name}: expected an array of numbers ({shorten_message(error)})") from error


def _without_tensors(values: Any) -> Any:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, (list, tuple)):
        return [_without_tensors(value) for value in values]
    return values
