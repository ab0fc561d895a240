"""Methods of transformers' `SamModel` that a packed model answers in its own way.

They are attributes of the instance: a subclass of `SamModel` would not be found by what transformers registers for
`SamModel` itself.
"""

from __future__ import annotations

import functools

from transformers import SamModel

from saqsam.checkpoint.casts import guard_casts
from saqsam.quant.layers import PackedTensor

_METHODS = ("_apply", "num_parameters")


def use_packed_methods(model: SamModel) -> None:
    """Let a packed model count its packed weights and guard its casts."""
    guard_casts(model)
    model.num_parameters = functools.partial(_num_parameters, model)


def use_float_methods(model: SamModel) -> None:
    """Undo `use_packed_methods`."""
    for name in _METHODS:
        model.__dict__.pop(name, None)


def _num_parameters(model: SamModel, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """Count parameters as transformers does, and each packed weight as one. Packed weights are not trainable."""
    count: int = type(model).num_parameters(model, only_trainable, exclude_embeddings)
    if only_trainable:
        return count
    return count + sum(module.shape.numel() for module in model.modules() if isinstance(module, PackedTensor))
