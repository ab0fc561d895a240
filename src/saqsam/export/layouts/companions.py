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


def write_anylabeling_yaml(folder: Path, model: Description, files: Mapping[str, str]) -> None:
    """Write `config.yaml`, with which AnyLabeling and X-AnyLabeling load a custom model."""
    fields: Mapping[str, Any] = {
        "type": "segment_anything",
        "name": model.label,
        "display_name": f"Segment Anything ({model.name}, saqsam)",
        "encoder_model_path": files["encoder"],
        "decoder_model_path": files["decoder"],
        "input_size": 1024,
        "max_width": 1024,
        "max_height": 682,
    }
    # JSON values are YAML values.
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in fields.items()]
    (folder / "config.yaml").write_text("".join(lines), encoding="utf-8")


def write_transformers_js_json(folder: Path, model: Description, files: Mapping[str, str]) -> None:
    """Write `config.json` and `preprocessor_config.json`, which transformers.js reads before the graphs."""
    config = {
        **model.config,
        "transformers.js_config": {"dtype": _transformers_js_dtype(model.weight_bits)},
    }
    settings = model.processor
    pad_height, pad_width = settings["pad_size"]
    preprocessor = {
        **{name: value for name, value in settings.items() if name.startswith("do_")},
        "image_mean": settings["image_mean"],
        "image_processor_type": "SamImageProcessor",
        "image_std": settings["image_std"],
        "pad_size": {"height": pad_height, "width": pad_width},
        "processor_class": "SamProcessor",
        "resample": settings["resample"],
        "rescale_factor": settings["rescale_factor"],
        "size": {"longest_edge": settings["size"]},
    }
    for name, content in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
