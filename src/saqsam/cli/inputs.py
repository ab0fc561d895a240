"""Open models and datasets that are named on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import SamModel, SamProcessor

from saqsam.checkpoint import quantization_config_of, recipe_of
from saqsam.cli.progress import busy
from saqsam.data.images import ImageFolder
from saqsam.data.mask_values import IgnoreLabel
from saqsam.data.open import SCENES, open_dataset
from saqsam.data.types import Dataset
from saqsam.export import is_export
from saqsam.inference.backend import Backend
from saqsam.models import load
from saqsam.models.processing import input_side
from saqsam.ptq.calibration_data import calibration_scenes
from saqsam.runtimes import TORCH_INTEGER, load_runtime, use_integer_kernels
from saqsam.utils.atomic_write import write_atomic
from saqsam.utils.errors import shorten


def open_model(
    model: str, device: str, runtime: str | None, threads: int | None, image_size: int | None = None
) -> tuple[SamModel | Backend, SamProcessor, str]:
    """Load a model in PyTorch, or an exported folder in its runtime, with its processor and the name of its recipe.

    Raises:
        ValueError: The model cannot be loaded, or cannot have `image_size`.
    """
    if runtime not in (None, "torch", TORCH_INTEGER) or is_export(model):
        if runtime in ("torch", TORCH_INTEGER):
            raise ValueError(f"{model} is an export; PyTorch runs the checkpoint that it was made from")
        with busy(f"loading {model}"):
            backend, processor = load_runtime(model, runtime, device=device, threads=threads)
        if image_size not in (None, input_side(processor)):
            raise ValueError(
                f"image_size: {model} is an export at {input_side(processor)} px; export the model at {image_size} px "
                "instead"
            )
        return backend, processor, backend.manifest.name
    if threads is not None:
        torch.set_num_threads(threads)
    sam, processor = load_torch(model, device, image_size)
    if quantization_config_of(sam) is None:
        if runtime == TORCH_INTEGER:
            raise ValueError(f"--runtime {runtime}: {model} is float; quantize it first")
        return sam, processor, "float"
    if runtime == TORCH_INTEGER:
        use_integer_kernels(sam)
    return sam, processor, recipe_of(sam).name


def load_torch(model: str, device: str, image_size: int | None = None) -> tuple[SamModel, SamProcessor]:
    """Load a model to a PyTorch device, with its processor; a float model is resized to `image_size` pixels."""
    with busy(f"loading {model}"):
        return load(model, device=usable_device(device), image_size=image_size)


def usable_device(name: str) -> str:
    """Return a PyTorch device after a trial, since PyTorch notices a missing device only when it is used.

    Raises:
        ValueError: The device cannot be used.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # one for each process of torchrun
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"--device {name} cannot be used: expected auto, cpu, cuda, cuda:N, mps or another PyTorch device"
        ) from error
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return name


def open_labeled(spec: str, option: str, limit: int | None, ignore_label: str = "auto") -> Dataset:
    """Open a dataset to score, cut to `limit` images; scenes are generated to that number."""
    dataset = open_dataset(spec, limit=limit, ignore_label=_parse_ignore_label(ignore_label))
    if isinstance(dataset, ImageFolder):
        raise ValueError(f"{option} {spec}: expected annotated images, got images without annotations")
    return dataset


def _parse_ignore_label(text: str) -> IgnoreLabel:
    if text == "auto":
        return "auto"
    if text == "none":
        return None
    if text.isascii() and text.isdigit():
        return int(text[:9])
    raise ValueError(f"--ignore-label: expected auto, none or a value from 0 to 65535, got {shorten(text)}")


def open_calibration(spec: str, images: int, seed: int, ignore_label: str = "auto") -> Dataset:
    """Open the calibration set of `quantize --calibration`, from which the seed draws `images`."""
    label = _parse_ignore_label(ignore_label)
    if spec == SCENES and label == "auto":
        return calibration_scenes(images, seed)
    return open_dataset(spec, ignore_label=label)


def json_bytes(content: dict[str, Any]) -> bytes:
    """Return plain values as an indented JSON text."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write plain values as a JSON file, atomically."""
    write_atomic(path, json_bytes(content))
