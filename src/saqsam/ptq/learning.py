"""Learning of one unit: Adam on soft rounding, scales and float parameters, by the unit's loss.

AdaRound (arXiv 2004.10568), LSQ (arXiv 1902.08153), QDrop (arXiv 2203.05740). Deviations from the published code: the
rounding regularizer is on; a unit's loss is divided by that of round-to-nearest, and the regularizer by the number of
weights. The published weights of the regularizer suit one scale of features and one size of unit. Where losses are
small, as those of image tokens after a normalization are, they would leave nothing to learn.
"""

from __future__ import annotations

import math
from contextlib import ExitStack

import torch
from torch import Tensor
from transformers import SamModel

from saqsam.ptq.captured import LearningData
from saqsam.ptq.log import UnitLog
from saqsam.ptq.relaxation import RelaxedUnit, relaxed
from saqsam.ptq.unit_parameters import UnitParameters
from saqsam.ptq.units import Unit
from saqsam.quant.rounding import LearnedRounding
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Reconstruction
from saqsam.utils.progress import Progress

BETA_START, BETA_END = 20.0, 2.0
"""Exponent of the rounding regularizer after the warm-up and at the end (AdaRound)."""
BASELINE_DRAWS = 4
"""Steps over which the loss of round-to-nearest is averaged."""
LOG_ENTRIES = 50
"""Most points of a unit's loss curve."""


def learn_unit(
    model: SamModel,
    reference: SamModel,
    unit: Unit,
    parameters: UnitParameters,
    recipe: Recipe,
    data: LearningData,
    seed: int,
    progress: Progress | None = None,
    *,
    phase: str = "",
) -> UnitLog:
    """Learn a unit in place and leave it packed.

    Args:
        model: Calibrated model, earlier units packed.
        reference: Float model.
        unit: The unit.
        parameters: Names of what is learned.
        recipe: Recipe with `reconstruction`.
        data: Inputs and targets of the unit.
        seed: Seed of the draws of dropped activations.
        progress: Progress callback.
        phase: Phase to report; by default the unit's name.

    Returns:
        Loss curve of the unit.

    Raises:
        ValueError: The loss is not finite; the unit is restored.
    """
    spec = recipe.reconstruction
    assert spec is not None
    device = model.device
    log = UnitLog(unit.name)
    dropping = torch.Generator(device).manual_seed(seed + 1)
    drop = spec.drop if unit.drops_quantization else 0.0
    steps = len(data.schedule)
    log_interval = max(1, steps // LOG_ENTRIES)
    with relaxed(model, parameters, recipe, drop, dropping) as relaxed_unit:
        roundings = list(relaxed_unit.roundings.values())
        nearest = [rounding.codes() for rounding in roundings]
        optimizer = _make_optimizer(relaxed_unit, spec)
        baseline = _baseline_loss(model, reference, unit, roundings, data)
        recent: list[Tensor] = []
        for step in range(steps):
            _decay_rates(optimizer, spec, step / steps)
            state, target, prompts = data[step]
            with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"):
                loss = unit.error(unit.response(model, reference, state, prompts), target)
            total = loss / baseline + _regularizer(roundings, spec, step / steps)
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            recent.append(loss.detach())
            # Reading a value makes a GPU wait, so losses are read a few at a time.
            if (step + 1) % log_interval == 0 or step + 1 == steps:
                losses = torch.stack(recent).tolist()
                _check_finite(losses, unit, first_step=step + 2 - len(losses))
                log.steps.append(step + 1)
                log.losses.append(sum(losses) / len(losses))
                recent.clear()
                if progress is not None:
                    progress(phase or unit.name, step + 1, steps, f"loss {log.losses[-1]:.4g}")
        changed = sum(int((r.codes() != n).sum()) for r, n in zip(roundings, nearest, strict=True))
        log.moved = changed / max(1, sum(codes.numel() for codes in nearest))
    return log


def _make_optimizer(unit: RelaxedUnit, spec: Reconstruction) -> torch.optim.Adam:
    """Return Adam over rounding variables, activation scales, and float parameters with weight scales."""
    gains = [layer.log_gain for layer in unit.scale_layers.values()]
    return torch.optim.Adam(
        [
            {"params": [r.variable for r in unit.roundings.values()], "lr": spec.rounding_rate},
            {"params": [quantizer.log_scale for quantizer in unit.scales.values()], "lr": spec.scale_rate},
            {"params": [*unit.float_parameters.values(), *gains], "lr": spec.affine_rate},
        ],
        fused=True,
    )


def _check_finite(losses: list[float], unit: Unit, first_step: int) -> None:
    """Raise ValueError if a loss is not finite."""
    for step, loss in enumerate(losses, first_step):
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss of {unit.name} became {loss} at step {step}; lower the learning rates"
            )


def _decay_rates(optimizer: torch.optim.Adam, spec: Reconstruction, fraction: float) -> None:
    """Decay the learning rates of scales and float parameters by a cosine; that of rounding stays."""
    decay = 0.5 * (1 + math.cos(math.pi * fraction))
    optimizer.param_groups[1]["lr"] = spec.scale_rate * decay
    optimizer.param_groups[2]["lr"] = spec.affine_rate * decay


@torch.no_grad()
def _baseline_loss(
    model: SamModel,
    reference: SamModel,
    unit: Unit,
    roundings: list[LearnedRounding],
    data: LearningData,
) -> float:
    """Return the mean loss of round-to-nearest over the first steps' images; 1 where it is 0."""
    count = min(BASELINE_DRAWS, len(data.schedule))
    with ExitStack() as stack:
        for rounding in roundings:
            stack.enter_context(rounding.hard())
        total = 0.0
        for step in range(count):
            state, target, prompts = data[step]
            total += float(unit.error(unit.response(model, reference, state, prompts), target))
    return total / count if math.isfinite(total) and total > 0 else 1.0


def _regularizer(roundings: list[LearnedRounding], spec: Reconstruction, fraction: float) -> Tensor | float:
    """Return the term that drives soft rounding to 0 or 1; its exponent beta decays by a cosine after the warm-up."""
    if fraction < spec.warmup or spec.regularizer == 0 or not roundings:
        return 0.0
    annealed = (fraction - spec.warmup) / max(1e-9, 1 - spec.warmup)
    beta = BETA_END + 0.5 * (BETA_START - BETA_END) * (1 + math.cos(math.pi * annealed))
    count = sum(r.variable.numel() for r in roundings)
    return spec.regularizer / count * sum((r.regularizer(beta) for r in roundings), start=torch.zeros(()))
