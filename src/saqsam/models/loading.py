"""`load`: a float `SamModel` and its processor from any of the places where Segment Anything models live.

Weights are read as tensors and put into the model here, by one strict function for every source, rather than
by `SamModel.from_pretrained`: that one only warns about missing keys, which it leaves uninitialised.
Nothing is ever unpickled beyond what ``torch.load(weights_only=True)`` admits.
"""

import importlib.resources
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import SamConfig, SamModel, SamProcessor

from saqsam.models.configuration import check_sam_config, max_weight_bytes, parse_sam_config
from saqsam.models.inference import DECODER_HEADS, infer_sam_config
from saqsam.models.official import from_official, rename_state_dict
from saqsam.models.processing import build_processor, load_processor
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

__all__ = ["BUNDLED", "build_model", "build_processor", "load", "load_processor"]

BUNDLED = "sam-mini"

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_TENSOR_FILES = frozenset({".pth", ".pt", ".bin", ".ckpt", ".safetensors"})
_SHARED = "shared_image_embedding.positional_embedding"
_SHARED_COPY = "prompt_encoder.shared_embedding.positional_embedding"  # tied to _SHARED


def load(model: str | Path = BUNDLED, *, device: str | torch.device = "cpu") -> tuple[SamModel, SamProcessor]:
    """Load a Segment Anything model with the processor that prepares its inputs.

    Args:
        model: One of

            - ``"sam-mini"``, the model inside this package;
            - a folder written by `save_pretrained`: safetensors or ``pytorch_model.bin``, whole or in shards; or a
              packed checkpoint written by saqsam;
            - a file: an official ``sam_vit_{b,l,h}_*.pth``, what a training script saved of such a model, or the
              same tensors as ``.safetensors``;
            - a repository on the Hugging Face hub, ``"owner/name"``, such as ``facebook/sam-vit-base``.

            A string is tried in this order; a `Path` is only ever a folder or a file.
        device: Where the weights go.

    Returns:
        The model in float32 (a packed checkpoint: quantized) and eval mode, and a `SamProcessor` that resizes
        with Pillow, whether torchvision is installed or not. A folder without a preprocessor configuration
        gets the one of `build_processor`.

    Raises:
        ValueError: Nothing is found under this name.
        CheckpointError: The model is not a `SamModel`, or one that saqsam supports (RGB images, one of
            `configuration.ACTIVATIONS`); a file is damaged; the weights are incomplete, do not fit the configuration,
            or hold NaN or infinity; a pickle wants to run code; a file holds several models. A `ValueError`, too.
    """
    target = _device(device)
    if isinstance(model, str) and model == BUNDLED:
        return _load_bundled(target)
    path = Path(model).expanduser()
    if path.is_dir():
        return _load_folder(path, target)
    if path.is_file():
        return _load_file(path, target)
    looks_like_hub = isinstance(model, str) and _HUB_ID.fullmatch(model) and path.suffix not in _TENSOR_FILES
    if not looks_like_hub:
        raise ValueError(
            f"no model {str(model)!r}: not {BUNDLED!r}, no such file or folder, not a hub id 'owner/name'"
        )
    return _load_hub(str(model), target)


def build_model(
    config: SamConfig,
    tensors: Mapping[str, torch.Tensor],
    *,
    source: str,
    device: str | torch.device = "cpu",
) -> SamModel:
    """Return a `SamModel` that holds exactly `tensors`.

    Args:
        config: The model's configuration.
        tensors: Floating-point tensors by their names in `SamModel`; the tied positional embedding may be
            there under either name or both. They are copied, so memory-mapped files can be closed or changed.
        source: What error messages call the origin of the tensors.
        device: Where the weights go.

    Returns:
        The model in float32 and eval mode.

    Raises:
        CheckpointError: No supported model has this configuration, or a tensor is missing, unknown, of the wrong
            shape, not floating point, or not finite.
    """
    check_sam_config(config, source)
    with torch.device("meta"):
        model = SamModel(config)
    tensors = _merge_tied(tensors, source)
    expected = {name: value.shape for name, value in model.state_dict().items() if name != _SHARED_COPY}
    _check_names_and_shapes(tensors, expected, source)
    state: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        # A copy: a memory-mapped tensor must not outlive its file, and is not aligned, which changes the last
        # bits of some matrix products
        value = value.detach().to(device=device, dtype=torch.float32, copy=True)
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinity")
        state[name] = value
    model.load_state_dict(state, strict=False, assign=True)
    model.prompt_encoder.shared_embedding.positional_embedding = (
        model.shared_image_embedding.positional_embedding
    )
    assert not any(parameter.is_meta for parameter in model.parameters())
    model.config.dtype = torch.float32  # whatever it was stored as
    built: SamModel = model.eval()
    return built


def check_float_names(files: Sequence[Path], model: SamModel) -> None:
    """Check that files hold a model's tensors, all of them and nothing else, before transformers reads them.

    transformers leaves what is missing at random values and only warns.

    Args:
        files: Files of one model, safetensors or what `torch.save` wrote.
        model: The float model, usually on the meta device.

    Raises:
        CheckpointError: A file is damaged, or a tensor is missing or unknown.
    """
    names: set[str] = set()
    for path in files:
        names.update(read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path))
    if not files:
        return
    expected = set(model.state_dict()) - {_SHARED_COPY}
    if _SHARED_COPY in names:
        names = (names - {_SHARED_COPY}) | {_SHARED}
    problems = [("missing", expected - names), ("unknown", names - expected)]
    if names != expected:
        named = "; ".join(
            f"{len(listed)} {word}: {shorten_names(listed)}" for word, listed in problems if listed
        )
        raise CheckpointError(f"{files[0].parent}: the tensors do not fit the model: {named}")


def _load_bundled(device: torch.device) -> tuple[SamModel, SamProcessor]:
    folder = _bundled_folder()
    if not (folder / "model.safetensors").is_file():
        raise ValueError(
            f"this installation lacks the weights of {BUNDLED}: no {folder / 'model.safetensors'}"
        )
    return _load_folder(folder, device)


def _bundled_folder() -> Path:
    # Packages with weights are installed as files, never run from a zip
    return Path(str(importlib.resources.files("saqsam.models") / "sam_mini"))


def _load_folder(folder: Path, device: torch.device) -> tuple[SamModel, SamProcessor]:
    raw = _read_config(folder)
    quantization = raw.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        if method != "saqsam":
            raise CheckpointError(f"{folder}: expected a float model, got one quantized by {shorten(method)}")
        from saqsam.checkpoint import load_packed_folder

        return load_packed_folder(folder, raw, device=device)
    config = parse_sam_config(raw, str(folder / "config.json"))
    processor = load_processor(folder, config)
    tensors = read_folder(folder, max_bytes=max_weight_bytes(config))
    return build_model(config, _plain_names(tensors, folder), source=str(folder), device=device), processor


def _plain_names(tensors: Mapping[str, torch.Tensor], folder: Path) -> Mapping[str, torch.Tensor]:
    """Return a folder's tensors by their names in `SamModel`, whatever prefix they were saved under."""
    if _SHARED in tensors or _SHARED_COPY in tensors:
        return tensors
    found = find_model(tensors, folder)
    _note_tensors_beside(found, folder)
    if not found.is_official:
        return found.tensors
    try:
        return rename_state_dict(found.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _load_file(path: Path, device: torch.device) -> tuple[SamModel, SamProcessor]:
    folder = path.parent
    has_config = (folder / "config.json").is_file()
    if (
        has_config
        and is_part_of_folder(path)
        and (is_shard(path) or "quantization_config" in _read_config(folder))
    ):
        return _load_folder(folder, device)  # the file makes sense with its folder alone
    content: Mapping[str, object]
    content = read_safetensors(path) if path.suffix.lower() == ".safetensors" else read_torch(path)
    found = find_model(content, path)
    tensors = found.tensors
    if found.is_official:
        try:
            config, tensors = from_official(tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        processor = build_processor(config)
        _use_statistics(processor, found, path)
    elif has_config:
        config = parse_sam_config(_read_config(folder), str(folder / "config.json"))
        processor = load_processor(folder, config)
    else:
        config = _infer_without_config(tensors, path)
        processor = build_processor(config)
    model = build_model(config, tensors, source=str(path), device=device)
    _note_tensors_beside(found, path)
    return model, processor


def _use_statistics(processor: SamProcessor, found: ModelStateDict, path: Path) -> None:
    """Normalize with the `pixel_mean` and `pixel_std` that a file holds; a model trained with others needs its own."""
    for name, setting in (("pixel_mean", "image_mean"), ("pixel_std", "image_std")):
        if name in found.statistics:
            values = found.statistics[name].detach().float().flatten() / 255
            lowest = 1e-3 if name == "pixel_std" else 0.0
            if values.shape != (3,) or not bool(((values >= lowest) & (values <= 1)).all()):
                raise CheckpointError(
                    f"{path}: {name}: expected three numbers in (0, 255], got {shorten((255 * values[:4]).tolist())}"
                )
            known = torch.tensor(getattr(processor.image_processor, setting))
            if not torch.allclose(values, known, atol=1e-3):
                setattr(processor.image_processor, setting, values.tolist())
                warnings.warn(f"{path}: pixels are normalized with the {name} of the file", stacklevel=4)


def _infer_without_config(tensors: Mapping[str, torch.Tensor], path: Path) -> SamConfig:
    try:
        config = infer_sam_config({name: tuple(value.shape) for name, value in tensors.items()})
    except CheckpointError as error:
        raise CheckpointError(f"{path}: no config.json beside it, and {error}") from error
    warnings.warn(
        f"{path}: no config.json beside it: assumed {DECODER_HEADS} heads in the decoder, and transformers' default "
        "activations and eps",
        stacklevel=4,
    )
    return config


def _note_tensors_beside(found: ModelStateDict, path: Path) -> None:
    if found.beside:
        warnings.warn(
            f"{path}: ignored {len(found.beside)} tensors beside the model: {shorten_names(found.beside)}",
            stacklevel=4,
        )


def _load_hub(model_id: str, device: torch.device) -> tuple[SamModel, SamProcessor]:
    try:
        folder = Path(snapshot_download(model_id, allow_patterns=["*.json", "model*.safetensors"]))
        if not any(folder.glob("model*.safetensors")):
            # Early repositories hold a torch pickle only, read like every other with weights_only
            snapshot_download(model_id, allow_patterns=["pytorch_model.bin"])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no model {model_id!r}: no such file or folder, and not readable from the Hugging Face hub: "
            f"{shorten_message(first_line(error))}"
        ) from error
    return _load_folder(folder, device)


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


def _merge_tied(tensors: Mapping[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """Return `tensors` with the positional embedding under its one name."""
    merged = dict(tensors)
    copy = merged.pop(_SHARED_COPY, None)
    if copy is None:
        return merged
    shared = merged.setdefault(_SHARED, copy)
    if not torch.equal(shared, copy):
        raise CheckpointError(f"{source}: expected {_SHARED} and {_SHARED_COPY} to be equal, they differ")
    return merged


def _check_names_and_shapes(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size], source: str
) -> None:
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    wrong = [
        f"{name} of shape {tuple(tensors[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    found = [("missing", missing), ("unknown", unknown), ("misshapen", wrong)]
    problems = "; ".join(f"{len(names)} {word}: {shorten_names(names)}" for word, names in found if names)
    if problems:
        raise CheckpointError(f"{source}: the tensors do not fit the model: {problems}")
    others = [
        name
        for name, value in tensors.items()
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta
    ]
    if others:
        raise CheckpointError(
            f"{source}: expected floating-point tensors, got others: {shorten_names(others)}"
        )


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"not a device of torch: {device!r}") from error
