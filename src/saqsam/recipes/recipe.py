"""The `Recipe`: all choices that determine how a model is quantized, as data.

A recipe is frozen, validates itself, and round-trips through JSON. A checkpoint stores the recipe it was made with.
Methods differ only in their recipes (`methods.py`); the nested parts of a recipe are in `specs.py`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from saqsam.models.parts import (
    EMBEDDING_PARTS,
    ENCODER_ATTENTION,
    FLOAT_PARTS,
    PAPER_PARTS,
    PARTS,
    covers,
    names_of,
)
from saqsam.quant.affine import check_bits
from saqsam.recipes.compensation import Compensation
from saqsam.recipes.equalization import Equalization
from saqsam.recipes.later_fields import omit_defaults
from saqsam.recipes.specs import (
    Calibration,
    Clipping,
    Override,
    ProbabilitySpec,
    QuantSpec,
    Reconstruction,
    check_choice,
    check_mapping,
    check_type,
)
from saqsam.utils.suggestions import suggestion

__all__ = [
    *("Calibration", "Clipping", "Compensation", "Equalization", "Override", "ProbabilitySpec"),
    *("QuantSpec", "Recipe", "Reconstruction"),
]

RECIPE_VERSION = 1
Products = Literal["quantized", "float"]
GeluCodes = Literal["uniform", "hybrid", "log"]
ATTENTION_PARTS = tuple(part for part in PAPER_PARTS if "attention" in part or "_to_" in part)
_TRANSFORMS = ("equalized", "balanced_heads", "input_scales")
"""Fields that change float weights before they are quantized, exactly."""
_REFINEMENTS = ("dynamic_queries", "separate_positions")
"""Switches that refine how the decoder rounds activations."""
_STEPS = ("clipping", "compensation", "reconstruction")
"""Fields that need quantized activations; None leaves the step out."""
_Spec = TypeVar("_Spec")


@dataclass(frozen=True)
class Recipe:
    """Complete description of how a SAM is quantized.

    Attributes:
        method: Name of the method, as in `methods.METHODS`.
        weights: Quantization of the weights in the papers' tensor set; per output channel.
        activations: Quantization of layer inputs and attention operands; per tensor and static, unless `dynamic`. None
            keeps them float: weight-only quantization, which needs no calibration.
        probabilities: Quantization of attention probabilities, where it differs from other activations.
        gelu: Codes of the activations after a GELU, the inputs of the encoder's second MLP layers: `uniform` as of all
            activations, `hybrid` (AHCPTQ, arXiv 2503.03088) or `log` (AdaLog, arXiv 2407.12951); see `quant.tables`.
        equalized: Equalize the ranges of channels that share a scale first (`ptq.equalization`; not in the paper).
        equalization: For `equalized` recipes: layers, groups of channels, and migration strength.
        balanced_heads: Balance queries and keys of the decoder's attentions, head by head, before that
            (`ptq.head_balancing`; not in the paper).
        input_scales: Give decoder inputs that no earlier layer can be scaled for a per-channel offset and gain
            (`quant.layers.ChannelScale`; not in the paper).
        bimodal: Merge the two peaks of the keys of token-to-image attention (PTQ4SAM).
        clipping: Perceptual-consistency clipping of the decoder's attentions, or None.
        compensation: Closed-form compensation of quantization errors, or None.
        reconstruction: Learned rounding and scales, or None.
        overrides: Other bits for single parts or groups of parts, by name (`models.parts.PARTS`) or prefix.
        extra: Bits (weights and inputs) of parts that the papers keep float, by name or prefix: `patch_embedding` and
            `position_embedding` (weights only), `upscaling.hidden`, `upscaling.output` (or `upscaling` for both),
            `hypernetworks`, `iou_head`.
        dynamic_queries: Quantize the queries and keys of image-to-token attention per token and head, with ranges
            computed at inference (not in the paper).
        separate_positions: Subtract the image positions, which are constants, before the decoder's projections of image
            tokens round their input (not in the paper).
        quantized_rel_pos_query: Compute relative positions from the quantized query; the papers use the float query.
        encoder_products: `float` keeps the operands of the encoder's attentions float, for runtimes whose integer
            kernels are no faster there; the papers quantize them.
        decoder_products: `float` keeps the operands of the decoder's attentions float, for runtimes without integer
            kernels for products of two activations.
        integer_biases: Round biases of quantized layers to multiples of input scale times weight scale, as integer
            kernels add them (int32).
        calibration: Calibration set and range search.
        version: Version of the recipe format.
    """

    method: str
    weights: QuantSpec
    activations: QuantSpec | None
    probabilities: ProbabilitySpec = field(default_factory=ProbabilitySpec)
    gelu: GeluCodes = "uniform"
    equalized: bool = False
    equalization: Equalization = field(default_factory=Equalization)
    balanced_heads: bool = False
    input_scales: bool = False
    bimodal: bool = False
    clipping: Clipping | None = None
    compensation: Compensation | None = None
    reconstruction: Reconstruction | None = None
    overrides: Mapping[str, Override] = field(default_factory=dict)
    extra: Mapping[str, int] = field(default_factory=dict)
    dynamic_queries: bool = False
    separate_positions: bool = False
    quantized_rel_pos_query: bool = False
    encoder_products: Products = "quantized"
    decoder_products: Products = "quantized"
    integer_biases: bool = False
    calibration: Calibration = field(default_factory=Calibration)
    version: int = RECIPE_VERSION

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.method):
            raise ValueError(
                f"method must be a name of small letters, digits and dashes, got {self.method!r}"
            )
        if self.version != RECIPE_VERSION:
            raise ValueError(
                f"recipe version: this saqsam reads {RECIPE_VERSION}, got {self.version}: install the version that "
                "wrote it"
            )
        for name in ("encoder_products", "decoder_products"):
            check_choice(name, getattr(self, name), get_args(Products))
        check_choice("gelu", self.gelu, get_args(GeluCodes))
        for name in ("quantized_rel_pos_query", "bimodal", *_TRANSFORMS, *_REFINEMENTS, "integer_biases"):
            check_type(name, getattr(self, name), bool)
        for name, spec in _SPECS.items():
            if not (getattr(self, name) is None and name in _OPTIONAL):
                check_type(name, getattr(self, name), spec)
        for where in ("overrides", "extra"):
            check_mapping(where, getattr(self, where))
        for name, override in self.overrides.items():
            check_type(f"overrides.{name}", override, Override)
            if not any(covers(name, part) for part in PAPER_PARTS):
                raise ValueError(f"no part {name!r} to override{suggestion(name, names_of(PAPER_PARTS))}")
        for name, bits in self.extra.items():
            if not any(covers(name, part) for part in FLOAT_PARTS):
                raise ValueError(f"no extra part {name!r}{suggestion(name, names_of(FLOAT_PARTS))}")
            check_bits(bits, f"extra.{name}")
        if self.activations is None:
            self._check_weight_only()
        else:
            self._check_activations(self.activations)

    def _check_weight_only(self) -> None:
        """Raise ValueError if a field requires quantized activations."""
        if self.weights.dynamic:
            raise ValueError("weights.dynamic must be false: only activations have dynamic ranges")
        for name in ("bimodal", *_TRANSFORMS, *_REFINEMENTS, "integer_biases", *_STEPS):
            if getattr(self, name):
                raise ValueError(f"{name} must be unset with float activations (activations=none)")
        if self.gelu != "uniform":
            raise ValueError("gelu must be uniform with float activations (activations=none)")
        for name, override in self.overrides.items():
            if override.activations is not None:
                raise ValueError(f"overrides.{name}.activations must be none with activations=none")

    def _check_activations(self, activations: QuantSpec) -> None:
        for name, spec in (("weights", self.weights), ("activations", activations)):
            if spec.group_size is not None:
                raise ValueError(
                    f"{name}.group_size needs activations=none: integer kernels take one scale for each channel"
                )
        if activations.symmetric_bytes:
            raise ValueError(
                "activations.symmetric_bytes must be false: it is a field of weights; set activations.symmetric instead"
            )
        self._check_dynamic(activations)

    def _check_dynamic(self, activations: QuantSpec) -> None:
        """Raise ValueError if a field requires static ranges, and activations or attention operands have none."""
        if self.weights.dynamic:
            raise ValueError("weights.dynamic must be false: only activations have dynamic ranges")
        if activations.dynamic and self.gelu != "uniform":
            raise ValueError("gelu must be uniform with activations.dynamic: tables of levels are static")
        if activations.dynamic and self.integer_biases:
            raise ValueError(
                "integer_biases must be false with activations.dynamic: biases need a static input scale"
            )
        if self.clipping is not None and (activations.dynamic or self.decoder_products == "float"):
            raise ValueError(
                "clipping must be none with activations.dynamic or decoder_products=float: it chooses static ranges of "
                "the decoder's attentions"
            )
        if self.dynamic_queries and self.decoder_products == "float":
            raise ValueError(
                "dynamic_queries must be false with decoder_products=float, which quantizes no queries"
            )

    @property
    def name(self) -> str:
        """Method and bits, such as `mse-w4a4`, with the suffix `-mixed` if bits differ between parts.

        Weight-only recipes have weight bits and group size, such as `weight-only-w4-g128`.
        """
        uniform = (self.weights.bits, None if self.activations is None else self.activations.bits)
        is_mixed = bool(self.extra) or any(self.bits_of(part) != uniform for part in PAPER_PARTS)
        is_mixed |= any(self.probability_bits(part) != uniform[1] for part in ATTENTION_PARTS)
        bits = f"w{uniform[0]}"
        if uniform[1] is not None:
            bits += f"a{uniform[1]}"
        elif self.weights.group_size is not None:
            bits += f"-g{self.weights.group_size}"
        return f"{self.method}-{bits}" + ("-mixed" if is_mixed else "")

    @property
    def activation_spec(self) -> QuantSpec:
        """Quantization of activations, for callers that know that they are quantized."""
        assert self.activations is not None
        return self.activations

    @property
    def needs_calibration(self) -> bool:
        """True if activations are quantized, whose ranges depend on calibration images."""
        return self.activations is not None

    def bits_of(self, part: str) -> tuple[int | None, int | None]:
        """Return the bits of a part's weights and activations; None is float. The longest matching override wins."""
        if part not in PARTS:
            raise ValueError(f"no part {part!r}{suggestion(part, PARTS)}")
        if part in FLOAT_PARTS:
            bits = self.extra.get(part, self.extra.get(part.split(".")[0]))
            is_weight_only = self.activations is None or part in EMBEDDING_PARTS
            return bits, None if is_weight_only else bits
        weights = self.weights.bits
        activations = None if self.activations is None else self.activations.bits
        for name in sorted(self.overrides, key=len):
            if covers(name, part):
                weights = self.overrides[name].weights or weights
                activations = self.overrides[name].activations or activations
        if part == ENCODER_ATTENTION and self.encoder_products == "float":
            return weights, None
        return weights, activations

    def operand_bits(self, part: str) -> int | None:
        """Return the bits of the queries, keys and values of a part's attentions; None is float."""
        if part.startswith("decoder.") and self.decoder_products == "float":
            return None
        return self.bits_of(part)[1]

    def probability_bits(self, part: str) -> int | None:
        """Return the bits of a part's attention probabilities; None is float."""
        bits = self.operand_bits(part)
        return bits if bits is None else self.probabilities.bits or bits

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types.

        A `group_size` of None and defaults of `later_fields` are omitted, as older recipes were hashed without them.
        """
        fields = {
            **dataclasses.asdict(self),
            "overrides": {k: dataclasses.asdict(v) for k, v in sorted(self.overrides.items())},
            "extra": dict(sorted(self.extra.items())),
        }
        for spec in (fields["weights"], fields["activations"]):
            if spec is not None and spec["group_size"] is None:
                del spec["group_size"]
        omit_defaults(fields)
        return fields

    @property
    def needs_reference(self) -> bool:
        """True if a step compares the quantized model with the float one."""
        return self.compensation is not None or self.reconstruction is not None

    @property
    def changes_weights(self) -> bool:
        """True if float weights are changed before they are quantized, or learned with."""
        return self.needs_reference or any(getattr(self, name) for name in _TRANSFORMS)

    def to_json(self) -> str:
        """Return canonical JSON: equal recipes have equal text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Build a recipe from the result of `to_dict`.

        Raises:
            ValueError: A key is unknown or missing, or a value is invalid; the message names the field.
        """
        check_mapping("recipe", data)
        values = dict(data)
        for name, spec in _SPECS.items():
            if name in values and not (values[name] is None and name in _OPTIONAL):
                values[name] = _build(spec, values[name], name)
        overrides = values.get("overrides", {})
        check_mapping("overrides", overrides)
        values["overrides"] = {k: _build(Override, v, f"overrides.{k}") for k, v in overrides.items()}
        return _build(cls, values, "recipe")


# Fields that hold a dataclass of their own, and those that may be None.
_SPECS: dict[str, type] = {
    "weights": QuantSpec,
    "activations": QuantSpec,
    "probabilities": ProbabilitySpec,
    "equalization": Equalization,
    "clipping": Clipping,
    "compensation": Compensation,
    "reconstruction": Reconstruction,
    "calibration": Calibration,
}
_OPTIONAL = ("activations", *_STEPS)


def _build(kind: type[_Spec], values: Any, where: str) -> _Spec:
    """Build a dataclass from a mapping; unknown keys are refused."""
    check_mapping(where, values)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    names = [f.name for f in fields]
    for key in values:
        if key not in names:
            raise ValueError(f"{where} has no field {key!r}{suggestion(key, names)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
