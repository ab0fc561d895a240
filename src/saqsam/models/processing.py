"""Validate an untrusted `processor_config.json` and turn it into a `SamProcessor`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import SamConfig, SamImageProcessorPil, SamProcessor

from saqsam.models.fields import Field, boolean, integer, is_number, number, take_fields, take_object
from saqsam.utils.errors import CheckpointError, shorten
from saqsam.utils.strict_json import read_json_object

MAX_PIXEL = 1e4
"""Largest magnitude of a normalized pixel: ImageNet's statistics give 2.6, and 1,160 without rescaling by 1/255."""
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Files that may hold the image processor's settings, in transformers' order of precedence."""

_TYPES = ("SamImageProcessor", "SamImageProcessorFast", "SamImageProcessorPil")
_MAX_SIDE = 2**15


def _three_numbers(low: float, high: float) -> Field:
    return Field(
        f"three numbers from {low:g} to {high:g}",
        lambda v: isinstance(v, list) and len(v) == 3 and all(is_number(n) and low <= n <= high for n in v),
    )


def _sides(*names: str) -> Field:
    side = integer(1, _MAX_SIDE)
    return Field(
        f"{{{', '.join(names)}}} as integers from 1 to {_MAX_SIDE}",
        lambda v: (
            isinstance(v, dict)
            and {key for key, value in v.items() if value is not None} == {*names}
            and all(side.accepts(v[name]) for name in names)
        ),
    )


_FIELDS: Mapping[str, Field] = {
    # The model takes square images of one size, which only these two produce.
    "do_resize": Field("true", lambda v: v is True),
    "do_pad": Field("true", lambda v: v is True),
    "do_center_crop": Field("false", lambda v: v is False),
    "do_rescale": boolean(),
    "do_normalize": boolean(),
    "do_convert_rgb": boolean(),
    "size": _sides("longest_edge"),
    "pad_size": _sides("height", "width"),
    "image_mean": _three_numbers(-MAX_PIXEL, MAX_PIXEL),
    "image_std": _three_numbers(1e-6, MAX_PIXEL),
    "rescale_factor": number(1e-9, MAX_PIXEL),
    "resample": Field("one of Pillow's filters, 0 to 5", lambda v: type(v) is int and 0 <= v <= 5),
    # For label masks in training alone.
    "mask_size": _sides("longest_edge"),
    "mask_pad_size": _sides("height", "width"),
}


def build_processor(config: SamConfig) -> SamProcessor:
    """Return the processor that SAM was trained with, at the image size of `config`.

    Args:
        config: Configuration of a model with square images of ``vision_config.image_size`` pixels.

    Returns:
        A processor that resizes the longest edge to the image size, normalizes with ImageNet's mean and standard
        deviation and pads at the right and the bottom. Label masks get the size of the model's low-resolution masks,
        four times the embedding grid.
    """
    size = config.vision_config.image_size
    mask = 4 * (size // config.vision_config.patch_size)
    return SamProcessor(
        SamImageProcessorPil(
            size={"longest_edge": size},
            pad_size={"height": size, "width": size},
            mask_size={"longest_edge": mask},
            mask_pad_size={"height": mask, "width": mask},
        )
    )


def load_processor(folder: Path, config: SamConfig) -> SamProcessor:
    """Return the processor of a folder, or the default processor if the folder has none.

    `processor_config.json` is used if it holds an ``image_processor``, else `preprocessor_config.json`: where a
    folder has both, the former decides, as in transformers.

    Raises:
        CheckpointError: A file is damaged, or does not fit the model; see `parse_sam_processor`.
    """
    present = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]
    if not present:
        return build_processor(config)
    for path in present:
        raw = read_json_object(path)
        if path.name != PROCESSOR_FILES[0] or raw.get("image_processor") is not None or path == present[-1]:
            break
    return parse_sam_processor(raw, config, str(path))


def parse_sam_processor(raw: Mapping[str, Any], config: SamConfig, source: str) -> SamProcessor:
    """Return the `SamProcessor` that a `processor_config.json` or `preprocessor_config.json` describes.

    Absent fields and fields that are null get transformers' defaults. Unknown fields are ignored. The processor
    resizes with Pillow, whether torchvision is installed or not.

    Args:
        raw: The parsed JSON: the settings themselves, or an object that holds them as ``image_processor``.
        config: Configuration of the model that the processor belongs to.
        source: The file's name in error messages.

    Raises:
        CheckpointError: A field has the wrong type or lies outside its limits, the processor is another model's, its
            size differs from the model's, or its statistics would make pixels of more than `MAX_PIXEL`.
    """
    where = f"{source}: "
    if "image_processor" in raw:
        raw = take_object(raw, "image_processor", where)
        where += "image_processor."
    if not raw.keys() & {*_FIELDS, "image_processor_type"}:
        raise CheckpointError(f"{source}: expected the settings of a SAM image processor, found none")
    kind = raw.get("image_processor_type")
    if kind is not None and kind not in _TYPES:
        raise CheckpointError(f"{where}image_processor_type: expected {_TYPES[0]}, got {shorten(kind)}")
    processor = SamProcessor(SamImageProcessorPil(**take_fields(raw, _FIELDS, where)))
    image_processor = processor.image_processor
    size, pad = config.vision_config.image_size, image_processor.pad_size
    if (processor.target_size, pad.height, pad.width) != (size, size, size):
        raise CheckpointError(
            f"{source}: expected images of {size} px as in config.json, got longest edge "
            f"{processor.target_size} padded to {pad.height}x{pad.width}"
        )
    largest = _largest_pixel(image_processor)
    if largest > MAX_PIXEL:
        raise CheckpointError(
            f"{where}rescale_factor, image_mean and image_std: expected normalized pixels of at most {MAX_PIXEL:g}, "
            f"got {largest:g}"
        )
    return processor


def processor_fields(processor: SamProcessor) -> dict[str, Any]:
    """Return every setting of a processor that affects a mask, as plain JSON types in canonical form.

    The list is fixed, so that the result does not depend on the version of transformers. Settings for label masks,
    which only training uses, are excluded.
    """
    settings = processor.image_processor
    return {
        **{name: bool(getattr(settings, name, None)) for name in _FIELDS if name.startswith("do_")},
        "size": int(settings.size["longest_edge"]),
        "pad_size": [int(settings.pad_size["height"]), int(settings.pad_size["width"])],
        "image_mean": _three(settings.image_mean),
        "image_std": _three(settings.image_std),
        "rescale_factor": float(settings.rescale_factor),
        "resample": int(settings.resample),
    }


def _three(value: Any) -> list[float]:
    return [float(value)] * 3 if isinstance(value, int | float) else [float(number) for number in value]


def _largest_pixel(processor: SamImageProcessorPil) -> float:
    """Return the largest magnitude that a normalized 8-bit pixel can have."""
    ends = [0.0, 255.0 * (processor.rescale_factor if processor.do_rescale else 1.0)]
    if not processor.do_normalize:
        return max(ends)
    statistics = zip(processor.image_mean, processor.image_std, strict=True)
    return float(max(abs(end - mean) / std for mean, std in statistics for end in ends))
