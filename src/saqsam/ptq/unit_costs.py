"""Relative costs of the units of reconstruction, counted on the meta device, to estimate how long they take.

A cost is a number of multiply-accumulates. Elementwise operations count too, since rounding, softmax and normalization
take about as long as the products of a small model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from saqsam.convert.plan import plan_quantization
from saqsam.models.family import flatten_image
from saqsam.models.registry import family_of
from saqsam.ptq.states import PromptTokens, State
from saqsam.ptq.units import reconstruction_units, unit_phase
from saqsam.recipes.recipe import Recipe

_T = TypeVar("_T")
_P = ParamSpec("_P")

MACS_PER_VALUE = 20
"""Multiply-accumulates in the time of one value of an elementwise operation, roughly, on CPUs."""


@dataclass(frozen=True)
class UnitCost:
    """Cost of a unit, in multiply-accumulates.

    Attributes:
        phase: Name of its phase in progress reports.
        steps: Learning steps.
        step: Cost of a learning step.
        capture: Cost of computing its inputs from those of the unit before it, and its targets, for all images.
    """

    phase: str
    steps: int
    step: float
    capture: float


def unit_costs(config: Any, recipe: Recipe) -> list[UnitCost]:
    """Return the costs of all units of a recipe with `reconstruction`, in their order.

    Args:
        config: Configuration of the model.
        recipe: The recipe.
    """
    spec, images = recipe.reconstruction, recipe.calibration.images
    assert spec is not None
    every, drawn = (
        _forward_costs(config, recipe, prompts)
        for prompts in (recipe.calibration.prompts, min(spec.prompts, recipe.calibration.prompts))
    )
    costs = []
    before = 0.0
    for number, (unit, whole, part) in enumerate(
        zip(reconstruction_units(plan_quantization(config, recipe)), every, drawn, strict=True)
    ):
        # The gradient of a product takes two: by its weights and by its inputs; float parts need the latter alone.
        step = 3 * part.run + 2 * (part.response - part.run)
        # The quantized and the float model compute the state before it.
        capture = images * (whole.response + 2 * (whole.enter if unit.restarts else before))
        costs.append(UnitCost(unit_phase(number, len(every), unit), spec.steps * unit.steps, step, capture))
        before = whole.run
    return costs


@dataclass(frozen=True)
class _ForwardCost:
    """Costs of a unit's forward passes: to its state before it if it restarts, through it, and to its response."""

    enter: float
    run: float
    response: float


def _forward_costs(config: Any, recipe: Recipe, prompts: int) -> list[_ForwardCost]:
    """Return the costs of each unit for one image and a number of prompts."""
    family, units = family_of(config), reconstruction_units(plan_quantization(config, recipe))
    costs = []
    with torch.device("meta"), torch.inference_mode():
        model = family.build(config).eval()
        tokens, dense = family.embed_boxes(model, torch.zeros(prompts, 4))
        embedded = PromptTokens(tokens, flatten_image(dense), family.image_positions(model))
        first: State = (family.embed_patches(model, torch.zeros(family.input_spec(config).pixels)),)
        state = first
        for unit in units:
            enter = 0.0
            if unit.restarts:
                enter, state = _count(unit.enter, model, first, embedded)
            run, after = _count(unit.run, model, state, embedded)
            response, _ = _count(unit.response, model, model, state, embedded)
            costs.append(_ForwardCost(enter, run, response))
            state = after
    return costs


def _count(compute: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> tuple[float, _T]:
    """Return the cost of a computation on the meta device, and its result."""
    values = _ValueCounter()
    with FlopCounterMode(display=False) as products, values:
        result = compute(*args, **kwargs)
    return products.get_total_flops() / 2 + MACS_PER_VALUE * values.count, result


class _ValueCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the values that operations compute while it is active; views compute none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count the values of its results."""
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.count += sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result
