"""Relative costs of the units of reconstruction, counted on the meta device, to estimate how long they take.

A cost is a number of multiply-accumulates. Elementwise operations count too, since rounding, softmax and normalization
take about as long as the products of a small model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from saqsam.convert.plan import QuantizationPlan, plan_quantization
from saqsam.ptq.states import PromptTokens, State
from saqsam.ptq.units import Unit, reconstruction_units, unit_phase
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
    """Return the costs of the learned units of a recipe with `reconstruction`, in their order.

    Args:
        config: Configuration of the model.
        recipe: The recipe.
    """
    spec, images = recipe.reconstruction, recipe.calibration.images
    assert spec is not None
    plan = plan_quantization(config, recipe)
    units = reconstruction_units(plan)
    with torch.device("meta"):
        model = plan.family.build(config).eval()
    most = recipe.calibration.prompts
    every, drawn = (
        _forward_costs(model, plan, units, prompts) for prompts in (most, min(spec.prompts, most))
    )
    costs: list[UnitCost] = []
    learned = [unit for unit in units if unit.steps(spec)]
    before = 0.0
    for unit, whole, part in zip(units, every, drawn, strict=True):
        if unit not in learned:
            # Its states are computed before the next unit starts.
            before = whole.run
            continue
        # The gradient of a product takes two: by its weights and by its inputs; float parts need the latter alone.
        step = 3 * part.run + 2 * (part.response - part.run)
        # The quantized model runs the unit before it, and the float model the unit itself, on all images; responses are
        # computed for the drawn prompts.
        responses = min(images, unit.steps(spec) * min(spec.prompts, most) / most)
        run_before = 0.0 if unit.reads_embedding else before
        capture = images * (whole.run + run_before) + responses * (whole.response - whole.run)
        phase = unit_phase(len(costs), len(learned), unit)
        costs.append(UnitCost(phase, unit.steps(spec), step, capture))
        before = whole.run
    return costs


@dataclass(frozen=True)
class _ForwardCost:
    """Costs of a unit's forward passes: through it, and to its response."""

    run: float
    response: float


@torch.no_grad()  # not inference mode, in which linear layers and products of matrices are not told apart
def _forward_costs(
    model: Any, plan: QuantizationPlan, units: Sequence[Unit], prompts: int
) -> list[_ForwardCost]:
    """Return the costs of each unit for one image and a number of prompts, on a model on the meta device."""
    family, costs = plan.family, []
    with torch.device("meta"):
        embedded = PromptTokens.embed(family, model, torch.zeros(prompts, 4))
        state: State = family.embed_patches(model, torch.zeros(family.input_spec(model.config).pixels))
        embedding: State = ()
        for unit in units:
            state = embedding if unit.reads_embedding else state
            run, after = _count(unit.run, model, state, embedded)
            response, _ = _count(unit.response, model, model, state, embedded)
            costs.append(_ForwardCost(run, response))
            state = after
            if unit.gives_embedding:
                embedding = after
    return costs


def _count(compute: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> tuple[float, _T]:
    """Return the cost of a computation on the meta device, and its result."""
    with _CostCounter() as counter:
        result = compute(*args, **kwargs)
    return counter.cost, result


class _CostCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts multiply-accumulates, and the values that other operations compute, while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cost = 0.0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and add its cost; views have none."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        products = flop_registry.get(function.overloadpacket)
        if products is not None:
            self.cost += products(*args, **kwargs, out_val=result) / 2
        if not function.is_view:
            values = (leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
            self.cost += MACS_PER_VALUE * sum(values)
        return result
