"""The nested parts of a `Recipe`: small frozen dataclasses that validate themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from saqsam.quant.affine import check_bits
from saqsam.quant.ranges import RANGE_METHODS, RangeMethod
from saqsam.recipes.catalog import DEFAULT_CALIBRATION_IMAGES, DEFAULT_SEED

GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
_TYPE_NAMES = {bool: "true or false", int: "an integer"}
"""Types as messages name them."""


@dataclass(frozen=True)
class QuantSpec:
    """Quantization of one kind of tensor.

    Attributes:
        bits: 2 to 8.
        symmetric: Fix the zero point at the middle code.
        symmetric_bytes: Fix the zero point at the middle code for 8 bits only. For fewer bits, a code minus any zero
            point fits into a signed byte anyway.
        range: How the range is chosen: `min-max`, `percentile` or `mse`.
        dynamic: For activations: per-token ranges at inference instead of static ones. Each row of a layer's input (the
            channels of a token or pixel) has its own asymmetric range. Attention operands stay static.
        group_size: For weights: number of consecutive inputs of an output channel that share a scale and a zero point;
            None for the whole channel.
    """

    bits: int
    symmetric: bool = False
    range: RangeMethod = "mse"
    dynamic: bool = False
    symmetric_bytes: bool = False
    group_size: int | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_type("symmetric", self.symmetric, bool)
        check_type("symmetric_bytes", self.symmetric_bytes, bool)
        check_type("dynamic", self.dynamic, bool)
        if self.dynamic and self.symmetric:
            raise ValueError("symmetric must be false with dynamic: dynamic ranges are asymmetric")
        check_choice("range", self.range, RANGE_METHODS)
        if self.group_size is not None and (
            type(self.group_size) is not int or self.group_size not in GROUP_SIZES
        ):
            sizes = ", ".join(str(size) for size in GROUP_SIZES)
            raise ValueError(f"group_size must be one of {sizes}, got {self.group_size!r}")

    def is_symmetric(self, bits: int) -> bool:
        """Return whether the zero point of codes of `bits` bits is the middle code."""
        return self.symmetric or (self.symmetric_bytes and bits == 8)


ProbabilityKind = Literal["uniform", "log"]
ProbabilityScale = Literal["tensor", "row"]


@dataclass(frozen=True)
class ProbabilitySpec:
    """Quantization of attention probabilities (the softmax).

    Attributes:
        kind: `uniform` (like all activations) or `log` (adaptive granularity of PTQ4SAM, arXiv 2405.03144).
        bits: 2 to 8; None for the bits of the part's activations.
        scale: `tensor` quantizes the softmax, as in the papers. `row` quantizes its numerators, which reach 1 in every
            row, and divides the weighted sum of values by their sum.
        finest: For `log`: largest number of steps per octave (tau) that is tried, a power of 2; the paper tries 1, 2
            and 4.
        coarsest: For `log`: smallest number of steps per octave that is tried, a power of 2 up to `finest`; equal to
            it, the base is fixed.
    """

    kind: ProbabilityKind = "uniform"
    bits: int | None = None
    scale: ProbabilityScale = "tensor"
    finest: int = 4
    coarsest: int = 1

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(ProbabilityKind))
        check_choice("scale", self.scale, get_args(ProbabilityScale))
        for name in ("finest", "coarsest"):
            value = getattr(self, name)
            check_positive(name, value)
            if value not in (1, 2, 4, 8, 16, 32):
                raise ValueError(f"{name} must be a power of 2 up to 32, got {value}")
        if self.coarsest > self.finest:
            raise ValueError(f"coarsest must be at most finest ({self.finest}), got {self.coarsest}")
        if self.bits is not None:
            check_bits(self.bits, "probabilities.bits")


@dataclass(frozen=True)
class Override:
    """Bits of a part that differ from the recipe's; None keeps the recipe's bits."""

    weights: int | None = None
    activations: int | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "activations"):
            if getattr(self, name) is not None:
                check_bits(getattr(self, name), name)


@dataclass(frozen=True)
class Calibration:
    """Calibration set, and parameters of the range methods.

    Attributes:
        images: Number of images.
        prompts: Largest number of prompts per image.
        seed: Seed of the random choice of images and prompts.
        percentile: For the range method `percentile`: percentage of the values within the range, on each side.
        power: For the range method `mse`: exponent of the error.
    """

    images: int = DEFAULT_CALIBRATION_IMAGES
    prompts: int = 16
    seed: int = DEFAULT_SEED
    percentile: float = 99.99
    power: float = 2.4

    def __post_init__(self) -> None:
        for name in ("images", "prompts"):
            check_positive(name, getattr(self, name))
        check_type("seed", self.seed, int)
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        check_number("percentile", self.percentile, 51, 100)
        check_number("power", self.power, 0.5, 8)


ClippingMeasure = Literal["focus", "output"]


@dataclass(frozen=True)
class Clipping:
    """Perceptual-consistency clipping of the mask decoder's attentions (SAQ-SAM, arXiv 2503.06515).

    Attributes:
        theta: A key is in the focus of a query if its probability exceeds theta times the largest of the row.
        images: Number of calibration images over which the focus deviation is averaged; the paper uses one.
        passes: Number of passes over the four tensors of an attention, which are searched one after another.
        include_range: Make the range of `activations.range` a candidate, too.
        measure: Criterion of the search: the `focus` deviation, or the relative squared error of the attention's
            `output` (not in the paper).
    """

    theta: float = 0.5
    images: int = 1
    passes: int = 2
    include_range: bool = False
    measure: ClippingMeasure = "focus"

    def __post_init__(self) -> None:
        check_number("theta", self.theta, 0.001, 0.999)
        check_positive("images", self.images)
        check_positive("passes", self.passes)
        check_type("include_range", self.include_range, bool)
        check_choice("measure", self.measure, get_args(ClippingMeasure))


ReconstructionUnit = Literal["block", "stage"]
ReconstructionLoss = Literal["output", "prompt", "mask"]
ReconstructionTarget = Literal["quantized", "float"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Reconstruction:
    """Learned rounding and activation scales, unit by unit (AdaRound, BRECQ, QDrop, SAQ-SAM).

    Attributes:
        unit: Reconstruction unit of the encoder: `block`, or `stage` (blocks up to and including a global one).
        loss: `output` compares the outputs of the unit. `prompt` (prompt-aware reconstruction) passes them on to the
            two-way decoder with real prompts and compares its image tokens for encoder units, and its output tokens
            together with the layer's own for decoder layers. `mask` compares the masks (not in the paper).
        skip_layers: For `prompt` and `mask`: pass an encoder unit's output directly to the decoder, without the later
            blocks.
        target: Input of the float unit that computes the target: the output of the `quantized` or the `float` prefix.
        scales: Learn activation scales, too.
        drop: Probability that an activation stays float while learning (QDrop); 1 learns with float activations.
        steps: Optimizer steps per unit, each on one image.
        encoder_steps: Optimizer steps for each unit of the encoder, as a multiple of `steps`; 0 rounds it to nearest.
        decoder_steps: Optimizer steps for each layer of the decoder, as a multiple of `steps`; 0 rounds it to nearest.
        final_steps: Optimizer steps for the decoder's final attention, as a multiple of those of a layer.
        prompts: Largest number of prompts per step.
        rounding_rate: Learning rate of the rounding variables (Adam).
        scale_rate: Learning rate of the logarithms of scales (Adam), with cosine decay to 0.
        regularizer: Weight of the rounding regularizer, which is a mean over weights. The loss is measured in units of
            the loss of round-to-nearest.
        warmup: Fraction of the steps before the regularizer starts.
        token_weight: Weight of a decoder layer's own token error.
        affine: Learn the biases, normalizations and channel scales of a unit, too (not in the paper): checkpoints store
            them as float anyway, and they absorb the mean of the rounding error.
        affine_rate: Learning rate of the affine parameters (Adam), with cosine decay to 0.
        joint_steps: Steps at the end, as a multiple of `steps`, that learn all scales of the decoder, including those
            of its weights, and with `affine` its biases and normalizations, by the masks and with every quantizer on
            (not in the paper); 0 for none.
        precision: Precision of matrix products while learning: `float32`, or `bfloat16` by autocast. Targets, rounding
            and scales are always float32.
    """

    unit: ReconstructionUnit = "stage"
    loss: ReconstructionLoss = "prompt"
    skip_layers: bool = True
    target: ReconstructionTarget = "quantized"
    scales: bool = True
    drop: float = 0.5
    steps: int = 2000
    encoder_steps: float = 1.0
    decoder_steps: float = 1.0
    final_steps: int = 5
    prompts: int = 16
    rounding_rate: float = 1e-3
    scale_rate: float = 2e-3
    regularizer: float = 1.0
    warmup: float = 0.2
    token_weight: float = 0.01
    affine: bool = False
    affine_rate: float = 1e-3
    joint_steps: int = 0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, get_args(ReconstructionUnit))
        check_choice("loss", self.loss, get_args(ReconstructionLoss))
        check_choice("target", self.target, get_args(ReconstructionTarget))
        check_choice("precision", self.precision, get_args(Precision))
        for name in ("skip_layers", "scales", "affine"):
            check_type(name, getattr(self, name), bool)
        for name in ("steps", "final_steps", "prompts"):
            check_positive(name, getattr(self, name))
        check_type("joint_steps", self.joint_steps, int)
        for name in ("encoder_steps", "decoder_steps"):
            check_number(name, getattr(self, name), 0, 10)
        if not (self.encoder_steps or self.decoder_steps or self.joint_steps):
            raise ValueError(
                "reconstruction needs steps: set encoder_steps, decoder_steps or joint_steps, or reconstruction=none"
            )
        for name in ("drop", "warmup"):
            check_number(name, getattr(self, name), 0, 1)
        for name in (
            "rounding_rate",
            "scale_rate",
            "affine_rate",
            "regularizer",
            "token_weight",
            "joint_steps",
        ):
            check_number(name, getattr(self, name), 0, 1e3)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_mapping(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping, got {type(value).__name__}")


def check_type(name: str, value: object, kind: type) -> None:
    """Raise ValueError unless `value` is exactly of type `kind`."""
    if type(value) is not kind:
        raise ValueError(f"{name} must be {_TYPE_NAMES.get(kind, kind.__name__)}, got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is an int of at least 1."""
    check_type(name, value, int)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raise ValueError unless `value` is a number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
