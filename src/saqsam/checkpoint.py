"""The packed checkpoint: a folder that `SamModel.from_pretrained` loads after `import saqsam`.

`model.safetensors` holds the codes, scales and zero points, and in float16 what stays float. `config.json` is
the model's own configuration with a `quantization_config`: the recipe, the format version and a hash of the
content. `docs/checkpoint-format.md` describes both byte by byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import SamConfig, SamModel, SamProcessor
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from saqsam._version import __version__
from saqsam.models.structure import SamStructure
from saqsam.output import whole_folder
from saqsam.prepare import build_packed_skeleton, complete_loading
from saqsam.recipe import Recipe

FORMAT_VERSION = 1
QUANT_METHOD = "saqsam"
WEIGHTS = "model.safetensors"
_TIED = "prompt_encoder.shared_embedding.positional_embedding"
_FLOAT32_SUFFIX = ".scale"


@register_quantization_config(QUANT_METHOD)
class SaqsamConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The `quantization_config` of a checkpoint.

    Attributes:
        recipe: The recipe as plain JSON, as it is stored: one that an older version wrote lacks later fields.
        format_version: Version of the file format.
        content_sha256: Hash of the recipe and all tensors, see `content_hash`; None until saved.
        saqsam_version: Version of the package that wrote it.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any] | None = None,
        format_version: int | None = None,
        content_sha256: str | None = None,
        saqsam_version: str = __version__,
        quant_method: str = QUANT_METHOD,
        **unknown: Any,
    ) -> None:
        if quant_method != QUANT_METHOD:
            raise ValueError(f"quant_method must be {QUANT_METHOD!r}, got {quant_method!r}")
        if format_version != FORMAT_VERSION:
            raise ValueError(
                f"this checkpoint has format version {format_version!r}; "
                f"saqsam {__version__} reads version {FORMAT_VERSION}: install the version that wrote it"
            )
        if unknown:
            raise ValueError(f"quantization_config has unknown keys: {', '.join(sorted(unknown))}")
        if recipe is None:
            raise ValueError("quantization_config has no recipe")
        self.quant_method = QUANT_METHOD
        Recipe.from_dict(recipe)
        self.recipe = dict(recipe)
        self.format_version = format_version
        self.content_sha256 = content_sha256
        self.saqsam_version = saqsam_version


@register_quantizer(QUANT_METHOD)
class SaqsamQuantizer(HfQuantizer):  # type: ignore[misc]
    """transformers' hook: builds the packed modules before a checkpoint's tensors are loaded into them."""

    requires_calibration = True

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Scales and activations are float32, whatever dtype was asked for."""
        return torch.float32

    def is_serializable(self) -> bool:
        """`save_pretrained` writes a checkpoint."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes have no gradients."""
        return False

    def get_state_dict_and_metadata(self, model: SamModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What `save_pretrained` writes."""
        tensors = checkpoint_tensors(model)
        model.config.quantization_config.content_sha256 = content_hash(
            tensors, model.config.quantization_config.recipe
        )
        return tensors, {}

    def _process_model_before_weight_loading(
        self, model: SamModel, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        quantization = self.quantization_config
        build_packed_skeleton(model, SamStructure(model.config), Recipe.from_dict(quantization.recipe))
        if checkpoint_files:
            read_tensors(Path(checkpoint_files[0]), model, quantization.recipe, quantization.content_sha256)

    def _process_model_after_weight_loading(self, model: SamModel, **_: Any) -> SamModel:
        with torch.no_grad():
            # Tensors mapped from a file are not aligned, which changes the last bits of some products.
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.data = tensor.data.clone()
        complete_loading(model, SamStructure(model.config), Recipe.from_dict(self.quantization_config.recipe))
        return model.requires_grad_(False)


def quantization_config_of(model: SamModel) -> SaqsamConfig | None:
    """The model's quantization config; None for a float model."""
    found = getattr(model.config, "quantization_config", None)
    return found if isinstance(found, SaqsamConfig) else None


def recipe_of(model: SamModel) -> Recipe:
    """The recipe a model was quantized with.

    Raises:
        ValueError: If the model is not quantized by saqsam.
    """
    config = quantization_config_of(model)
    if config is None:
        raise ValueError("this model is float: it has no recipe")
    return Recipe.from_dict(config.recipe)


def attach_quantizer(model: SamModel, recipe: Mapping[str, Any], content_sha256: str | None = None) -> None:
    """Mark a packed model as quantized, with its recipe as JSON, as transformers does when it loads one."""
    config = SaqsamConfig(recipe, FORMAT_VERSION, content_sha256)
    model.config.quantization_config = config
    model.config.dtype = torch.float32
    model.hf_quantizer = SaqsamQuantizer(config)
    model.is_quantized = True
    model.quantization_method = QUANT_METHOD


def checkpoint_tensors(model: SamModel) -> dict[str, Tensor]:
    """The tensors of a packed model as stored: contiguous, on the CPU, floats but scales as float16."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == _TIED:
            continue
        if tensor.is_floating_point() and not name.endswith(_FLOAT32_SUFFIX):
            tensor = tensor.half()
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    return tensors


def content_hash(tensors: Mapping[str, Tensor], recipe: Mapping[str, Any]) -> str:
    """SHA-256 over the recipe as JSON with sorted keys and the name, dtype, shape and bytes of every tensor.

    Tensors are taken in the order of their names. The recipe is part of it because it decides what is
    computed beyond what the shapes of the tensors say. It is hashed as it is stored, so that what an older version
    wrote without later fields stays valid.
    """
    digest = hashlib.sha256(f"{json.dumps(recipe, sort_keys=True)}\0".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(
    model: SamModel, processor: SamProcessor, folder: str | Path, *, overwrite: bool = False
) -> Path:
    """Write a quantized model as a folder that appears under its name only when whole.

    Args:
        model: What `quantize` returned.
        processor: Its processor; saved beside it.
        folder: Where to.
        overwrite: Replace an existing checkpoint or empty folder; without it anything existing is kept and an
            error raised. Anything else is kept in any case.

    Returns:
        The folder.

    Raises:
        ValueError: If the model is float, or the folder exists and is not to be replaced.
    """
    folder = Path(folder)
    recipe = recipe_of(model)
    check_target(folder, overwrite=overwrite)
    with whole_folder(folder) as partial:
        tensors = checkpoint_tensors(model)
        stored = recipe.to_dict()
        attach_quantizer(model, stored, content_hash(tensors, stored))
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        model.config.architectures = ["SamModel"]
        model.config.save_pretrained(partial)
        processor.save_pretrained(partial)
        (partial / WEIGHTS).chmod(0o644)  # safetensors makes files for their owner alone
    return folder


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Raise ValueError if `save_checkpoint` would refuse the folder; to be asked before the work begins."""
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists; choose another name, or overwrite it (--overwrite)")
    if folder.exists() and not _is_replaceable(folder):
        raise ValueError(
            f"{folder} is not a checkpoint of saqsam and is never overwritten; choose another name"
        )


def _is_replaceable(path: Path) -> bool:
    """Whether a path is an empty folder or a checkpoint of ours."""
    if not path.is_dir():
        return False
    try:
        _read_config(path)
    except ValueError:
        return not any(path.iterdir())
    return True


def load_checkpoint(folder: str | Path, *, device: str | torch.device = "cpu") -> SamModel:
    """Load a packed checkpoint, checking its format version, keys, shapes and hash.

    Args:
        folder: What `save_checkpoint` wrote.
        device: Where the tensors go.

    Returns:
        The quantized model in eval mode.

    Raises:
        ValueError: If a file is missing, cut short, altered, or of another version; the message says which.
    """
    folder = Path(folder)
    config = _read_config(folder)
    try:
        quantization = SaqsamConfig.from_dict(config.quantization_config)
        recipe = Recipe.from_dict(quantization.recipe)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    try:
        with torch.device("meta"):
            model = SamModel(config)
            build_packed_skeleton(model, SamStructure(config), recipe)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"{folder / 'config.json'}: no SamModel has this configuration: {error}") from error
    tensors = read_tensors(folder / WEIGHTS, model, quantization.recipe, quantization.content_sha256)
    expected = model.state_dict()
    state = {name: t.to(device=device, dtype=expected[name].dtype, copy=True) for name, t in tensors.items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.prompt_encoder.shared_embedding.positional_embedding = (
        model.shared_image_embedding.positional_embedding
    )
    model.requires_grad_(False)
    complete_loading(model, SamStructure(config), recipe)
    attach_quantizer(model, quantization.recipe, quantization.content_sha256)
    loaded: SamModel = model.eval()
    return loaded


def _read_config(folder: Path) -> SamConfig:
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    quantization = values.get("quantization_config") if isinstance(values, dict) else None
    if not isinstance(quantization, dict) or quantization.get("quant_method") != QUANT_METHOD:
        raise ValueError(
            f"{folder} is not a checkpoint of saqsam: its config.json has no such quantization_config"
        )
    try:
        return SamConfig.from_dict(values)
    except (StrictDataclassError, ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} is not the configuration of a SAM: {' '.join(str(error).split())}"
        ) from error


def read_tensors(
    path: Path, model: SamModel, recipe: Mapping[str, Any], content_sha256: str | None
) -> dict[str, Tensor]:
    """Read a checkpoint's tensors and check them against the model that is to hold them.

    Args:
        path: The safetensors file.
        model: A model with packed modules; its state dict says which tensors are expected.
        recipe: The recipe as the configuration holds it.
        content_sha256: The hash that tensors and recipe must have.

    Raises:
        ValueError: If the file is damaged, a tensor is missing, unknown or misshapen, or the hash differs.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read, it may be cut short: {error}") from error
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items() if name != _TIED}
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        what = [f"lacks {', '.join(missing[:3])}"] if missing else []
        what += [f"has unknown {', '.join(unknown[:3])}"] if unknown else []
        raise ValueError(f"{path} does not fit its recipe: it {' and '.join(what)}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{path}: {name} must have shape {shape}, has {tuple(tensors[name].shape)}")
    found = content_hash(tensors, recipe)
    if found != content_sha256:
        raise ValueError(
            f"{path} or the recipe in config.json was altered: their content hash is {found[:12]}, "
            f"config.json says {str(content_sha256)[:12]}"
        )
    return tensors
