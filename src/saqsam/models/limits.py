"""Limits of configurations that come from untrusted JSON, for every family.

All limits lie far above SAM-H (32 layers of width 1280, 64 x 64 patches).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saqsam.models.fields import Field, choice, integer, number
from saqsam.utils.errors import CheckpointError

MAX_LAYERS = 256
MAX_WIDTH = 16384
MAX_HEADS = 256
MAX_IMAGE_SIZE = 8192
"""Largest image size, in pixels per side."""
MAX_GRID = 256
"""Largest number of patches per side of the image."""
MAX_SPARE_WINDOW = 64
"""Side of the largest attention window that may exceed the grid; a larger one would be mostly padding."""
MAX_MASKS = 63
"""Largest number of masks that the decoder predicts in addition to the single one."""
MAX_PARAMETERS = 10**10

CHANNELS = 3
"""Images are RGB."""

ACTIVATIONS = (
    *(
        "gelu",
        "gelu_python",
        "gelu_accurate",
        "gelu_fast",
        "gelu_new",
        "gelu_python_tanh",
        "gelu_pytorch_tanh",
    ),
    *("quick_gelu", "relu", "silu", "swish"),
)
"""Names of transformers' activations that can be quantized and exported: stateless, of one input."""

_DTYPES = ("float16", "bfloat16", "float32", "float64")

EPS = number(1e-12, 0.1)
WIDTH = integer(1, MAX_WIDTH)
IMAGE_SIZE = integer(1, MAX_IMAGE_SIZE)
RGB = Field(f"{CHANNELS}, for RGB images", lambda v: type(v) is int and v == CHANNELS)
LAYER_INDEXES = Field(
    f"a list of layer indexes from 0 to {MAX_LAYERS - 1}",
    lambda value: (
        isinstance(value, list)
        and len(value) <= MAX_LAYERS
        and all(type(index) is int and 0 <= index < MAX_LAYERS for index in value)
    ),
)
GENERIC_FIELDS: Mapping[str, Field] = {
    "dtype": choice(_DTYPES),
    "torch_dtype": choice(_DTYPES),
    "per_layer_config": Field("none", lambda v: False),
}
"""Fields that are checked but not passed on: they describe how a file was written, or would build another model."""


def list_of(field: Field, length: int) -> Field:
    """Return a field of lists of a fixed length, each entry as in `field`."""
    return Field(
        f"a list of {length}, each {field.expected}",
        lambda value: isinstance(value, list) and len(value) == length and all(map(field.accepts, value)),
    )


def check_equal(where: str, name: str, value: int, other_name: str, other: int) -> None:
    """Raise CheckpointError unless two fields of a configuration are equal."""
    if value != other:
        raise CheckpointError(f"{where}{name} is {value} but {other_name} is {other}: make both equal")


def check_heads(where: str, part: str, heads: int, width: int) -> None:
    """Raise CheckpointError unless the heads divide the width of an attention."""
    if width < heads or width % heads:
        raise CheckpointError(
            f"{where}{part}.num_attention_heads: expected a divisor of the attention's width of {width}, got {heads}"
        )


def check_parameters(where: str, parameters: int) -> None:
    """Raise CheckpointError if a model is too large."""
    if parameters > MAX_PARAMETERS:
        raise CheckpointError(
            f"{where}expected a model of at most {MAX_PARAMETERS:,} parameters, got about {parameters:,}"
        )


def check_homogeneous(parts: tuple[Any, ...], source: str) -> None:
    """Raise CheckpointError if a configuration of transformers differs between layers."""
    if any(getattr(part, "is_heterogeneous", False) for part in parts):
        raise CheckpointError(f"{source}: per_layer_config: expected none")
