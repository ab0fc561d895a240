"""Overrides that `saqsam quantize --deploy` applies, each alone and all combined."""

from __future__ import annotations

_SET: dict[str, tuple[str, ...]] = {
    "uniform 8-bit probabilities, scale=row": (
        "probabilities.kind=uniform",
        "probabilities.bits=8",
        "probabilities.scale=row",
    ),
    "integer biases": ("integer_biases=true",),
    "float attention products in the encoder": ("encoder_products=float",),
    "8-bit embeddings and heads": (
        "extra.patch_embedding=8",
        "extra.position_embedding=8",
        "extra.hypernetworks=8",
        "extra.iou_head=8",
    ),
}
_ALL = tuple(setting for settings in _SET.values() for setting in settings)
SUBSTITUTIONS: dict[str, tuple[str, ...]] = {
    "unchanged method": (),
    "symmetric weights at every width": ("weights.symmetric=true",),
    **_SET,
    "all combined, symmetric weights at every width": ("weights.symmetric=true", *_ALL),
    "all combined": ("weights.symmetric_bytes=true", *_ALL),
    "all combined, and 8-bit hidden upscaling layers: `--deploy`": (
        "weights.symmetric_bytes=true",
        *_ALL,
        "extra.upscaling.hidden=8",
    ),
}
"""Overrides of each row of the table, by its label; the unchanged method comes first.

`symmetric_bytes` alone changes nothing at 4 bits and equals `symmetric` at 8.
"""
