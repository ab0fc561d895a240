"""Settings that all image processors share, and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saqsam.models.fields import Field, boolean, integer, is_number, number
from saqsam.utils.errors import CheckpointError, shorten

MAX_PIXEL = 1e4
"""Largest magnitude of a normalized pixel: ImageNet's statistics give 2.6, and 1,160 without rescaling by 1/255."""
_MAX_SIDE = 2**15


def three_numbers(low: float, high: float) -> Field:
    """Return a field of three numbers from `low` to `high`."""
    return Field(
        f"three numbers from {low:g} to {high:g}",
        lambda v: isinstance(v, list) and len(v) == 3 and all(is_number(n) and low <= n <= high for n in v),
    )


def sides(*names: str) -> Field:
    """Return a field of JSON objects that give these sides, in pixels, and no others."""
    side = integer(1, _MAX_SIDE)
    return Field(
        f"{{{', '.join(names)}}} as integers from 1 to {_MAX_SIDE}",
        lambda v: (
            isinstance(v, dict)
            and {key for key, value in v.items() if value is not None} == {*names}
            and all(side.accepts(v[name]) for name in names)
        ),
    )


PIXEL_FIELDS: Mapping[str, Field] = {
    "do_resize": Field("true", lambda v: v is True),
    "do_center_crop": Field("false", lambda v: v is False),
    "do_rescale": boolean(),
    "do_normalize": boolean(),
    "do_convert_rgb": boolean(),
    "image_mean": three_numbers(-MAX_PIXEL, MAX_PIXEL),
    "image_std": three_numbers(1e-6, MAX_PIXEL),
    "rescale_factor": number(1e-9, MAX_PIXEL),
    "resample": Field("one of Pillow's filters, 0 to 5", lambda v: type(v) is int and 0 <= v <= 5),
}
"""Fields of every image processor."""


def pixel_fields(settings: Any) -> dict[str, Any]:
    """Return the values of `PIXEL_FIELDS` of an image processor, as plain JSON types in canonical form."""
    return {
        **{name: bool(getattr(settings, name, None)) for name in PIXEL_FIELDS if name.startswith("do_")},
        "image_mean": _three(settings.image_mean),
        "image_std": _three(settings.image_std),
        "rescale_factor": float(settings.rescale_factor),
        "resample": int(settings.resample),
    }


def check_type(raw: Mapping[str, Any], types: tuple[str, ...], where: str) -> None:
    """Raise CheckpointError if settings are those of another image processor; the first type is the canonical one."""
    kind = raw.get("image_processor_type")
    if kind is not None and kind not in types:
        raise CheckpointError(f"{where}image_processor_type: expected {types[0]}, got {shorten(kind)}")


def check_pixels(settings: Any, where: str) -> None:
    """Raise CheckpointError if normalized pixels of an image processor could exceed `MAX_PIXEL`."""
    largest = _largest_pixel(settings)
    if largest > MAX_PIXEL:
        raise CheckpointError(
            f"{where}rescale_factor, image_mean and image_std: expected normalized pixels of at most {MAX_PIXEL:g}, "
            f"got {largest:g}"
        )


def _three(value: Any) -> list[float]:
    return [float(value)] * 3 if isinstance(value, int | float) else [float(number) for number in value]


def _largest_pixel(settings: Any) -> float:
    """Return the largest magnitude that a normalized 8-bit pixel can have."""
    ends = [0.0, 255.0 * (settings.rescale_factor if settings.do_rescale else 1.0)]
    if not settings.do_normalize:
        return max(ends)
    statistics = zip(settings.image_mean, settings.image_std, strict=True)
    return float(max(abs(end - mean) / std for mean, std in statistics for end in ends))
