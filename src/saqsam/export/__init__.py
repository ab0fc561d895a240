"""Quantized models as files for other runtimes, encoder and decoder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from transformers import SamModel, SamProcessor

from saqsam.checkpoint import (
    checkpoint_tensors,
    content_hash,
    hash_header,
    quantization_config_of,
    recipe_of,
)
from saqsam.export.manifest import FORMATS, MANIFEST, Manifest, file_hash, is_export, read_manifest
from saqsam.models.processing import processor_fields
from saqsam.utils.atomic_write import whole_folder

_NEEDS = {"onnx": ("onnx",), "openvino": ("onnx", "openvino"), "executorch": ("executorch",)}


def export_model(
    model: SamModel,
    processor: SamProcessor,
    folder: str | Path,
    *,
    format: str = "onnx",
    single_mask: bool = False,
    overwrite: bool = False,
) -> Manifest:
    """Write a quantized model as files that other runtimes run.

    Args:
        model: Quantized model, as `saqsam.load` gives it of a checkpoint.
        processor: Its processor; saved beside the files.
        folder: Where to; appears under its name only when whole.
        format: `onnx`, `openvino` or `executorch`.
        single_mask: Let the decoder return one mask a prompt, chosen as the official export chooses it.
        overwrite: Replace an export that is there.

    Returns:
        What `export.json` in the folder says.

    Raises:
        ValueError: If the model is float, the recipe has what the target's integer kernels cannot run (the message
            names the field to change), a package is missing, or the folder exists and is not to be replaced.
    """
    folder = Path(folder)
    check_export(format, folder, overwrite=overwrite)
    config = quantization_config_of(model)
    if config is None:
        raise ValueError(
            "this model is float: quantize it first (saqsam quantize ... --deploy), then export the checkpoint"
        )
    recipe = recipe_of(model)
    if recipe.activations is None:
        raise ValueError(
            f"{recipe.name} leaves activations float, and exports have integer products: quantize them too, or "
            "export model.dequantize() with other tools"
        )
    header = hash_header(model.config, config.recipe, config.processor_sha256)
    checkpoint = config.content_sha256 or content_hash(checkpoint_tensors(model), header)
    plain = model.config.to_dict()
    plain.pop("quantization_config", None)
    metadata = {"saqsam_recipe": recipe.to_json(), "saqsam_checkpoint": checkpoint}
    with whole_folder(folder) as partial:
        details = _write(format, model, partial, metadata, single_mask)
        files = {path.name: file_hash(path) for path in sorted(partial.iterdir())}
        processor.save_pretrained(partial)
        manifest = Manifest(
            format=format,
            single_mask=single_mask,
            recipe=recipe.to_dict(),
            name=recipe.name,
            checkpoint=checkpoint,
            config=plain,
            processor=processor_fields(processor),
            files=files,
            details=details,
        )
        (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _write(
    format: str, model: SamModel, folder: Path, metadata: dict[str, str], single_mask: bool
) -> dict[str, Any]:
    """Write the files of a format, whose packages are extras; what `export.json` says of them."""
    if format == "executorch":
        from saqsam.export.executorch.writer import write_executorch

        return write_executorch(model, folder, single_mask=single_mask)
    from saqsam.export.onnx.sam.encoder_attention import EncoderOptions

    if format == "openvino":
        from saqsam.export.openvino import write_openvino as write
    else:
        from saqsam.export.onnx.writer import write_onnx as write
    write(model, folder, metadata, single_mask=single_mask, options=EncoderOptions())
    return {}


def check_export(format: str, folder: Path, *, overwrite: bool) -> None:
    """Raise ValueError if `export_model` would refuse; to be asked before a model is loaded."""
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    for package in _NEEDS[format]:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{format} needs the package {package}: pip install 'saqsam[{format}]'")
    if not folder.exists():
        return
    if not overwrite:
        raise ValueError(f"{folder} exists; choose another name, or overwrite it (--overwrite)")
    if not (folder.is_dir() and (is_export(folder) or not any(folder.iterdir()))):
        raise ValueError(f"{folder} is not an export of saqsam and is never overwritten; choose another name")


__all__ = ["FORMATS", "Manifest", "check_export", "export_model", "is_export", "read_manifest"]
