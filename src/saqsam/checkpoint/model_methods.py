"""Methods of transformers' `SamModel` that packed models override.

They are attributes of the instance, because transformers' registries map `SamModel` itself and not its subclasses.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from transformers import SamModel

from saqsam.checkpoint.casts import guard_casts
from saqsam.checkpoint.model_card import write_model_card
from saqsam.quant.layers import PackedTensor

_METHODS = ("_apply", "num_parameters", "save_pretrained", "_upload_modified_files", "evaluation_scores")


def use_packed_methods(model: SamModel) -> None:
    """Let a packed model count its packed weights, guard its casts, and write a model card when it is saved.

    Also sets the attribute `evaluation_scores`, an empty sequence of `CardScore` for the model card.
    """
    guard_casts(model)
    model.num_parameters = functools.partial(_num_parameters, model)
    model.save_pretrained = functools.partial(_save_pretrained, model)
    model._upload_modified_files = functools.partial(_upload_modified_files, model)
    model.__dict__.setdefault("evaluation_scores", ())


def use_float_methods(model: SamModel) -> None:
    """Undo `use_packed_methods`."""
    for name in _METHODS:
        model.__dict__.pop(name, None)


def _num_parameters(model: SamModel, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """Count parameters as transformers does, plus one for each packed weight. Packed weights are not trainable."""
    count: int = type(model).num_parameters(model, only_trainable, exclude_embeddings)
    if only_trainable:
        return count
    return count + sum(module.shape.numel() for module in model.modules() if isinstance(module, PackedTensor))


def _save_pretrained(
    model: SamModel, save_directory: str | os.PathLike[str], is_main_process: bool = True, **options: Any
) -> None:
    """Save as transformers does, by the names of the modules, and write a model card beside the tensors."""
    options.setdefault("save_original_format", False)
    type(model).save_pretrained(model, save_directory, is_main_process, **options)
    if is_main_process:
        write_model_card(Path(save_directory), model)


def _upload_modified_files(
    model: SamModel, working_dir: str | os.PathLike[str], repo_id: str, *arguments: Any, **options: Any
) -> Any:
    """Upload as transformers does, with a model card instead of transformers' template.

    A model card that was edited on the hub is kept.
    """
    write_model_card(Path(working_dir), model, name=repo_id)
    return type(model)._upload_modified_files(model, working_dir, repo_id, *arguments, **options)
