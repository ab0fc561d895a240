"""What `saqsam quantize --deploy` changes, as settings of `ptq.py`: each alone, and all together."""

from __future__ import annotations

SUBSTITUTIONS: dict[str, tuple[str, ...]] = {
    "the method as it is": (),
    "symmetric weights": ("weights.symmetric=true",),
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
SUBSTITUTIONS["all together, `--deploy`"] = tuple(
    setting for settings in SUBSTITUTIONS.values() for setting in settings
)
"""By what a table calls them; the method as it is comes first."""
