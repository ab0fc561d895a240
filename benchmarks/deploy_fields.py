"""What `saqsam quantize --deploy` changes, as settings of `ptq.py`: each alone, and all together."""

from __future__ import annotations

_SET: dict[str, tuple[str, ...]] = {
    "uniform probabilities, 8 bits, scale=row": (
        "probabilities.kind=uniform",
        "probabilities.bits=8",
        "probabilities.scale=row",
    ),
    "integer biases": ("integer_biases=true",),
    "encoder's products float": ("encoder_products=float",),
    "embeddings and heads in 8 bits": (
        "extra.patch_embedding=8",
        "extra.position_embedding=8",
        "extra.hypernetworks=8",
        "extra.iou_head=8",
    ),
}
_ALL = tuple(setting for settings in _SET.values() for setting in settings)
SUBSTITUTIONS: dict[str, tuple[str, ...]] = {
    "the method as it is": (),
    "symmetric weights of all widths": ("weights.symmetric=true",),
    **_SET,
    "all together, with symmetric weights of all widths": ("weights.symmetric=true", *_ALL),
    "all together, `--deploy`": ("weights.symmetric_bytes=true", *_ALL),
}
"""By what a table calls them; the method as it is comes first. Symmetric bytes alone change nothing at 4 bits, and are
symmetric weights at 8."""
