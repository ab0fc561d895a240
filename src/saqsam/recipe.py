"""A `Recipe`: everything that decides how a model is quantized, as data.

A recipe is frozen, checks itself when it is made, and round-trips through JSON; a checkpoint carries the one
it was made with. Methods differ only in their recipes (`presets.py`).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from saqsam.models.structure import FLOAT_PARTS, PAPER_PARTS, PARTS
from saqsam.quant.affine import check_bits
from saqsam.quant.ranges import RANGE_METHODS, RangeMethod

RECIPE_VERSION = 1
_Spec = TypeVar("_Spec")


@dataclass(frozen=True)
class QuantSpec:
    """How one kind of tensor is quantized.

    Attributes:
        bits: 2 to 8.
        symmetric: Whether the zero point is fixed at the middle code.
        range: How the range is chosen: `min-max`, `percentile` or `mse`.
    """

    bits: int
    symmetric: bool = False
    range: RangeMethod = "mse"

    def __post_init__(self) -> None:
        check_bits(self.bits)
        _check_type("symmetric", self.symmetric, bool)
        _check_choice("range", self.range, RANGE_METHODS)


@dataclass(frozen=True)
class Override:
    """Other bits for a part; None keeps what the recipe says."""

    weights: int | None = None
    activations: int | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "activations"):
            if getattr(self, name) is not None:
                check_bits(getattr(self, name), name)


@dataclass(frozen=True)
class Calibration:
    """What the model is shown before its ranges are set.

    Attributes:
        images: Number of images.
        prompts: Most prompts of an image.
        seed: Which images and prompts are drawn.
        percentile: For the range method `percentile`: share of values inside, in percent, on each side.
        power: For `mse`: exponent of the error.
    """

    images: int = 32
    prompts: int = 16
    seed: int = 0
    percentile: float = 99.99
    power: float = 2.4

    def __post_init__(self) -> None:
        for name in ("images", "prompts"):
            _check_type(name, getattr(self, name), int)
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        _check_type("seed", self.seed, int)
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must lie in (50, 100], got {self.percentile}")
        if not 0.5 <= self.power <= 8:
            raise ValueError(f"power must lie in [0.5, 8], got {self.power}")


@dataclass(frozen=True)
class Recipe:
    """How a SAM is quantized.

    Attributes:
        method: Name of the method, as in `presets.METHODS`.
        weights: Weights of the papers' tensor set; per output channel.
        activations: Layer inputs and the operands of attention products; per tensor, static.
        overrides: Other bits for single parts or groups of them, by name (`models.structure.PARTS`) or
            prefix.
        extra: Bits (weights and inputs) of parts that the papers leave float: `patch_embedding` and
            `position_embedding` (weights only), `upscaling`, `hypernetworks`, `iou_head`.
        quantized_rel_pos_query: Compute relative positions from the quantized query; the papers use the float
            one.
        calibration: The calibration.
        version: Version of this format.
    """

    method: str
    weights: QuantSpec
    activations: QuantSpec
    overrides: Mapping[str, Override] = field(default_factory=dict)
    extra: Mapping[str, int] = field(default_factory=dict)
    quantized_rel_pos_query: bool = False
    calibration: Calibration = field(default_factory=Calibration)
    version: int = RECIPE_VERSION

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.method):
            raise ValueError(
                f"method must be a name of small letters, digits and dashes, got {self.method!r}"
            )
        if self.version != RECIPE_VERSION:
            raise ValueError(
                f"recipe version {self.version} is not the {RECIPE_VERSION} that this saqsam reads"
            )
        _check_type("quantized_rel_pos_query", self.quantized_rel_pos_query, bool)
        _check_type("weights", self.weights, QuantSpec)
        _check_type("activations", self.activations, QuantSpec)
        _check_type("calibration", self.calibration, Calibration)
        for where in ("overrides", "extra"):
            _check_mapping(where, getattr(self, where))
        for name, override in self.overrides.items():
            _check_type(f"overrides.{name}", override, Override)
            if not any(_covers(name, part) for part in PAPER_PARTS):
                raise ValueError(f"no part {name!r} to override{_nearest(name, _prefixes(PAPER_PARTS))}")
        for name, bits in self.extra.items():
            if name not in FLOAT_PARTS:
                raise ValueError(f"no extra part {name!r}{_nearest(name, FLOAT_PARTS)}")
            check_bits(bits, f"extra.{name}")

    @property
    def name(self) -> str:
        """Method and bits, such as `mse-w4a4`; and `-mixed` where it departs from the papers' set."""
        uniform = (self.weights.bits, self.activations.bits)
        is_mixed = bool(self.extra) or any(self.bits_of(part) != uniform for part in PAPER_PARTS)
        return f"{self.method}-w{uniform[0]}a{uniform[1]}" + ("-mixed" if is_mixed else "")

    def bits_of(self, part: str) -> tuple[int | None, int | None]:
        """Bits of a part's weights and activations; None is float. The longest matching override wins."""
        if part not in PARTS:
            raise ValueError(f"no part {part!r}{_nearest(part, PARTS)}")
        if part in FLOAT_PARTS:
            bits = self.extra.get(part)
            return bits, None if part in ("patch_embedding", "position_embedding") else bits
        weights, activations = self.weights.bits, self.activations.bits
        for name in sorted(self.overrides, key=len):
            if _covers(name, part):
                weights = self.overrides[name].weights or weights
                activations = self.overrides[name].activations or activations
        return weights, activations

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **dataclasses.asdict(self),
            "overrides": {k: dataclasses.asdict(v) for k, v in sorted(self.overrides.items())},
            "extra": dict(sorted(self.extra.items())),
        }

    def to_json(self) -> str:
        """Canonical JSON: equal recipes give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe of `to_dict`.

        Raises:
            ValueError: A key is unknown or missing, or a value does not fit; the message names it.
        """
        _check_mapping("recipe", data)
        values = dict(data)
        for name, spec in (("weights", QuantSpec), ("activations", QuantSpec), ("calibration", Calibration)):
            if name in values:
                values[name] = _build(spec, values[name], name)
        overrides = values.get("overrides", {})
        _check_mapping("overrides", overrides)
        values["overrides"] = {k: _build(Override, v, f"overrides.{k}") for k, v in overrides.items()}
        return _build(cls, values, "recipe")


def _build(kind: type[_Spec], values: Any, where: str) -> _Spec:
    """Make a dataclass from a mapping, refusing unknown keys."""
    _check_mapping(where, values)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    names = [f.name for f in fields]
    for key in values:
        if key not in names:
            raise ValueError(f"{where} has no field {key!r}{_nearest(key, names)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _covers(name: str, part: str) -> bool:
    return part == name or part.startswith(name + ".")


def _prefixes(parts: tuple[str, ...]) -> list[str]:
    return sorted({*parts, *(part.split(".")[0] for part in parts)})


def _nearest(name: object, choices: list[str] | tuple[str, ...]) -> str:
    """A hint for an error message: the nearest right name, or all of them."""
    near = difflib.get_close_matches(str(name), choices, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(choices)}"


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping, got {type(value).__name__}")


def _check_type(name: str, value: object, kind: type) -> None:
    if type(value) is not kind:
        raise ValueError(f"{name} must be {kind.__name__}, got {value!r}")
