"""Export a model: check the request, write the files of a format, and record them in a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import SamModel, SamProcessor

from saqsam.checkpoint import (
    checkpoint_tensors,
    content_hash,
    hash_header,
    processor_hash,
    quantization_config_of,
    recipe_of,
)
from saqsam.export.formats import DEFAULT_FORMAT, FORMATS
from saqsam.export.layouts.catalog import check_layout
from saqsam.export.layouts.contract import OWN_LAYOUT, Description
from saqsam.export.manifest import FLOAT_NAME, MANIFEST, Manifest, file_hash, is_export
from saqsam.models.processing import processor_fields
from saqsam.models.registry import family_of
from saqsam.recipes.deployment import check_uniform_inputs
from saqsam.recipes.recipe import Recipe
from saqsam.utils.atomic_write import atomic_folder
from saqsam.utils.extras import install_command


def export_model(
    model: SamModel,
    processor: SamProcessor,
    folder: str | Path,
    *,
    format: str = DEFAULT_FORMAT,
    layout: str = OWN_LAYOUT,
    single_mask: bool = False,
    opset: int | None = None,
    free_batch: bool = False,
    web_runtime: str | Path | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a model as files that other runtimes run.

    A float model becomes a float32 graph, whatever the dtype of its parameters.

    Args:
        model: Quantized or float model, as `saqsam.load` returns it.
        processor: Processor of the model, saved beside the files.
        folder: Folder to write, atomically: it appears when it is complete.
        format: One of `FORMATS`: `onnx`, `openvino`, `executorch` or `web`.
        layout: Files, names and shapes: `saqsam`, or those of other clients, one of
            `saqsam.export.layouts.catalog.LAYOUTS`, which saqsam itself does not load.
        single_mask: Let the decoder return one mask per prompt, chosen as the official export chooses it.
        opset: ONNX operator set of the format `onnx`, from 17 for older runtimes to 21; None for 21, which weights of
            up to 4 bits need.
        free_batch: Let the encoder of the format `onnx` take any number of images per call instead of one. The decoder
            always takes one embedding for all prompts, or one per prompt.
        web_runtime: Unpacked npm package of onnxruntime-web, which the format `web` copies into the folder. None lets
            the page load the same files from a CDN.
        overwrite: Replace an existing export.

    Returns:
        The manifest, which is also written as `export.json`.

    Raises:
        ValueError: The target's integer kernels cannot run the recipe (the message names the field to change), the
            format takes no float models, the layout does not fit the model or the other options, a package is missing,
            `web_runtime` is not the expected version, or the folder exists and `overwrite` is false.
    """
    folder = Path(folder)
    web_runtime = None if web_runtime is None else Path(web_runtime)
    check_export(
        format,
        folder,
        layout=layout,
        single_mask=single_mask,
        opset=opset,
        free_batch=free_batch,
        web_runtime=web_runtime,
        overwrite=overwrite,
    )
    source = _check_source(model, processor, format)
    plain = model.config.to_dict()
    plain.pop("quantization_config", None)
    metadata = {"saqsam_checkpoint": source.checkpoint}
    if source.recipe is not None:
        metadata = {"saqsam_recipe": source.recipe.to_json(), **metadata}
    options: dict[str, Any] = {"opset": opset, "free_batch": free_batch or None, "web_runtime": web_runtime}
    given = {name: value for name, value in options.items() if value is not None}
    with atomic_folder(folder) as partial:
        if layout == OWN_LAYOUT:
            write = FORMATS[format].load_writer()
            details = write(model, partial, metadata, single_mask=single_mask, **given)
            names = sorted(FORMATS[format].file_names())
            processor.save_pretrained(partial)
        else:
            from saqsam.export.layouts.write import contract_of, write_layout

            single_mask = contract_of(layout, model.config).single_mask
            fields = family_of(model.config).format.client_fields(plain)
            description = source.describe(fields, processor_fields(processor))
            names, details = write_layout(model, partial, layout, description, metadata, **given)
        manifest = Manifest(
            format=format,
            layout=layout,
            single_mask=single_mask,
            recipe=None if source.recipe is None else source.recipe.to_dict(),
            name=source.name,
            checkpoint=source.checkpoint,
            config=plain,
            processor=processor_fields(processor),
            files={name: file_hash(partial / name) for name in names},
            details=details,
        )
        (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


@dataclass(frozen=True)
class _Source:
    """The model that an export is made from.

    Attributes:
        recipe: Its recipe; None for a float model.
        checkpoint: Content hash of its tensors, configuration and processor.
    """

    recipe: Recipe | None
    checkpoint: str

    @property
    def name(self) -> str:
        """Name of the recipe, or `float`."""
        return FLOAT_NAME if self.recipe is None else self.recipe.name

    def describe(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
        """Return what the files of a layout say of the model."""
        bits = None if self.recipe is None else self.recipe.weights.bits
        return Description(self.name, self.checkpoint, config, processor, bits)


def _check_source(model: SamModel, processor: SamProcessor, format: str) -> _Source:
    """Identify a model, and check that a format can express it.

    Raises:
        ValueError: It cannot.
    """
    config = quantization_config_of(model)
    if config is None:
        if not FORMATS[format].accepts_float:
            others = ", ".join(name for name, entry in FORMATS.items() if entry.accepts_float)
            raise ValueError(
                f"this model is float, and {format} takes quantized models only: quantize it first "
                f"(saqsam quantize ... --deploy-for {format}), or export to {others}"
            )
        header = hash_header(model.config, None, processor_hash(processor))
        tensors = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        return _Source(None, content_hash(tensors, header))
    recipe = recipe_of(model)
    if recipe.activations is None:
        raise ValueError(
            f"{recipe.name} leaves activations float, and exports have integer products: quantize them too, or "
            "export model.dequantize(), which is float"
        )
    check_uniform_inputs(recipe, format)
    header = hash_header(model.config, config.recipe, config.processor_sha256)
    return _Source(recipe, config.content_sha256 or content_hash(checkpoint_tensors(model), header))


def check_export(
    format: str,
    folder: Path,
    *,
    layout: str = OWN_LAYOUT,
    single_mask: bool = False,
    opset: int | None = None,
    free_batch: bool = False,
    web_runtime: Path | None = None,
    overwrite: bool,
) -> None:
    """Check that `export_model` can write a format to a folder; call it before a model is loaded.

    Raises:
        ValueError: The format or the layout is unknown, both do not fit together, a package is missing, `web_runtime`
            is not the expected version, or the folder must not be replaced.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    opsets = FORMATS[format].opsets
    if opset is not None and opset not in opsets:
        expected = f"expected {opsets[0]} to {opsets[-1]}" if opsets else f"the format {format} has none"
        raise ValueError(f"opset: {expected}, got {opset}")
    if free_batch and not FORMATS[format].has_free_batch:
        raise ValueError(f"free_batch: the encoder of the format {format} takes one image per call")
    if web_runtime is not None:
        if not FORMATS[format].has_web_runtime:
            raise ValueError(f"web_runtime: the format {format} has no page")
        from saqsam.export.web.runtime import check_runtime_files

        check_runtime_files(web_runtime)
    check_layout(layout, format, single_mask=single_mask, free_batch=free_batch)
    for package in FORMATS[format].missing_packages():
        raise ValueError(
            f"{format} needs the package {package}: {install_command(FORMATS[format].extra or format)}"
        )
    if not folder.exists():
        return
    if not overwrite:
        raise ValueError(f"{folder} exists; choose another name, or pass overwrite=True")
    if not (folder.is_dir() and (is_export(folder) or not any(folder.iterdir()))):
        raise ValueError(f"{folder} is not an export of saqsam and is never overwritten; choose another name")
