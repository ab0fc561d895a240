"""Save and load checkpoint folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import SamModel, SamProcessor

from saqsam.checkpoint.config import QUANT_METHOD, SaqsamConfig, recipe_of
from saqsam.checkpoint.hashing import processor_hash
from saqsam.checkpoint.hf_quantizer import attach_quantizer, hashed_config, verified_processor
from saqsam.checkpoint.model_card import write_model_card
from saqsam.checkpoint.tensors import checkpoint_tensors, read_tensors, verify_tensors
from saqsam.convert.pack import build_packed_skeleton, complete_loading
from saqsam.convert.plan import plan_quantization
from saqsam.models.configuration import parse_config
from saqsam.models.registry import family_of
from saqsam.models.weights import SAFETENSORS, safetensors_files
from saqsam.recipes.recipe import Recipe
from saqsam.utils.atomic_write import atomic_folder
from saqsam.utils.errors import CheckpointError, shorten, shorten_message
from saqsam.utils.strict_json import read_json_object


def save_checkpoint(
    model: SamModel, processor: SamProcessor, folder: str | Path, *, overwrite: bool = False
) -> Path:
    """Write a quantized model atomically as a checkpoint folder.

    Args:
        model: The model of a `quantize` result, or a loaded checkpoint. Its `evaluation_scores` go into the model card.
        processor: Processor of the model, which is saved with it and covered by the content hash.
        folder: The folder to write.
        overwrite: Replace an existing checkpoint or empty folder. Files and folders of any other kind are never
            replaced.

    Returns:
        The folder.

    Raises:
        ValueError: The model is float, or the folder exists and must not be replaced.
        CheckpointError: The model holds values that no checkpoint may hold, such as NaN.
    """
    folder = Path(folder)
    stored = recipe_of(model).to_dict()
    check_target(folder, overwrite=overwrite)
    with atomic_folder(folder) as partial:
        tensors = checkpoint_tensors(model)
        attach_quantizer(model, hashed_config(model, tensors, stored, processor_hash(processor)))
        save_file(tensors, partial / SAFETENSORS, metadata={"format": "pt"})
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_model_card(partial, model)
        # safetensors makes files for their owner alone, whatever the umask.
        (partial / SAFETENSORS).chmod((partial / "config.json").stat().st_mode)
    return folder


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Raise ValueError if `save_checkpoint` would refuse the folder; call it before long work begins."""
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists; choose another name, or pass overwrite=True")
    if folder.exists() and not _is_replaceable(folder):
        raise ValueError(
            f"{folder} is not a checkpoint of saqsam and is never overwritten; choose another name"
        )


def _is_replaceable(path: Path) -> bool:
    """Return whether a path is an empty folder or a checkpoint of saqsam, damaged or not."""
    if not path.is_dir():
        return False
    try:
        _read_config(path)
    except (CheckpointError, FileNotFoundError):
        return not any(path.iterdir())
    return True


def load_checkpoint(folder: str | Path, *, device: str | torch.device = "cpu") -> SamModel:
    """Load the model of a packed checkpoint and verify it.

    Args:
        folder: A folder written by `save_checkpoint`, or by `save_pretrained` of model and processor.
        device: Device of the model.

    Returns:
        The quantized model in float32 and eval mode.

    Raises:
        CheckpointError: A file is missing, damaged, altered, or of an unknown version; the message names it.
    """
    folder = Path(folder)
    try:
        raw = _read_config(folder)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder / 'config.json'} is missing") from error
    return load_packed_folder(folder, raw, device=device)[0]


def load_packed_folder(
    folder: Path, raw: Mapping[str, Any], *, device: str | torch.device = "cpu"
) -> tuple[SamModel, SamProcessor]:
    """Load a packed checkpoint and verify it. Each file is read once.

    Checks the names, dtypes, shapes and values of all tensors, then the content hash, which covers the tensors, the
    recipe and the configurations of model and processor.

    Args:
        folder: A folder written by `save_checkpoint`, or by `save_pretrained` of model and processor.
        raw: Parsed JSON of its `config.json`, with a `quantization_config` of saqsam.
        device: Device of the model.

    Returns:
        The quantized model in float32 and eval mode, and its processor.

    Raises:
        CheckpointError: A file is missing, damaged, altered, or of an unknown version; the message names it.
    """
    source = str(folder / "config.json")
    try:
        quantization = SaqsamConfig.from_dict(raw["quantization_config"])
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    recipe = Recipe.from_dict(quantization.recipe)
    config = parse_config(raw, source)
    plan = plan_quantization(config, recipe)
    try:
        with torch.device("meta"):
            model = family_of(config).build(config)
            build_packed_skeleton(model, plan)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{source}: no model has this configuration: {shorten_message(error)}"
        ) from error
    files = safetensors_files(folder)
    tensors = read_tensors(files, model)
    verify_tensors(tensors, model, quantization, next(iter(files)))
    processor = verified_processor(folder, config, quantization)
    expected = model.state_dict()
    state = {name: t.to(device=device, dtype=expected[name].dtype, copy=True) for name, t in tensors.items()}
    model.load_state_dict(state, strict=False, assign=True)
    family_of(config).tie(model)
    model.requires_grad_(False)
    complete_loading(model, plan)
    attach_quantizer(model, quantization)
    loaded: SamModel = model.eval()
    return loaded, processor


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the parsed `config.json` of a checkpoint of saqsam, of which only `quant_method` is checked."""
    raw = read_json_object(folder / "config.json")
    quantization = raw.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") != QUANT_METHOD:
        raise CheckpointError(
            f"{folder} is not a checkpoint of saqsam: expected quantization_config of {QUANT_METHOD!r} in its "
            f"config.json, got {shorten(quantization)}"
        )
    return raw
