"""Tensors from the files that hold model weights, without ever running what is inside them."""

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of a folder of transformers: ``model.safetensors``, or the shards that its index lists.

    Args:
        folder: An existing folder.

    Returns:
        Each tensor by its name, memory-mapped: copy what is to outlive the file.

    Raises:
        ValueError: There are no such files (pickled weights do not count), or one is damaged.
    """
    single = folder / "model.safetensors"
    if single.is_file():
        return read_safetensors(single)
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise ValueError(f"{folder}: expected model.safetensors, found none (pickled weights are not read)")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        # Only the names: an index cannot point outside its folder
        shards = sorted({Path(name).name for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: expected a weight_map of file names") from error
    tensors: dict[str, torch.Tensor] = {}
    for shard in shards:
        tensors |= read_safetensors(folder / shard)
    return tensors


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of one safetensors file by name, memory-mapped; `ValueError` if it is damaged."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a complete safetensors file: {first_line(error)}") from error
    return tensors


def read_torch(path: Path) -> dict[str, object]:
    """The dictionary that `torch.save` wrote to a file, without running code from it.

    Args:
        path: An existing file, in `torch.save`'s present or legacy format.

    Returns:
        The dictionary, its tensors on the CPU, memory-mapped where the format allows: copy what is to outlive
        the file.

    Raises:
        ValueError: The file is damaged, is something else, holds anything but tensors, plain Python values
            and containers of them, or is not a dictionary.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        with warnings.catch_warnings():
            # In words for programmers, of TorchScript archives and pickle protocols, both refused below
            warnings.simplefilter("ignore", UserWarning)
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # bytes of another kind make an unpickler raise nearly anything
        raise ValueError(
            f"{path}: expected tensors written by torch.save, got a file that is damaged, of another kind, "
            "or would run code when loaded"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a state dict, got {type(content).__name__}")
    return content


def tensors_only(content: Mapping[str, object], path: Path) -> dict[str, torch.Tensor]:
    """`content` as a state dict; `ValueError` if something in it is not a tensor."""
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if len(tensors) != len(content):
        raise ValueError(
            f"{path}: expected a state dict of tensors, got {few(content.keys() - tensors.keys())}"
        )
    return tensors


def few(names: Iterable[str]) -> str:
    """The first three of `names` in sorted order, for an error message."""
    listed = sorted(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its class where it has none."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
