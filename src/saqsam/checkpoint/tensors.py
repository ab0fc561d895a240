"""Read the tensors of a checkpoint, and check names, dtypes, shapes, values and hash before anything uses them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import SamModel

from saqsam.checkpoint.config import SaqsamConfig
from saqsam.checkpoint.hashing import content_hash, hash_header
from saqsam.models.registry import structure_of
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import PackedTensor
from saqsam.quant.logarithmic import LogQuantizer
from saqsam.quant.tables import TableQuantizer
from saqsam.recipes.recipe import Recipe
from saqsam.utils.errors import CheckpointError, shorten, shorten_message, shorten_names

MAX_SCALE = torch.finfo(torch.float16).max
"""Largest quantization step: float tensors are stored in float16, so no larger step makes sense."""
MIN_SCALE = torch.finfo(torch.float32).tiny
"""Smallest quantization step: the reciprocal of a subnormal number overflows."""
MAX_TAU = 32
"""Largest number of steps per octave of a logarithmic quantizer."""
_FLOAT32_SUFFIXES = (".scale", ".levels")
_SAFETENSORS_DTYPES = {
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.float32: "F32",
}


def checkpoint_tensors(model: SamModel) -> dict[str, Tensor]:
    """Return the tensors of a packed model as stored: contiguous, on the CPU.

    Floats are stored in float16, except for scales and levels.
    """
    return {
        name: tensor.detach().cpu().to(_stored_dtype(name, tensor), copy=True).contiguous()
        for name, tensor in _stored_state(model).items()
    }


def stored_layout(model: SamModel) -> dict[str, tuple[str, list[int], int]]:
    """Return the safetensors dtype, the shape and the bytes of each stored tensor of a packed model.

    Args:
        model: A model with packed modules, on any device, the meta device included.
    """
    layout = {}
    for name, tensor in _stored_state(model).items():
        dtype = _stored_dtype(name, tensor)
        layout[name] = (_SAFETENSORS_DTYPES[dtype], list(tensor.shape), tensor.numel() * dtype.itemsize)
    return layout


def read_tensors(files: Mapping[Path, set[str] | None], model: SamModel) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint and check that they are exactly those of a model.

    Args:
        files: The safetensors files with the names that an index lists for each, as `safetensors_files` returns them.
        model: A model with packed modules, usually on the meta device.

    Returns:
        Tensors by name, memory-mapped: copy what is to outlive the file.

    Raises:
        CheckpointError: A file is missing or damaged, or a tensor is missing, unknown, repeated, in another shard than
            the index says, or of another dtype or shape than the model's. Each file's header is compared before any
            of its data is read.
    """
    tensors: dict[str, Tensor] = {}
    for path, listed in files.items():
        with _reading(path) as file:
            names = _check_header(file, path, listed, model, tensors.keys())
            tensors |= {name: file.get_tensor(name) for name in names}
    _check_complete(files, model, tensors.keys())
    return tensors


def check_headers(files: Mapping[Path, set[str] | None], model: SamModel) -> None:
    """Raise CheckpointError if `read_tensors` would, by reading only the headers of the files."""
    names: set[str] = set()
    for path, listed in files.items():
        with _reading(path) as file:
            names.update(_check_header(file, path, listed, model, names))
    _check_complete(files, model, names)


def check_values(tensors: Mapping[str, Tensor], model: SamModel, recipe: Recipe, source: str) -> None:
    """Raise CheckpointError unless every value is one that quantization can produce.

    Scales are finite, positive and at most `MAX_SCALE`; zero points are codes, and the middle code for symmetric
    weights; steps per octave are powers of two; levels ascend within float16; all other floats are finite.

    Args:
        tensors: The tensors as stored, by name.
        model: A model with packed modules, which determine the bits of each tensor.
        recipe: The model's recipe.
        source: Name of the file in messages.
    """
    for name, module in model.named_modules():
        if isinstance(module, PackedTensor | AffineQuantizer | LogQuantizer):
            _check_scale(tensors[f"{name}.scale"], f"{source}: {name}.scale")
        if isinstance(module, PackedTensor | AffineQuantizer):
            is_symmetric = isinstance(module, PackedTensor) and recipe.weights.is_symmetric(module.bits)
            _check_zero_point(
                tensors[f"{name}.zero_point"], module.bits, is_symmetric, f"{source}: {name}.zero_point"
            )
        if isinstance(module, LogQuantizer):
            tau = int(tensors[f"{name}.tau"])
            if tau not in (2**i for i in range(MAX_TAU.bit_length())):
                raise CheckpointError(f"{source}: {name}.tau must be a power of 2 up to {MAX_TAU}, got {tau}")
        if isinstance(module, TableQuantizer):
            _check_levels(tensors[f"{name}.levels"], f"{source}: {name}.levels")
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float16 and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinity, or a value beyond float16")


def verify_tensors(
    tensors: Mapping[str, Tensor], model: SamModel, quantization: SaqsamConfig, file: Path
) -> None:
    """Check the values of a checkpoint's tensors, and compare its hash with its content.

    Args:
        tensors: The tensors as stored, by name.
        model: A model with packed modules, usually on the meta device.
        quantization: The checkpoint's quantization config with the hash.
        file: The first file of tensors, for messages.

    Raises:
        CheckpointError: `check_values` refuses a value, or the hashes differ.
    """
    check_values(tensors, model, Recipe.from_dict(quantization.recipe), str(file))
    folder = file.parent
    header = dict(quantization.recipe)
    if quantization.format_version == 1:
        warnings.warn(
            f"{folder}: this checkpoint has format version 1, whose hash does not cover the configurations of model "
            "and processor; load it and save it again to protect them",
            stacklevel=2,
        )
    else:
        header = hash_header(model.config, quantization.recipe, quantization.processor_sha256)
    actual = content_hash(tensors, header)
    if actual != quantization.content_sha256:
        raise CheckpointError(
            f"{folder}: the tensors, the recipe or the configuration were altered: their content hash is "
            f"{actual[:12]}, config.json says {str(quantization.content_sha256)[:12]}"
        )


def _stored_state(model: SamModel) -> dict[str, Tensor]:
    """Return the state dict of a model without the copies of tied tensors."""
    tied = structure_of(model.config).tied
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def _stored_dtype(name: str, tensor: Tensor) -> torch.dtype:
    is_half = tensor.is_floating_point() and not name.endswith(_FLOAT32_SUFFIXES)
    return torch.float16 if is_half else tensor.dtype


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Open a safetensors file, and raise CheckpointError for any problem with it."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read, it may be cut short: {shorten_message(error)}"
        ) from error


def _check_header(
    file: Any, path: Path, listed: set[str] | None, model: SamModel, read: AbstractSet[str]
) -> list[str]:
    """Compare the names, dtypes and shapes in a file with the model's.

    Args:
        file: The open file.
        path: Its path, for messages.
        listed: The names that an index lists for it; None if there is no index.
        model: The model with packed modules.
        read: Names in the files before it.

    Returns:
        The names, sorted.
    """
    expected = _stored_state(model)
    names = set(file.keys())
    unknown, repeated = sorted(names - expected.keys()), sorted(names & read)
    if unknown:
        missing = sorted(expected.keys() - names - read)
        lacks = f"lacks {shorten_names(missing)} and " if missing else ""
        raise CheckpointError(
            f"{path} does not fit its recipe: it {lacks}has unknown {shorten_names(unknown)}"
        )
    if repeated:
        raise CheckpointError(f"{path} repeats {shorten_names(repeated)} of another shard")
    if listed is not None and names != listed:
        raise CheckpointError(
            f"{path}: its tensors are not those that the index lists: {shorten_names(names ^ listed)}"
        )
    for name in sorted(names):
        stored = file.get_slice(name)
        shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
        if shape != tuple(expected[name].shape):
            raise CheckpointError(
                f"{path}: {name} must have shape {tuple(expected[name].shape)}, has {shorten(shape)}"
            )
        expected_dtype = _SAFETENSORS_DTYPES[_stored_dtype(name, expected[name])]
        if dtype != expected_dtype:
            raise CheckpointError(f"{path}: {name} must be {expected_dtype}, is {dtype}")
    return sorted(names)


def _check_complete(files: Mapping[Path, set[str] | None], model: SamModel, read: AbstractSet[str]) -> None:
    missing = model.state_dict().keys() - read - structure_of(model.config).tied.keys()
    if missing:
        raise CheckpointError(
            f"{next(iter(files))} does not fit its recipe: it lacks {shorten_names(missing)}"
        )


def _check_scale(scale: Tensor, where: str) -> None:
    # NaN compares as false.
    if not bool(((scale >= MIN_SCALE) & (scale <= MAX_SCALE)).all()):
        raise CheckpointError(f"{where} must be finite, positive and at most {MAX_SCALE:.0f}")


def _check_levels(levels: Tensor, where: str) -> None:
    # NaN compares as false.
    if not bool((levels.abs() <= MAX_SCALE).all() & (levels.diff() >= 0).all()):
        raise CheckpointError(
            f"{where} must ascend from at least -{MAX_SCALE:.0f} to at most {MAX_SCALE:.0f}"
        )


def _check_zero_point(zero_point: Tensor, bits: int, is_symmetric: bool, where: str) -> None:
    low, high = (2 ** (bits - 1),) * 2 if is_symmetric else (0, 2**bits - 1)
    smallest, largest = (int(end) for end in torch.aminmax(zero_point))
    if not low <= smallest <= largest <= high:
        raise CheckpointError(
            f"{where} must be {low if is_symmetric else f'{low} to {high}'} for {bits} bits, "
            f"got {smallest if smallest < low else largest}"
        )
