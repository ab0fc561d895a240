"""Names, defaults and one-line summaries of methods, efforts and deploy targets.

Plain data: the command line reads its choices and its help from here without importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_METHOD = "saq-sam-plus"
DEFAULT_BITS = "w4a4"
DEFAULT_WEIGHT_BITS = "w4"
"""Default bits of weight-only quantization."""
AUTO_EFFORT = "auto"
"""Effort that `saqsam.recipes.presets.resolve_effort` replaces by one of `EFFORTS`."""
DEFAULT_EFFORT = AUTO_EFFORT
DEFAULT_CALIBRATION = "scenes"
"""Calibration data: the bundled scenes."""
DEFAULT_CALIBRATION_IMAGES = 32
DEFAULT_SEED = 0
DEFAULT_MEMORY = "4GiB"
"""Memory for captured activations; what exceeds it is spilled to disk."""

WEIGHT_ONLY = "weight-only"
"""Method for weight-only quantization, whose bits look like `w4` or `w4g128`."""
METHOD_SUMMARIES = {
    "min-max": "ranges from the smallest to the largest value",
    "percentile": "ranges that hold 99.99 % of the values",
    "mse": "ranges of least error",
    "brecq": "learned rounding",
    "qdrop": "learned rounding and scales, with random dropping",
    "repq-vit": "RepQ-ViT",
    "adalog": "AdaLog",
    "gptq": "GPTQ: rounding that compensates for its own error",
    "erq": "ERQ: weights that compensate for rounded weights and inputs",
    "ptq4sam-s": "PTQ4SAM without learning",
    "ptq4sam": "PTQ4SAM",
    "ahcptq-s": "AHCPTQ without learning",
    "ahcptq": "AHCPTQ",
    "car-sam-s": "CAR-SAM without learning",
    "car-sam": "CAR-SAM",
    "saq-sam-s": "SAQ-SAM without learning",
    "saq-sam": "SAQ-SAM",
    "saq-sam-plus": "SAQ-SAM with this project's additions",
    WEIGHT_ONLY: "weights rounded to nearest, activations float; --bits w4 or w4g128",
}
"""Methods in the order in which they build on each other; each is a function of `saqsam.recipes.methods`."""

EFFORTS: dict[str, dict[str, float]] = {
    "quick": {"steps": 30, "final_steps": 2, "prompts": 4, "rounding_rate": 0.04, "scale_rate": 0.01},
    "standard": {"steps": 100, "final_steps": 4, "prompts": 4, "rounding_rate": 0.02, "scale_rate": 0.01},
    "paper": {"steps": 2000, "final_steps": 5, "prompts": 16, "rounding_rate": 1e-3, "scale_rate": 2e-3},
}
"""Steps per reconstruction unit, prompts per step, and learning rates. Fewer steps need higher rates: with Adam, a
variable changes by at most steps times rate."""


@dataclass(frozen=True)
class Kernels:
    """Integer kernels that several export formats may share.

    Attributes:
        suffix: Suffix of the method's name in a recipe for these kernels.
        activation_bits: Only width of activations that they multiply, in bits; None if they take any.
    """

    suffix: str
    activation_bits: int | None = None


QLINEAR = Kernels("deploy")
"""Integer products of ONNX's quantized operators, as ONNX Runtime and OpenVINO compute them."""
XNNPACK = Kernels("executorch", activation_bits=8)
"""Products with float outputs that quantize each row of their inputs, as ExecuTorch delegates them to XNNPACK."""

DEPLOY_TARGETS = {"onnx": QLINEAR, "openvino": QLINEAR, "executorch": XNNPACK, "web": QLINEAR}
"""Export formats that a recipe can be deployed for, and the kernels that run them."""
DEFAULT_TARGET = "onnx"
