"""`load`: a float `SamModel` and its processor from any of the places where Segment Anything models live.

Weights are read as tensors and put into the model here, by one strict function for every source, rather than
by `SamModel.from_pretrained`: that one only warns about missing keys, which it leaves uninitialized.
Nothing is ever unpickled beyond what ``torch.load(weights_only=True)`` admits.
"""

import importlib.resources
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from saqsam.models.building import build_model
from saqsam.models.configuration import max_weight_bytes, parse_config
from saqsam.models.processing import build_processor, load_processor, resize_processor
from saqsam.models.registry import family_of
from saqsam.models.sam.shape_inference import DECODER_HEADS
from saqsam.models.state_dicts import ModelStateDict, find_model
from saqsam.models.weights import (
    first_line,
    is_part_of_folder,
    is_shard,
    read_folder,
    read_safetensors,
    read_torch,
)
from saqsam.utils.errors import CheckpointError, shorten, shorten_message, shorten_names
from saqsam.utils.strict_json import read_json_object

BUNDLED = "sam-mini"
BUNDLED_MODELS = {BUNDLED: "sam_mini", "sam2-mini": "sam2_mini"}
"""Names of the models inside this package, and their folders."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_TENSOR_FILES = frozenset({".pth", ".pt", ".bin", ".ckpt", ".safetensors"})


def load(
    model: str | Path = BUNDLED, *, device: str | torch.device = "cpu", image_size: int | None = None
) -> tuple[Any, Any]:
    """Load a Segment Anything model with the processor that prepares its inputs.

    Args:
        model: One of

            - ``"sam-mini"`` or ``"sam2-mini"``, the models inside this package;
            - a folder written by `save_pretrained`: safetensors or ``pytorch_model.bin``, whole or in shards; or a
              packed checkpoint written by saqsam;
            - a file: an official ``sam_vit_{b,l,h}_*.pth``, ``sam2*_hiera_*.pt`` or ``mobile_sam.pt``, a training
              script's checkpoint of such a model, or the same tensors as ``.safetensors``;
            - a repository on the Hugging Face hub, ``"owner/name"``, such as ``facebook/sam-vit-base``.

            A string is tried in this order; a `Path` is always a folder or a file.
        device: Device of the model.
        image_size: Side of the square input in pixels. A float model is resized: its position tables are interpolated,
            and the processor follows. By default, the model keeps its own size.

    Returns:
        The model in eval mode, in float32 or, for a packed checkpoint, quantized; and a `SamProcessor` that resizes
        with Pillow, whether torchvision is installed or not. A folder without a preprocessor configuration gets the
        default processor of `build_processor`.

    Raises:
        ValueError: There is no model of this name, or it cannot have this input size.
        CheckpointError: The model is not a `SamModel` that saqsam supports (RGB images, one of
            `limits.ACTIVATIONS`); a file is damaged; the weights are incomplete, do not fit the configuration,
            or hold NaN or infinity; a pickle would run code; a file holds several models. Subclass of `ValueError`.
    """
    target = _device(device)
    if isinstance(model, str) and model in BUNDLED_MODELS:
        return _load_bundled(model, target, image_size)
    path = Path(model).expanduser()
    if path.is_dir():
        return _load_folder(path, target, image_size)
    if path.is_file():
        return _load_file(path, target, image_size)
    looks_like_hub = isinstance(model, str) and _HUB_ID.fullmatch(model) and path.suffix not in _TENSOR_FILES
    if not looks_like_hub:
        raise ValueError(
            f"no model {str(model)!r}: not {' or '.join(BUNDLED_MODELS)}, no such file or folder, not a Hub model ID "
            "'owner/name'"
        )
    return _load_hub(str(model), target, image_size)


def bundled_folder(name: str) -> Path:
    """Return the folder of one of `BUNDLED_MODELS`."""
    # Packages with weights are installed as files and never run from a zip archive.
    return Path(str(importlib.resources.files("saqsam.models") / BUNDLED_MODELS[name]))


def _load_bundled(name: str, device: torch.device, image_size: int | None) -> tuple[Any, Any]:
    folder = bundled_folder(name)
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"this installation lacks the weights of {name}: no {folder / 'model.safetensors'}")
    return _load_folder(folder, device, image_size)


def _load_folder(folder: Path, device: torch.device, image_size: int | None) -> tuple[Any, Any]:
    raw = _read_config(folder)
    quantization = raw.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        if method != "saqsam":
            raise CheckpointError(f"{folder}: expected a float model, got one quantized by {shorten(method)}")
        from saqsam.checkpoint import load_packed_folder

        if image_size is not None:
            _check_packed_size(parse_config(raw, str(folder / "config.json")), image_size, folder)
        return load_packed_folder(folder, raw, device=device)
    config = parse_config(raw, str(folder / "config.json"))
    processor = load_processor(folder, config)
    # No variable holds the tensors here, so that each can go as soon as the model has its copy.
    max_bytes = max_weight_bytes(config)
    model = build_model(
        config,
        _plain_names(config, read_folder(folder, max_bytes=max_bytes), folder),
        source=str(folder),
        device=device,
        image_size=image_size,
    )
    return model, resize_processor(processor, model.config)


def _check_packed_size(config: Any, image_size: int, folder: Path) -> None:
    """Raise ValueError if a packed checkpoint has another size: its ranges and rounding belong to its own."""
    own = family_of(config).input_spec(config).image_size
    if image_size != own:
        raise ValueError(
            f"image_size: {folder} is quantized at {own} px; quantize the float model at {image_size} px instead"
        )


def _plain_names(
    config: Any, tensors: Mapping[str, torch.Tensor], folder: Path
) -> Mapping[str, torch.Tensor]:
    """Return a folder's tensors by their names in transformers, without the prefix that they were saved with."""
    layout = family_of(config).format
    located = find_model(tensors, folder)
    _check_family(located, config, folder)
    if layout.anchor in tensors:
        return layout.image_tensors(tensors)
    _warn_of_extra_tensors(located, folder)
    if not located.is_official:
        return layout.image_tensors(located.tensors)
    try:
        return layout.rename_official(located.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _check_family(located: ModelStateDict, config: Any, path: Path) -> None:
    if located.family is not family_of(config):
        raise CheckpointError(
            f"{path}: config.json describes a {family_of(config).label}, the tensors are those of a "
            f"{located.family.label}"
        )


def _load_file(path: Path, device: torch.device, image_size: int | None) -> tuple[Any, Any]:
    folder = path.parent
    has_config = (folder / "config.json").is_file()
    if (
        has_config
        and is_part_of_folder(path)
        and (is_shard(path) or "quantization_config" in _read_config(folder))
    ):
        return _load_folder(folder, device, image_size)  # the file cannot be read without its folder
    content: Mapping[str, object]
    content = read_safetensors(path) if path.suffix.lower() == ".safetensors" else read_torch(path)
    located = find_model(content, path)
    tensors = located.tensors
    if located.is_official:
        try:
            config, tensors = located.family.format.from_official(tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        processor = build_processor(config)
        _use_statistics(processor, located, path)
    elif has_config:
        config = parse_config(_read_config(folder), str(folder / "config.json"))
        _check_family(located, config, path)
        processor = load_processor(folder, config)
    else:
        config = _infer_without_config(located, path)
        processor = build_processor(config)
    used = family_of(config).format.image_tensors(tensors)
    model = build_model(config, used, source=str(path), device=device, image_size=image_size)
    _warn_of_extra_tensors(located, path)
    return model, resize_processor(processor, model.config)


def _use_statistics(processor: Any, located: ModelStateDict, path: Path) -> None:
    """Normalize with the `pixel_mean` and `pixel_std` of the file, with which the model was trained."""
    for name, setting in (("pixel_mean", "image_mean"), ("pixel_std", "image_std")):
        if name in located.statistics:
            values = located.statistics[name].detach().float().flatten() / 255
            lowest = 1e-3 if name == "pixel_std" else 0.0
            if values.shape != (3,) or not bool(((values >= lowest) & (values <= 1)).all()):
                raise CheckpointError(
                    f"{path}: {name}: expected three numbers in (0, 255], got {shorten((255 * values[:4]).tolist())}"
                )
            default = torch.tensor(getattr(processor.image_processor, setting))
            if not torch.allclose(values, default, atol=1e-3):
                setattr(processor.image_processor, setting, values.tolist())
                warnings.warn(f"{path}: pixels are normalized with the {name} of the file", stacklevel=4)


def _infer_without_config(located: ModelStateDict, path: Path) -> Any:
    try:
        config = located.family.format.infer_config(located.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: no config.json beside it, and {error}") from error
    warnings.warn(
        f"{path}: no config.json beside it: assumed {DECODER_HEADS} heads in the decoder, and transformers' default "
        "activations and eps",
        stacklevel=4,
    )
    return config


def _warn_of_extra_tensors(located: ModelStateDict, path: Path) -> None:
    names = located.extra_names
    if names:
        warnings.warn(
            f"{path}: ignored {len(names)} tensors beside the model: {shorten_names(names)}", stacklevel=4
        )


def _load_hub(model_id: str, device: torch.device, image_size: int | None) -> tuple[Any, Any]:
    try:
        folder = Path(snapshot_download(model_id, allow_patterns=["*.json", "model*.safetensors"]))
        if not any(folder.glob("model*.safetensors")):
            # Early repositories hold only a torch pickle, which is read with weights_only like any other.
            snapshot_download(model_id, allow_patterns=["pytorch_model.bin"])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no model {model_id!r}: no such file or folder, and not readable from the Hugging Face hub: "
            f"{shorten_message(first_line(error))}"
        ) from error
    return _load_folder(folder, device, image_size)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return read_json_object(folder / "config.json")
    except FileNotFoundError as error:
        # The name is that of `export.manifest.MANIFEST`, which builds on this package.
        what = (
            "an export for other runtimes"
            if (folder / "export.json").is_file()
            else "one without config.json"
        )
        raise CheckpointError(f"{folder}: expected a folder of transformers, got {what}") from error


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"not a device of torch: {device!r}") from error
