"""Processors of any family: build the default one, read one from a folder, and list what affects a mask."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from saqsam.models.family import ModelFamily
from saqsam.models.fields import take_object
from saqsam.models.format import Canvas
from saqsam.models.processors import padded, stretched
from saqsam.models.processors.stretched import StretchImageProcessor
from saqsam.models.registry import family_of
from saqsam.utils.strict_json import read_json_object

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Files that may hold the image processor's settings, in transformers' order of precedence."""

_CANVASES: Mapping[Canvas, ModuleType] = {"pad": padded, "stretch": stretched}


def build_processor(config: Any) -> Any:
    """Return the processor that a model's family was trained with, at the image size of its configuration.

    Args:
        config: Configuration of a model.

    Returns:
        A processor of transformers whose image processor uses Pillow, whether torchvision is installed or not. It
        normalizes with the family's mean and standard deviation. Label masks get the size of the low-resolution masks.
    """
    family = family_of(config)
    spec = family.input_spec(config)
    canvas = _CANVASES[family.format.canvas]
    return family.format.processor_class(canvas.build(spec.image_size, spec.mask_size, *_kinds(family)))


def load_processor(folder: Path, config: Any) -> Any:
    """Return the processor of a folder, or the default processor if the folder has none.

    `processor_config.json` is used if it holds an ``image_processor``, else `preprocessor_config.json`: where a
    folder has both, the former decides, as in transformers.

    Raises:
        CheckpointError: A file is damaged, or does not fit the model; see `parse_processor`.
    """
    present = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]
    if not present:
        return build_processor(config)
    for path in present:
        raw = read_json_object(path)
        if path.name != PROCESSOR_FILES[0] or raw.get("image_processor") is not None or path == present[-1]:
            break
    return parse_processor(raw, config, str(path))


def parse_processor(raw: Mapping[str, Any], config: Any, source: str) -> Any:
    """Return the processor that a `processor_config.json` or `preprocessor_config.json` describes.

    Absent fields and fields that are null get transformers' defaults. Unknown fields are ignored. The processor
    resizes with Pillow, whether torchvision is installed or not.

    Args:
        raw: The parsed JSON: the settings themselves, or an object that holds them as ``image_processor``.
        config: Configuration of the model that the processor belongs to.
        source: The file's name in error messages.

    Raises:
        CheckpointError: A field has the wrong type or lies outside its limits, the processor is another model's, its
            size differs from the model's, or its statistics would make pixels too large.
    """
    where = f"{source}: "
    if "image_processor" in raw:
        raw = take_object(raw, "image_processor", where)
        where += "image_processor."
    family = family_of(config)
    size = family.input_spec(config).image_size
    image_processor = _CANVASES[family.format.canvas].parse(raw, size, source, where, *_kinds(family))
    return family.format.processor_class(image_processor)


def _kinds(family: ModelFamily) -> tuple[type, ...]:
    """Return the family's own class of image processors, if it has one."""
    kind = family.format.image_processor_class
    return () if kind is None else (kind,)


def resize_processor(processor: Any, config: Any) -> Any:
    """Return a processor at the image size of a configuration, with its other settings unchanged.

    Args:
        processor: Processor of the same model, perhaps at another size. One of this size is returned as it is.
        config: Configuration of the model.
    """
    if input_side(processor) == family_of(config).input_spec(config).image_size:
        return processor
    default = build_processor(config).image_processor
    image_processor = copy.deepcopy(processor.image_processor)
    for name in ("size", "pad_size", "mask_size", "mask_pad_size"):
        setattr(image_processor, name, getattr(default, name))
    return family_of(config).format.processor_class(image_processor)


def processor_fields(processor: Any) -> dict[str, Any]:
    """Return every setting of a processor that affects a mask, as plain JSON types in canonical form.

    The list is fixed, so that the result does not depend on the version of transformers. Settings for label masks,
    which only training uses, are excluded.
    """
    settings = processor.image_processor
    fields: dict[str, Any] = (stretched if is_stretched(processor) else padded).fields(settings)
    return fields


def is_stretched(processor: Any) -> bool:
    """Return whether a processor stretches images to a square, rather than padding them."""
    return isinstance(processor.image_processor, StretchImageProcessor)


def input_side(processor: Any) -> int:
    """Return the side of the square input that a processor makes, in pixels."""
    settings = processor.image_processor
    return int((settings.size if is_stretched(processor) else settings.pad_size)["height"])
