"""Read tensors from files of model weights without running any code that they contain."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from saqsam.utils.errors import CheckpointError, shorten, shorten_message, shorten_names
from saqsam.utils.strict_json import read_json_object

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
MAX_TENSOR_FILE_BYTES = 2**36
"""Largest file that is read where no configuration bounds the size of the model."""
MAX_HEADER_BYTES = 2**23
"""Largest header of a safetensors file; SAM-H's has 70 kB."""
MAX_SHARDS = 1000

_ZIP = b"PK\x03\x04"


def read_folder(folder: Path, *, max_bytes: int = MAX_TENSOR_FILE_BYTES) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder written by `save_pretrained`, whole or in shards.

    The first of these is read, as in transformers: ``model.safetensors``, ``model.safetensors.index.json``,
    ``pytorch_model.bin``, ``pytorch_model.bin.index.json``.

    Args:
        folder: An existing folder.
        max_bytes: Larger files, all shards together, are refused before they are read.

    Returns:
        Each tensor by its name, memory-mapped: copy what is to outlive the file.

    Raises:
        CheckpointError: There are no such files, one is damaged or too large, or the shards do not hold exactly what
            their index lists.
    """
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).is_file():
            return _read(folder / name, max_bytes)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index, max_bytes)
    raise CheckpointError(f"{folder}: expected {SAFETENSORS} or {PICKLED}, found none")


def safetensors_files(folder: Path) -> dict[Path, set[str] | None]:
    """Return the safetensors files of a folder written by `save_pretrained`, with the tensors that its index lists.

    Returns:
        Names of tensors by file: each shard's, or None for a single file, which needs no index.

    Raises:
        CheckpointError: The index is damaged. Missing files are reported when they are read.
    """
    index = folder / f"{SAFETENSORS}.index.json"
    if index.is_file() and not (folder / SAFETENSORS).is_file():
        return dict(_shards(index))
    return {folder / SAFETENSORS: None}


def read_safetensors(path: Path, *, max_bytes: int = MAX_TENSOR_FILE_BYTES) -> dict[str, torch.Tensor]:
    """Return the tensors of one safetensors file by name, memory-mapped.

    Each tensor has a mapping of its own: whoever copies tensors and drops them one by one never holds the whole file
    and all copies in memory.

    Raises:
        CheckpointError: The file is damaged, larger than `max_bytes`, or its header larger than `MAX_HEADER_BYTES`.
    """
    try:
        _check_size(path, max_bytes)
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MAX_HEADER_BYTES:
            raise ValueError(f"expected a header of at most {MAX_HEADER_BYTES:,} bytes, got {header:,}")
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        tensors = {name: _map_tensor(path, name) for name in names}
    except CheckpointError:
        raise
    except Exception as error:  # safetensors raises types of its own, and torch others for unusual dtypes
        raise CheckpointError(
            f"{path}: not a complete safetensors file: {shorten_message(first_line(error))}"
        ) from error
    return tensors


def read_torch(path: Path, *, max_bytes: int = MAX_TENSOR_FILE_BYTES) -> dict[str, object]:
    """Return the dictionary that `torch.save` wrote to a file, without running code from it.

    Args:
        path: An existing file, in `torch.save`'s present or legacy format.
        max_bytes: Larger files are refused before they are read.

    Returns:
        The dictionary, its tensors on the CPU, memory-mapped where the format allows: copy what is to outlive
        the file.

    Raises:
        CheckpointError: The file is damaged, too large, something else, holds anything but tensors, plain Python
            values and containers of them, or is not a dictionary.
    """
    try:
        _check_size(path, max_bytes)
        with path.open("rb") as file:
            is_zip = file.read(4) == _ZIP
        if is_zip:
            _check_stored(path)
        with warnings.catch_warnings():
            # torch warns of TorchScript archives and pickle protocols; both are refused below.
            warnings.simplefilter("ignore", UserWarning)
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except CheckpointError:
        raise
    except Exception as error:  # bytes of another kind make an unpickler raise nearly anything
        refused = re.search(r"Unsupported (?:global|class|operand).*?([A-Za-z_][\w.]*\.\w+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path}: holds a {shorten_message(refused[1])[:80]}, which would run code when loaded: save the "
                "tensors alone, as by torch.save(model.state_dict(), path)"
            ) from error
        raise CheckpointError(
            f"{path}: expected tensors written by torch.save, got a file that is damaged, of another kind, "
            "or would run code when loaded"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a state dict, got {type(content).__name__}")
    return content


def tensors_only(content: Mapping[str, object], path: Path) -> dict[str, torch.Tensor]:
    """Return `content` as a state dict.

    Raises:
        CheckpointError: Something in it is not a tensor, or has no name.
    """
    tensors = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if len(tensors) != len(content):
        others = [str(name)[:80] for name in content if name not in tensors]
        raise CheckpointError(f"{path}: expected a state dict of tensors, got {shorten_names(others)}")
    return tensors


def is_shard(path: Path) -> bool:
    """Return whether a file is one of several, by its name: ``model-00001-of-00002.safetensors``."""
    return bool(re.fullmatch(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)", path.name))


def is_part_of_folder(path: Path) -> bool:
    """Return whether a file has a name that `save_pretrained` gives to weights, whole or in shards."""
    return path.name in (SAFETENSORS, PICKLED) or is_shard(path)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def _map_tensor(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def _read(path: Path, max_bytes: int) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path, max_bytes=max_bytes)
    return tensors_only(read_torch(path, max_bytes=max_bytes), path)


def _read_shards(index: Path, max_bytes: int) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard, listed in _shards(index):
        if not shard.is_file():
            raise CheckpointError(f"{shard} is missing, which {index.name} lists")
        content = _read(shard, max_bytes)
        max_bytes -= shard.stat().st_size
        if content.keys() != listed:
            differing = shorten_names(content.keys() ^ listed)
            raise CheckpointError(f"{shard}: its tensors are not those that {index.name} lists: {differing}")
        tensors |= content
    return tensors


def _shards(index: Path) -> Iterator[tuple[Path, set[str]]]:
    """Yield each shard of an index with the names of its tensors."""
    weight_map = read_json_object(index).get("weight_map")
    suffix = ".safetensors" if SAFETENSORS in index.name else ".bin"
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: expected a weight_map of file names, got {shorten(weight_map)}")
    for name in weight_map.values():
        # A plain name: an index must not point outside its folder
        if (
            not isinstance(name, str)
            or not re.fullmatch(r"\w[\w.-]{0,200}", name)
            or not name.endswith(suffix)
        ):
            raise CheckpointError(f"{index}: expected a weight_map of {suffix} files, got {shorten(name)}")
    shards = sorted(set(weight_map.values()))
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{index}: expected at most {MAX_SHARDS} files, got {len(shards)}")
    for shard in shards:
        yield index.parent / shard, {name for name, file in weight_map.items() if file == shard}


def _check_size(path: Path, max_bytes: int) -> None:
    size = path.stat().st_size
    if size > max_bytes:
        raise CheckpointError(f"{path}: expected a file of at most {max_bytes:,} bytes, got {size:,}")


def _check_stored(path: Path) -> None:
    """Refuse compressed archives, which `torch.save` never writes: unpacking then cannot exceed the file's size."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise CheckpointError(f"{path}: expected an archive written by torch.save, got a compressed one")
