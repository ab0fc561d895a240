"""Learning one unit: soft rounding, learned scales and random dropping, for as long as a block of code runs.

AdaRound (arXiv 2004.10568), LSQ (arXiv 1902.08153), QDrop (arXiv 2203.05740). Deviations from the published code: every
weight ends on its grid; dropping exists only inside `learning`; scales are learned by their logarithm; the rounding
regulariser is on. A unit's loss is divided by what rounding to nearest gives, and the regulariser by the number of
weights: published weights of the regulariser suit one scale of features and one size of unit, and where losses are
small (image tokens after a normalisation) they would leave nothing to learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.convert.pack import pack_layer, round_weight
from saqsam.convert.plan import activation_slots, weight_sites
from saqsam.models.family import ModelStructure, Site, replace_module
from saqsam.ptq.tensor_store import TensorStore
from saqsam.ptq.units import JointUnit, PromptTokens, State, Unit
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import PackedTensor, channel_axis
from saqsam.quant.learned import LearnedAffineQuantizer, LearnedWeightScale, RandomDrop, StraightThrough
from saqsam.quant.rounding import LearnedRounding
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Reconstruction

BETA_START, BETA_END = 20.0, 2.0
SCALE_DRAWS = 4
LOGGED = 50
"""Points of a unit's loss curve."""


@dataclass
class UnitLog:
    """How the learning of a unit went.

    Attributes:
        unit: Name of the unit.
        steps: Steps at which losses were noted.
        losses: Mean reconstruction loss of the steps since the last note.
        moved: Share of the weights that are not rounded to nearest in the end.
    """

    unit: str
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    moved: float = 0.0


@dataclass
class Learned:
    """What is learned in a unit: by module name."""

    roundings: dict[str, LearnedRounding]
    scales: dict[str, LearnedAffineQuantizer]
    weight_scales: dict[str, LearnedWeightScale]
    affine: dict[str, nn.Parameter]


@dataclass(frozen=True)
class UnitParts:
    """What a unit has to learn.

    Attributes:
        layers: Layers and their weight bits.
        slots: Names of its activation slots.
        affine: Names of the biases, normalisation parameters and channel scales that are learned.
        packed: Names of the weights that are packed already, whose scales are learned.
    """

    layers: tuple[tuple[Site, int], ...]
    slots: tuple[str, ...]
    affine: tuple[str, ...] = ()
    packed: tuple[str, ...] = ()


def unit_parts(unit: Unit, model: SamModel, structure: ModelStructure, recipe: Recipe) -> UnitParts:
    """What the recipe has to learn inside a unit."""

    def inside(name: str) -> bool:
        return any(name.startswith(f"{module}.") for module in unit.modules)

    layers = tuple((site, bits) for site, bits in weight_sites(structure, recipe) if inside(site.name))
    slots = tuple(slot.name for slot in activation_slots(structure, recipe) if inside(slot.name))
    spec = recipe.reconstruction
    affine: tuple[str, ...] = ()
    if spec is not None and spec.affine:
        # Biases, normalisations and channel scales alone are vectors; of packed layers nothing else is a parameter.
        affine = tuple(n for n, p in model.named_parameters() if inside(n) and p.dim() == 1)
    if isinstance(unit, JointUnit):
        return UnitParts((), slots, affine, tuple(f"{site.name}.weight" for site, _ in layers))
    return UnitParts(layers, slots, affine)


@contextmanager
def learning(
    model: SamModel,
    parts: UnitParts,
    recipe: Recipe,
    drop: float,
    generator: torch.Generator,
) -> Iterator[Learned]:
    """Soft rounding, learned scales and random dropping in a unit while the block runs.

    After it the unit's layers are packed, with every weight on its grid, its slots hold plain quantizers, and what
    stays float holds float16 values. If the block raises, the unit is what it was before.

    Args:
        model: Calibrated model.
        parts: What is learned.
        recipe: With `reconstruction`.
        drop: Probability that an activation stays float.
        generator: Draws which, on the model's device.
    """
    kept = _Kept(model, parts)
    learned = Learned({}, {}, {}, kept.affine)
    nearest: dict[str, PackedTensor] = {}
    try:
        _place_activations(model, parts, recipe, drop, generator, learned)
        _place_weights(model, parts, recipe, learned, nearest)
        yield learned
    except BaseException:
        kept.restore()
        raise
    _finish(model, parts, kept, learned, nearest)


class _Kept:
    """What a unit consists of before it is learned, and the way back."""

    def __init__(self, model: SamModel, parts: UnitParts) -> None:
        self.model, self.layers = model, [site.name for site, _ in parts.layers]
        self.modules = {name: model.get_submodule(name) for name in (*parts.slots, *parts.packed)}
        self.affine = {name: model.get_parameter(name) for name in parts.affine}
        self.values = {name: parameter.detach().clone() for name, parameter in self.affine.items()}

    def restore(self) -> None:
        for name, module in self.modules.items():
            replace_module(self.model, name, module)
        for name in self.layers:
            replace_module(self.model, f"{name}.weight_quantizer", nn.Identity())
        for name, parameter in self.affine.items():
            parameter.requires_grad_(False).copy_(self.values[name])


def _place_activations(
    model: SamModel,
    parts: UnitParts,
    recipe: Recipe,
    drop: float,
    generator: torch.Generator,
    learned: Learned,
) -> None:
    """Put what learns in the place of activation quantizers; biases and normalisations get gradients."""
    assert recipe.reconstruction is not None
    for parameter in learned.affine.values():
        parameter.requires_grad_(True)
    for name in parts.slots:
        quantizer = model.get_submodule(name)
        inner: StraightThrough | LearnedAffineQuantizer = StraightThrough(quantizer)
        if recipe.reconstruction.scales and isinstance(quantizer, AffineQuantizer):
            inner = learned.scales[name] = LearnedAffineQuantizer(quantizer)
        replace_module(model, name, RandomDrop(inner, drop, generator))


def _place_weights(
    model: SamModel, parts: UnitParts, recipe: Recipe, learned: Learned, nearest: dict[str, PackedTensor]
) -> None:
    """Put soft rounding beside float weights, and learned scales around packed ones."""
    for name in parts.packed:
        weight = model.get_submodule(name)
        assert isinstance(weight, PackedTensor)
        learned.weight_scales[name] = LearnedWeightScale(weight)
        replace_module(model, name, learned.weight_scales[name])
    for site, bits in parts.layers:
        layer = model.get_submodule(site.name)
        axis = channel_axis(layer)
        start = nearest[site.name] = round_weight(layer, bits, recipe)
        assert isinstance(layer.weight, Tensor)
        shape = [size if i == axis else 1 for i, size in enumerate(layer.weight.shape)]
        rounding = LearnedRounding(
            layer.weight, start.scale.reshape(shape), start.zero_point.float().reshape(shape), bits
        )
        learned.roundings[site.name] = rounding
        replace_module(model, f"{site.name}.weight_quantizer", rounding)


def _finish(
    model: SamModel, parts: UnitParts, kept: _Kept, learned: Learned, nearest: dict[str, PackedTensor]
) -> None:
    """Leave the unit as a finished model holds it."""
    for parameter in learned.affine.values():
        # A checkpoint stores float16.
        parameter.requires_grad_(False).copy_(parameter.half())
    for name in parts.slots:
        quantizer = learned.scales[name].fixed() if name in learned.scales else kept.modules[name]
        replace_module(model, name, quantizer.to(model.device))
    for name, weight_scale in learned.weight_scales.items():
        replace_module(model, name, weight_scale.fixed())
    for site, bits in parts.layers:
        start, codes = nearest[site.name], learned.roundings[site.name].codes()
        packed = PackedTensor.from_codes(codes, start.scale, start.zero_point, bits, start.axis)
        pack_layer(model, site.name, packed)


def learn_unit(
    model: SamModel,
    reference: SamModel,
    unit: Unit,
    parts: UnitParts,
    recipe: Recipe,
    captured: Captured,
    seed: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> UnitLog:
    """Learn a unit in place and leave it packed.

    Raises:
        ValueError: If the loss is not finite; the unit is then as it was.
    """
    spec = recipe.reconstruction
    assert spec is not None
    device = model.device
    log = UnitLog(unit.name)
    choose = torch.Generator().manual_seed(seed)
    dropping = torch.Generator(device).manual_seed(seed + 1)
    probability = 0.0 if isinstance(unit, JointUnit) else spec.drop
    steps = spec.steps * unit.steps
    note = max(1, steps // LOGGED)
    in_bfloat16 = spec.precision == "bfloat16"
    with learning(model, parts, recipe, probability, dropping) as learned:
        roundings = list(learned.roundings.values())
        scales = [quantizer.log_scale for quantizer in learned.scales.values()]
        gains = [weight.log_gain for weight in learned.weight_scales.values()]
        nearest = [rounding.codes() for rounding in roundings]
        optimizer = torch.optim.Adam(
            [
                {"params": [rounding.variable for rounding in roundings], "lr": spec.rounding_rate},
                {"params": scales, "lr": spec.scale_rate},
                {"params": [*learned.affine.values(), *gains], "lr": spec.affine_rate},
            ]
        )
        unlearned = _nearest_loss(model, reference, unit, roundings, captured, spec, seed)
        since: list[float] = []
        for step in range(steps):
            fall = 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.param_groups[1]["lr"] = spec.scale_rate * fall
            optimizer.param_groups[2]["lr"] = spec.affine_rate * fall
            state, target, prompts = captured.draw(choose, spec.prompts)
            with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
                loss = unit.loss(unit.response(model, reference, state, prompts), target)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise ValueError(
                    f"the loss of {unit.name} became {value} at step {step + 1}; lower the learning rates"
                )
            total = loss / unlearned + _regulariser(roundings, spec, step / steps)
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            since.append(value)
            if (step + 1) % note == 0 or step + 1 == steps:
                log.steps.append(step + 1)
                log.losses.append(sum(since) / len(since))
                since.clear()
                if progress is not None:
                    progress(step + 1, steps, f"loss {log.losses[-1]:.4g}")
        changed = sum(int((r.codes() != n).sum()) for r, n in zip(roundings, nearest, strict=True))
        log.moved = changed / max(1, sum(codes.numel() for codes in nearest))
    return log


@torch.no_grad()
def _nearest_loss(
    model: SamModel,
    reference: SamModel,
    unit: Unit,
    roundings: list[LearnedRounding],
    captured: Captured,
    spec: Reconstruction,
    seed: int,
) -> float:
    """Mean loss over a few images with every weight rounded to nearest; 1 where that is 0."""
    choose = torch.Generator().manual_seed(seed)
    with ExitStack() as stack:
        for rounding in roundings:
            stack.enter_context(rounding.hard())
        total = 0.0
        for _ in range(SCALE_DRAWS):
            state, target, prompts = captured.draw(choose, spec.prompts)
            total += float(unit.loss(unit.response(model, reference, state, prompts), target))
    return total / SCALE_DRAWS if math.isfinite(total) and total > 0 else 1.0


def _regulariser(roundings: list[LearnedRounding], spec: Reconstruction, progress: float) -> Tensor | float:
    """What drives rounding to 0 or 1; beta falls from 20 to 2 by a cosine after the warm-up."""
    if progress < spec.warmup or spec.regulariser == 0 or not roundings:
        return 0.0
    share = (progress - spec.warmup) / max(1e-9, 1 - spec.warmup)
    beta = BETA_END + 0.5 * (BETA_START - BETA_END) * (1 + math.cos(math.pi * share))
    count = sum(r.variable.numel() for r in roundings)
    return spec.regulariser / count * sum((r.regulariser(beta) for r in roundings), start=torch.zeros(()))


class Captured:
    """States and targets of a unit for all images.

    Args:
        states: What the unit is given, by image.
        targets: What it should answer.
        prompts: The images' prompts.
        device: Where learning happens.
    """

    def __init__(
        self, states: TensorStore, targets: TensorStore, prompts: list[PromptTokens], device: torch.device
    ) -> None:
        self.states, self.targets, self.prompts, self.device = states, targets, prompts, device

    def draw(self, generator: torch.Generator, most: int) -> tuple[State, State, PromptTokens]:
        """A random image with at most `most` of its prompts: state, target and prompts."""
        index = int(torch.randint(len(self.states), (), generator=generator))
        prompts = self.prompts[index]
        count = len(prompts.tokens)
        chosen = None
        if count > most:
            chosen = torch.randperm(count, generator=generator)[:most].sort().values
            prompts = prompts[chosen.to(prompts.tokens.device)]
        state = self.states.get(index, self.device, chosen)
        return state, self.targets.get(index, self.device, chosen), prompts
