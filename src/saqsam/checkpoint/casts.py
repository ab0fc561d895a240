"""Casts of a quantized model, which leave it in float32."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class _KeepDtypes:
    """Stand-in for the `_apply` of a model, through which torch sends every cast and every move to a device."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def keep_dtype(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        model: nn.Module = type(self._model)._apply(self._model, keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return model


def ignore_casts(model: nn.Module) -> None:
    """Let `model.to(torch.float16)`, `model.bfloat16()` and the like move a model without changing its dtypes.

    A scale that is rounded to half precision moves the whole grid of its codes, and activations on the border of two
    codes change theirs, so a cast model would not return the masks that the checkpoint was measured with.
    """
    # On the instance: a subclass of SamModel would not be found by what transformers registers for SamModel itself.
    model._apply = _KeepDtypes(model)  # type: ignore[method-assign]
