"""Find the state dict of a Segment Anything model in the files that training scripts save.

Scripts wrap a state dict (``{"model": ..., "optimizer": ...}``), prefix its names (``module.`` for `DataParallel`,
Lightning's attribute names), and store other modules beside the model. A model is located by the name of a tensor
that every model of its family has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from saqsam.models.family import ModelFamily
from saqsam.models.other_families import name_of_tensors, refusal
from saqsam.models.registry import FAMILIES
from saqsam.utils.errors import CheckpointError, shorten, shorten_names

MAX_NESTING = 4
"""Largest depth of nested dictionaries that is searched."""

# Wrappers of torch insert these between module names.
_WRAPPING = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module)\.")
_ADAPTER = re.compile(r"lora|adapter|\bw_[ab]_?\d", re.IGNORECASE)
# Buffers of the official `Sam`, which some scripts save.
_STATISTICS = ("pixel_mean", "pixel_std")


@dataclass(frozen=True)
class ModelStateDict:
    """The state dict of a model within a file.

    Attributes:
        family: Family of the model, by the names of its tensors.
        location: Place in the file, such as ``state_dict, prefix model.``.
        is_official: Whether the names are the official code's, not transformers'.
        tensors: Tensors by name, without prefixes.
        extra_names: Names of further tensors in the file, which belong to other modules.
        statistics: Buffers `pixel_mean` and `pixel_std` of the official model, for pixels in [0, 255]; empty if the
            file lacks them.
    """

    family: ModelFamily
    location: str
    is_official: bool
    tensors: dict[str, torch.Tensor]
    extra_names: list[str]
    statistics: dict[str, torch.Tensor]


def find_model(content: Mapping[str, object], path: Path) -> ModelStateDict:
    """Return the one Segment Anything model in the content of a file.

    Args:
        content: Content of the file, as `read_torch` or `read_safetensors` returns it.
        path: The file, for error messages.

    Raises:
        CheckpointError: The file has no model or several, the model is of another family such as SAM 2, or it has
            adapters, which would change its outputs.
    """
    other = name_of_tensors(_tensor_names(content))
    if other is not None:
        raise CheckpointError(f"{path}: {refusal(other)}")
    models = list(_find_all(content, path))
    if not models:
        raise CheckpointError(
            f"{path}: expected the tensors of a Segment Anything model, official or of transformers, got "
            f"{shorten_names([str(key)[:80] for key in content]) or 'none'}"
        )
    if len(models) > 1:
        places = ", ".join(shorten(model.location) for model in models[:4])
        raise CheckpointError(
            f"{path}: holds {len(models)} Segment Anything models, under {places}: save the one to use alone"
        )
    model = models[0]
    adapters = [name for name in [*model.tensors, *model.extra_names] if _ADAPTER.search(name)]
    if adapters:
        raise CheckpointError(
            f"{path}: has {len(adapters)} tensors that a SAM does not have: {shorten_names(adapters)}: merge adapters "
            "into the weights before saving"
        )
    return model


def _tensor_names(content: Mapping[str, object]) -> Iterator[str]:
    for _, dictionary in _dictionaries(content, "", MAX_NESTING, set()):
        for name, value in dictionary.items():
            if isinstance(name, str) and isinstance(value, torch.Tensor):
                yield _WRAPPING.sub("", name)


def _find_all(content: Mapping[str, object], path: Path) -> Iterator[ModelStateDict]:
    for where, dictionary in _dictionaries(content, "", MAX_NESTING, set()):
        state = _unwrap_names(dictionary, path)
        found: dict[tuple[str, bool], ModelFamily] = {}
        for family in FAMILIES:
            for anchor in (family.format.official_anchor, family.format.anchor):
                for name in state:
                    if name == anchor or name.endswith(f".{anchor}"):
                        # A later family may have the anchor of an earlier one, besides its own.
                        found[name.removesuffix(anchor), anchor == family.format.official_anchor] = family
        for (prefix, is_official), family in found.items():
            yield _take(state, prefix, where, family, is_official)


def _dictionaries(
    content: Mapping[str, object], where: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield a dictionary and its nested dictionaries with their locations, each once."""
    seen.add(id(content))
    yield where, content
    if depth == 0:
        return
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Mapping) and id(value) not in seen:
            yield from _dictionaries(value, f"{where}.{name}" if where else name, depth - 1, seen)


def _unwrap_names(dictionary: Mapping[str, object], path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a dictionary under their names without `_WRAPPING`."""
    state: dict[str, torch.Tensor] = {}
    for name, value in dictionary.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            plain = _WRAPPING.sub("", name)
            if plain in state:
                raise CheckpointError(f"{path}: holds {shorten(plain)} twice, with and without 'module.'")
            state[plain] = value
    return state


def _take(
    state: Mapping[str, torch.Tensor], prefix: str, where: str, family: ModelFamily, is_official: bool
) -> ModelStateDict:
    """Return the model under a prefix, with the names of all other tensors."""
    roots = family.format.official_roots if is_official else family.format.roots
    tensors: dict[str, torch.Tensor] = {}
    extra_names: list[str] = []
    statistics: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        own = name.removeprefix(prefix)
        if name.startswith(prefix) and own.partition(".")[0] in roots:
            tensors[own] = value
        elif own in _STATISTICS:
            statistics[own] = value
        elif own.partition(".")[0] not in family.format.ignored_roots:
            extra_names.append(name)
    place = ", ".join(part for part in (where, f"prefix {prefix}" if prefix else "") if part)
    return ModelStateDict(family, place or "the file itself", is_official, tensors, extra_names, statistics)
