"""Files beside the graphs of a layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saqsam.export.layouts.contract import Description


def transformers_js_suffix(weight_bits: int | None) -> str:
    """Return the suffix by which transformers.js finds the files of a `dtype`."""
    return {"fp32": "", "q8": "_quantized", "q4": "_q4"}[_transformers_js_dtype(weight_bits)]


def _transformers_js_dtype(weight_bits: int | None) -> str:
    return "fp32" if weight_bits is None else "q4" if weight_bits <= 4 else "q8"


def write_sam_yaml(folder: Path, model: Description, files: Mapping[str, str]) -> None:
    """Write `config.yaml`, with which AnyLabeling and X-AnyLabeling load a custom model."""
    fields = _anylabeling_fields(model, files, "Segment Anything")
    _write_yaml(folder / "config.yaml", {"type": "segment_anything", **fields, **_ANYLABELING_SIZES})


def write_sam_hq_yaml(folder: Path, model: Description, files: Mapping[str, str]) -> None:
    """Write `x_anylabeling.yaml`, with which X-AnyLabeling loads a custom model; AnyLabeling has no type for it."""
    fields = _anylabeling_fields(model, files, "SAM-HQ")
    _write_yaml(folder / "x_anylabeling.yaml", {"type": "sam_hq", **fields, **_ANYLABELING_SIZES})


def write_sam2_yaml(folder: Path, model: Description, files: Mapping[str, str]) -> None:
    """Write `config.yaml`, with which AnyLabeling loads a custom model, and `x_anylabeling.yaml` for X-AnyLabeling.

    AnyLabeling has one type for both families and inspects the files; X-AnyLabeling has one type for each.
    """
    fields = _anylabeling_fields(model, files, "Segment Anything 2")
    _write_yaml(folder / "config.yaml", {"type": "segment_anything", **fields, **_ANYLABELING_SIZES})
    _write_yaml(folder / "x_anylabeling.yaml", {"type": "segment_anything_2", **fields})


_ANYLABELING_SIZES = {"input_size": 1024, "max_width": 1024, "max_height": 682}
"""Fields that AnyLabeling requires for every model, and reads for SAM v1."""


def _anylabeling_fields(model: Description, files: Mapping[str, str], title: str) -> dict[str, Any]:
    return {
        "name": model.label,
        "display_name": f"{title} ({model.name}, saqsam)",
        "encoder_model_path": files["encoder"],
        "decoder_model_path": files["decoder"],
    }


def _write_yaml(path: Path, fields: Mapping[str, Any]) -> None:
    # JSON values are YAML values.
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in fields.items()]
    path.write_text("".join(lines), encoding="utf-8")


def write_sam_json(folder: Path, model: Description, files: Mapping[str, str]) -> None:
    """Write `config.json` and `preprocessor_config.json`, which transformers.js reads before the graphs."""
    pad_height, pad_width = model.processor["pad_size"]
    sizes = {
        "pad_size": {"height": pad_height, "width": pad_width},
        "size": {"longest_edge": model.processor["size"]},
    }
    _write_json(folder, model, "Sam", sizes)


def write_sam2_json(folder: Path, model: Description, files: Mapping[str, str]) -> None:
    """Write the files of `write_sam_json` for an image processor that stretches images to a square."""
    height, width = model.processor["size"]
    _write_json(folder, model, "Sam2", {"size": {"height": height, "width": width}})


def _write_json(folder: Path, model: Description, prefix: str, sizes: Mapping[str, Any]) -> None:
    config = {
        **model.config,
        "transformers.js_config": {"dtype": _transformers_js_dtype(model.weight_bits)},
    }
    settings = model.processor
    preprocessor = {
        **{name: value for name, value in settings.items() if name.startswith("do_")},
        **{name: settings[name] for name in ("image_mean", "image_std", "resample", "rescale_factor")},
        **sizes,
        "image_processor_type": f"{prefix}ImageProcessor",
        "processor_class": f"{prefix}Processor",
    }
    for name, content in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
