"""Write a quantized SAM as a static web page that computes in the browser."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from transformers import SamModel

from saqsam.export.formats import PARTS
from saqsam.export.manifest import LOW_RES_OUTPUTS
from saqsam.export.onnx.writer import write_onnx
from saqsam.export.web.page import SAMPLES, local_page
from saqsam.export.web.runtime import check_runtime_files, copy_runtime, runtime_details
from saqsam.models.registry import family_of


def write_web(
    model: SamModel,
    folder: Path,
    metadata: dict[str, str],
    *,
    single_mask: bool,
    web_runtime: Path | None = None,
) -> dict[str, Any]:
    """Write the graphs, the page and, if it is given, onnxruntime-web into a folder.

    Args:
        model: The model.
        folder: Existing folder.
        metadata: Texts that are stored in both graphs, as metadata properties.
        single_mask: Let the decoder return one mask per prompt.
        web_runtime: Unpacked npm package of onnxruntime-web to copy from; None lets the page load it from a CDN.

    Returns:
        What the page reads of the model, for the manifest.

    Raises:
        ExportError: The recipe cannot be expressed by ONNX operators.
        ValueError: The package is another version, or not onnxruntime-web.
    """
    runtime = None if web_runtime is None else check_runtime_files(web_runtime)
    # The page resizes the mask that it shows; the graph would resize all four.
    details = write_onnx(model, folder, metadata, single_mask=single_mask, decoder_outputs=LOW_RES_OUTPUTS)
    page = local_page()
    (folder / "samples").mkdir()
    for name, content in page.items():
        (folder / name).write_bytes(content)
    if runtime is not None:
        copy_runtime(runtime, folder)
    return {
        **details,
        **_model_details(model.config),
        "bytes": {f"{part}.onnx": (folder / f"{part}.onnx").stat().st_size for part in PARTS},
        "samples": list(SAMPLES),
        "runtime": runtime_details(is_copied=runtime is not None),
        "page": {name: hashlib.sha256(content).hexdigest() for name, content in page.items()},
    }


def _model_details(config: Any) -> dict[str, Any]:
    """Return the sizes and rules of a model that the page needs beside its processor."""
    family = family_of(config)
    spec, rule = family.input_spec(config), family.stability_rule(config)
    return {
        "side": spec.image_size,
        "mask_side": spec.mask_size,
        "pads_boxes": spec.pads_boxes,
        "stability": None if rule is None else {name: float(value) for name, value in rule._asdict().items()},
    }
