"""The `HfQuantizer` behind `SamModel.from_pretrained` and `save_pretrained` of packed checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SamConfig, SamModel, SamProcessor
from transformers.quantizers.base import HfQuantizer

from saqsam.checkpoint.casts import check_compute_dtype
from saqsam.checkpoint.config import FORMAT_VERSION, QUANT_METHOD, SaqsamConfig
from saqsam.checkpoint.dequantize import dequantized
from saqsam.checkpoint.hashing import content_hash, hash_header, processor_hash
from saqsam.checkpoint.model_methods import use_float_methods, use_packed_methods
from saqsam.checkpoint.tensors import check_headers, check_values, checkpoint_tensors, verify_tensors
from saqsam.convert.pack import (
    build_packed_skeleton,
    check_needs_no_calibration,
    complete_loading,
    pack_without_calibration,
)
from saqsam.convert.plan import plan_quantization
from saqsam.models.building import check_float_names
from saqsam.models.configuration import check_config
from saqsam.models.processing import PROCESSOR_FILES, build_processor, load_processor
from saqsam.models.weights import safetensors_files
from saqsam.recipes.recipe import Recipe
from saqsam.utils.errors import CheckpointError


class SaqsamQuantizer(HfQuantizer):  # type: ignore[misc]
    """Load packed checkpoints into packed modules and verify them, or quantize float models while they are loaded.

    Quantization on load is limited to recipes that need no calibration images.
    """

    _first_file: Path | None = None
    """First file of the checkpoint that is being loaded."""
    _compute_dtype = torch.float32
    """Requested dtype of the model."""

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Check that a float model can be quantized while it is loaded.

        Raises:
            ValueError: The recipe needs calibration images.
        """
        if not self.pre_quantized:
            check_needs_no_calibration(Recipe.from_dict(self.quantization_config.recipe))

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return float32, in which tensors are read and verified; the model is cast afterwards.

        Raises:
            ValueError: The dtype is neither float32 nor bfloat16.
        """
        self._compute_dtype = check_compute_dtype(dtype)
        return torch.float32

    def update_attn_implementation(self, config: SamConfig) -> SamConfig:
        """Check the configuration of the model, in the only hook that runs before the model is built."""
        check_config(config, "config.json")
        # `dtype="auto"`, transformers' default, would read the dtype from the file, where no hash covers it.
        config.dtype = torch.float32
        return config

    def is_serializable(self) -> bool:
        """Return True: `save_pretrained` writes a checkpoint."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Return False: codes have no gradients."""
        return False

    def get_state_dict_and_metadata(self, model: SamModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors that `save_pretrained` writes, and update the hash in the configuration."""
        tensors = checkpoint_tensors(model)
        config: SaqsamConfig = model.config.quantization_config
        processor_sha256 = config.processor_sha256 or processor_hash(build_processor(model.config))
        attach_quantizer(model, hashed_config(model, tensors, config.recipe, processor_sha256))
        return tensors, {}

    def _process_model_before_weight_loading(
        self, model: SamModel, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        paths = [Path(file) for file in checkpoint_files or ()]
        if not self.pre_quantized:
            check_float_names(paths, model)
            self._first_file = paths[0] if paths else None
            return
        recipe = Recipe.from_dict(self.quantization_config.recipe)
        try:
            build_packed_skeleton(model, plan_quantization(model.config, recipe))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"config.json: the recipe does not fit the model: {error}") from error
        if paths:
            listed = safetensors_files(paths[0].parent)
            check_headers({path: listed.get(path) for path in paths}, model)
            self._first_file = paths[0]

    def _process_model_after_weight_loading(self, model: SamModel, **_: Any) -> SamModel:
        with torch.no_grad():
            # Tensors mapped from a file are not aligned, which changes the last bits of some products.
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.data = tensor.data.clone()
        if not self.pre_quantized:
            return self._quantize(model).to(self._compute_dtype)
        if self._first_file is not None:
            # transformers has read the data by now. Cast to float16, floats equal the stored tensors again.
            verify_tensors(checkpoint_tensors(model), model, self.quantization_config, self._first_file)
            folder = self._first_file.parent
            if not _is_partial_download(folder):
                verified_processor(folder, model.config, self.quantization_config)
        recipe = Recipe.from_dict(self.quantization_config.recipe)
        complete_loading(model, plan_quantization(model.config, recipe))
        use_packed_methods(model)
        return model.requires_grad_(False).to(self._compute_dtype)

    def _quantize(self, model: SamModel) -> SamModel:
        """Quantize the weights of a float model that transformers has loaded."""
        recipe = self.quantization_config.recipe
        pack_without_calibration(model, Recipe.from_dict(recipe))
        folder = None if self._first_file is None else self._first_file.parent
        processor = build_processor(model.config) if folder is None else load_processor(folder, model.config)
        attach_quantizer(
            model, SaqsamConfig(recipe, FORMAT_VERSION, processor_sha256=processor_hash(processor))
        )
        return model

    def _dequantize(self, model: SamModel, dtype: torch.dtype | str | None = None) -> SamModel:
        for name, child in dequantized(model).named_children():
            setattr(model, name, child)
        use_float_methods(model)
        if isinstance(dtype, str):  # `save_pretrained` leaves a name in the configuration
            dtype = getattr(torch, dtype)
        return model.to(dtype)


def attach_quantizer(model: SamModel, config: SaqsamConfig) -> None:
    """Mark a model with packed modules as quantized, as transformers does when it loads one, in place."""
    model.config.quantization_config = config
    model.config.dtype = torch.float32
    model.hf_quantizer = SaqsamQuantizer(config)
    model.is_quantized = True
    model.quantization_method = QUANT_METHOD
    use_packed_methods(model)


def hashed_config(
    model: SamModel, tensors: Mapping[str, Tensor], recipe: Mapping[str, Any], processor_sha256: str
) -> SaqsamConfig:
    """Return the quantization config of a model that is about to be saved, with its content hash.

    Args:
        model: The quantized model; left unchanged.
        tensors: Its tensors by name, from `checkpoint_tensors`.
        recipe: The recipe as JSON.
        processor_sha256: Hash of its processor, from `processor_hash`.

    Raises:
        ValueError: The model was cast to bfloat16.
        CheckpointError: A tensor holds values that no checkpoint may hold, such as a scale that is not finite.
    """
    if model.dtype != torch.float32:
        raise ValueError(
            "dtype: this model was cast to bfloat16, which lost digits; save one that was loaded in float32"
        )
    check_values(tensors, model, Recipe.from_dict(recipe), "this model")
    content_sha256 = content_hash(tensors, hash_header(model.config, recipe, processor_sha256))
    return SaqsamConfig(recipe, FORMAT_VERSION, content_sha256, processor_sha256)


def verified_processor(folder: Path, config: SamConfig, quantization: SaqsamConfig) -> SamProcessor:
    """Load the processor of a checkpoint and check that it is the one that the checkpoint was saved with.

    A folder without a processor file has the default processor. Format version 1 stores no hash of the processor.

    Raises:
        CheckpointError: The processor differs from the saved one, or its file is damaged.
    """
    processor = load_processor(folder, config)
    is_hashed = quantization.format_version > 1
    if is_hashed and processor_hash(processor) != quantization.processor_sha256:
        present = [name for name in PROCESSOR_FILES if (folder / name).is_file()]
        raise CheckpointError(
            f"{folder / (present or PROCESSOR_FILES)[0]}: expected the processor that this checkpoint was measured "
            f"with, got {'another one: it was altered' if present else 'no file'}"
        )
    return processor


def _is_partial_download(folder: Path) -> bool:
    """Return whether a folder is a hub snapshot without the processor.

    `SamModel.from_pretrained` downloads only the files of the model.
    """
    is_snapshot = folder.parent.name == "snapshots"
    return is_snapshot and not any((folder / name).is_file() for name in PROCESSOR_FILES)
