"""Finding the Segment Anything model in what training scripts save.

Scripts wrap a state dict (``{"model": ..., "optimizer": ...}``), prefix its names (``module.`` for `DataParallel`,
Lightning's attribute names), and store other modules beside the model. A model is found by the name of its patch
embedding, which every variant has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from saqsam.models.other_families import name_of_tensors, refusal
from saqsam.utils.errors import CheckpointError, shorten, shorten_names

MAX_NESTING = 4
"""Dictionaries within dictionaries that are searched."""

_ANCHORS = {
    "image_encoder.patch_embed.proj.weight": True,
    "vision_encoder.patch_embed.projection.weight": False,
}
"""The patch embedding's name, and whether it is the official one."""
_OFFICIAL_ROOTS = ("image_encoder", "prompt_encoder", "mask_decoder")
_TRANSFORMERS_ROOTS = ("vision_encoder", "prompt_encoder", "mask_decoder", "shared_image_embedding")
# Wrappers of torch put these between the names of modules.
_WRAPPING = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module)\.")
_ADAPTER = re.compile(r"lora|adapter|\bw_[ab]_?\d", re.IGNORECASE)
# Buffers of the official `Sam`, which some scripts save.
_STATISTICS = ("pixel_mean", "pixel_std")


@dataclass(frozen=True)
class ModelStateDict:
    """A state dict found in a file.

    Attributes:
        where: Its place in the file, such as ``state_dict, prefix model.``.
        is_official: Whether names are the official code's, not transformers'.
        tensors: Its tensors by name without prefixes.
        beside: Names of tensors stored beside the model, which belong to other modules.
        statistics: The official model's buffers `pixel_mean` and `pixel_std`, for pixels in [0, 255], where the file
            holds them.
    """

    where: str
    is_official: bool
    tensors: dict[str, torch.Tensor]
    beside: list[str]
    statistics: dict[str, torch.Tensor]


def find_model(content: Mapping[str, object], path: Path) -> ModelStateDict:
    """Return the one Segment Anything model in the content of a file.

    Args:
        content: What `read_torch` or `read_safetensors` returned.
        path: The file, for error messages.

    Raises:
        CheckpointError: There is no model, there are several that differ, it is of another family such as SAM 2, or
            there are tensors of adapters that change what the model computes.
    """
    other = name_of_tensors(_tensor_names(content))
    if other is not None:
        raise CheckpointError(f"{path}: {refusal(other)}")
    found = list(_find_all(content, path))
    if not found:
        raise CheckpointError(
            f"{path}: expected the tensors of an official Segment Anything model or of transformers' SamModel, got "
            f"{shorten_names([str(key)[:80] for key in content]) or 'none'}"
        )
    if len(found) > 1:
        places = ", ".join(shorten(model.where) for model in found[:4])
        raise CheckpointError(
            f"{path}: holds {len(found)} Segment Anything models, under {places}: save the one to use alone"
        )
    model = found[0]
    adapters = [name for name in [*model.tensors, *model.beside] if _ADAPTER.search(name)]
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
        for name in state:
            for anchor, is_official in _ANCHORS.items():
                if name == anchor or name.endswith(f".{anchor}"):
                    yield _take(state, name.removesuffix(anchor), where, is_official)


def _dictionaries(
    content: Mapping[str, object], where: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield a dictionary and those within it, each once and with its place."""
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


def _take(state: Mapping[str, torch.Tensor], prefix: str, where: str, is_official: bool) -> ModelStateDict:
    """Return the tensors under a prefix that belong to the model, apart from others."""
    roots = _OFFICIAL_ROOTS if is_official else _TRANSFORMERS_ROOTS
    tensors: dict[str, torch.Tensor] = {}
    beside: list[str] = []
    statistics: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        own = name.removeprefix(prefix)
        if name.startswith(prefix) and own.partition(".")[0] in roots:
            tensors[own] = value
        elif own in _STATISTICS:
            statistics[own] = value
        else:
            beside.append(name)
    place = ", ".join(part for part in (where, f"prefix {prefix}" if prefix else "") if part)
    return ModelStateDict(place or "the file itself", is_official, tensors, beside, statistics)
