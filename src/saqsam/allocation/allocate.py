"""Allocate bits under a budget: measure each operand alone, solve, look at the pairs that matter, solve again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

from transformers import SamModel, SamProcessor

from saqsam.allocation.budget import Budget
from saqsam.allocation.costs import BitCosts, Bits, Operand, bit_costs
from saqsam.allocation.errors import MaskErrors, RoundedModel
from saqsam.allocation.log import AllocationLog, FrontierPoint, OperandError
from saqsam.allocation.solver import Choice, InfeasibleError, Problem, solve
from saqsam.checkpoint import quantization_config_of
from saqsam.convert.plan import plan_quantization
from saqsam.data.detections import Detections
from saqsam.data.open import DatasetSource
from saqsam.models.parts import PAPER_PARTS
from saqsam.models.processing import build_processor
from saqsam.models.registry import family_of
from saqsam.ptq.calibration_data import open_calibration
from saqsam.ptq.pipeline import prepare_run
from saqsam.recipes.catalog import DEFAULT_CALIBRATION, DEFAULT_METHOD
from saqsam.recipes.deployment import is_deployed
from saqsam.recipes.methods import finest_granularity
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Override
from saqsam.utils import ranks
from saqsam.utils.arithmetic import float32_arithmetic
from saqsam.utils.progress import Progress

WIDTHS = (3, 4, 5, 6, 8)
"""Bits that operands may get."""
PAIRS = 8
"""Pairs of choices that are measured after each solution."""
ROUNDS = 3
"""Most solutions: a new one is sought until it has no new pair that matters."""
DEFAULT_BUDGET = "4.5b"
MAX_IMAGES, MAX_LARGE_IMAGES = 8, 2
"""Most images that errors are measured on, for usual and for large inputs: a SAM-B needs seconds for each."""


@dataclass(frozen=True)
class Allocation:
    """Result of a bit allocation.

    Attributes:
        recipe: The recipe with the allocated bits, as overrides.
        budget: The budget.
        log: Measurements and result.
    """

    recipe: Recipe
    budget: Budget
    log: AllocationLog


class BitAllocator:
    """Allocates bits in one model under any number of budgets; the parts are measured once, when they are needed.

    Every operand (the weights, or the activations, of one part) is rounded alone to each width, with the ranges that
    the method finds without compensation and learning, and the masks are compared with the float model's. No annotation
    is used.

    Args:
        model: Float model; left unchanged.
        processor: Processor of the model; None builds the one that fits its configuration.
        recipe: Recipe, or the name of a method. Its bits do not matter, except that activations of a deployed recipe
            keep theirs.
        calibration: Calibration data, as for `saqsam.quantize`.
        detections: Detected boxes on these images, to use as prompts instead.
        progress: Progress callback; on other ranks than the first it is not called.

    Attributes:
        costs: MACs and bytes of each operand by its bits.

    Raises:
        ValueError: The model is quantized already, the recipe has float activations or overrides, or the calibration
            data cannot be used.
    """

    def __init__(
        self,
        model: SamModel,
        processor: SamProcessor | None = None,
        recipe: Recipe | str = DEFAULT_METHOD,
        calibration: DatasetSource = DEFAULT_CALIBRATION,
        *,
        detections: Detections | None = None,
        progress: Progress | None = None,
    ) -> None:
        if quantization_config_of(model) is not None:
            raise ValueError("this model is quantized already; allocate bits in the float model")
        self._model = model
        self._processor = build_processor(model.config) if processor is None else processor
        self._recipe = recipe_for(recipe) if isinstance(recipe, str) else recipe
        self._widths = _widths(self._recipe)
        self._detections = detections
        self._progress = progress if ranks.rank() == 0 else None
        self.costs = bit_costs(model.config, self._recipe)
        is_large = family_of(model.config).input_spec(model.config).is_large
        most = MAX_LARGE_IMAGES if is_large else MAX_IMAGES
        self._calibration = replace(
            self._recipe.calibration, images=min(most, self._recipe.calibration.images)
        )
        self._dataset = open_calibration(calibration, self._calibration)
        # Pairs are measured once. Those of other budgets do not affect an allocation, which depends on its own alone.
        self._pair_losses: dict[tuple[Choice, Choice], float] = {}

    @cached_property
    def _mask_errors(self) -> MaskErrors:
        """Calibrated model that can be rounded, with the float masks of the calibration images."""
        plan = plan_quantization(self._model.config, self._recipe)
        float_model, images = prepare_run(
            self._model,
            self._processor,
            plan,
            self._dataset,
            self._calibration,
            detections=self._detections,
            progress=self._progress,
        )
        rounded = RoundedModel(float_model, self._recipe, images, self._widths, self._progress)
        return MaskErrors(rounded, images)

    @cached_property
    def _problem(self) -> Problem:
        """Costs and measured errors of all choices, without pairs."""
        choices = self._choices()
        losses = self._measure([{operand: bits} for operand, bits in choices], "measuring parts")
        return Problem(self.costs, dict(zip(choices, losses, strict=True)))

    def _choices(self) -> list[Choice]:
        return [(operand, bits) for operand in self.costs.operands for bits in self._widths[operand.kind]]

    @float32_arithmetic()
    def predict(self, bits: Bits) -> float:
        """Return the predicted loss of an allocation: the root of the sum of squares of the errors of its operands."""
        return self._problem.predict(bits)

    @float32_arithmetic()
    def measure(self, bits: Bits) -> float:
        """Return the mean 1 - IoU with the float masks, measured for an allocation before compensation and learning."""
        return self._mask_errors.measure(bits)

    @float32_arithmetic()
    def allocate(self, budget: Budget | str) -> Allocation:
        """Return the best bits under a budget.

        They have the smallest predicted loss; under a limit of the loss, the fewest mean bits. After each solution, the
        pairs of its choices that matter most are measured together.

        Args:
            budget: Budget, or its text, see `Budget.parse`.

        Raises:
            InfeasibleError: No allocation satisfies the budget.
        """
        budget = Budget.parse(budget) if isinstance(budget, str) else budget
        # With exact choices: a budget out of reach is refused before anything is measured.
        solve(Problem(self.costs, dict.fromkeys(self._choices(), 0.0)), budget)
        problem, bits = self._solve(budget)
        costs = self.costs
        log = AllocationLog(
            mean_bits=costs.mean_bits(bits),
            mean_weight_bits=costs.mean_weight_bits(bits),
            mean_activation_bits=costs.mean_activation_bits(bits),
            bytes=costs.bytes(bits),
            predicted_loss=problem.predict(bits),
            measured_loss=self._mask_errors.measure(bits),
            images=self._mask_errors.images,
            frontier=tuple(trace_frontier(problem)),
            errors=tuple(
                OperandError(*operand, width, problem.errors[operand, width])
                for operand, width in sorted(problem.errors)
            ),
        )
        return Allocation(with_bits(self._recipe, bits, costs), budget, log)

    def _solve(self, budget: Budget) -> tuple[Problem, dict[Operand, int]]:
        """Solve, measure the pairs of the solution that matter most, and solve again until it stays.

        Returns:
            The problem with the measured pairs, and the bits.
        """
        problem = self._problem
        bits = solve(problem, budget)
        for _ in range(ROUNDS - 1):
            new = _pairs_that_matter(problem, bits)
            missing = [pair for pair in new if pair not in self._pair_losses]
            if missing:
                losses = self._measure([dict(pair) for pair in missing], "measuring pairs")
                self._pair_losses.update(zip(missing, losses, strict=True))
            pairs = dict(problem.pairs)
            for pair in new:
                extra = self._pair_losses[pair] ** 2 - sum(problem.errors[choice] ** 2 for choice in pair)
                # Where the pair does less harm, that is mostly noise, which the solver would pick from many pairs.
                pairs[pair] = max(0.0, extra)
            problem = replace(problem, pairs=pairs)
            last, bits = bits, solve(problem, budget)
            if bits == last:
                break
        return problem, bits

    def _measure(self, allocations: Sequence[Bits], phase: str) -> list[float]:
        """Return the measured error of each allocation; several ranks share them."""
        errors = self._mask_errors
        return ranks.shared_map(
            lambda number: errors.measure(allocations[number]), len(allocations), phase, self._progress
        )


def allocate_bits(
    model: SamModel,
    processor: SamProcessor | None = None,
    budget: Budget | str = DEFAULT_BUDGET,
    recipe: Recipe | str = DEFAULT_METHOD,
    calibration: DatasetSource = DEFAULT_CALIBRATION,
    *,
    detections: Detections | None = None,
    progress: Progress | None = None,
) -> Allocation:
    """Choose the bits of every part under a budget, by the masks of the calibration images.

    The same arguments give the same bits. For several budgets, use `BitAllocator`.

    Args:
        model: Float model; left unchanged.
        processor: Processor of the model; None builds the one that fits its configuration.
        budget: Budget, or its text, see `Budget.parse`.
        recipe: Recipe, or the name of a method, as for `BitAllocator`.
        calibration: Calibration data, as for `saqsam.quantize`.
        detections: Detected boxes on these images, to use as prompts instead.
        progress: Progress callback; on other ranks than the first it is not called.

    Returns:
        The allocation; pass its recipe to `saqsam.quantize`.

    Raises:
        ValueError: The model is quantized already, the recipe has float activations or overrides, the calibration data
            cannot be used, or no allocation satisfies the budget.
    """
    allocator = BitAllocator(model, processor, recipe, calibration, detections=detections, progress=progress)
    return allocator.allocate(budget)


def _widths(recipe: Recipe) -> dict[str, Sequence[int]]:
    """Return the bits that operands may get, by kind; one for activations where integer kernels prescribe it.

    Raises:
        ValueError: The recipe cannot be the base of an allocation.
    """
    if recipe.activations is None:
        raise ValueError(
            f"budget: {recipe.name} leaves activations float; choose a method that quantizes them"
        )
    if recipe.overrides:
        raise ValueError(
            "budget: it chooses the bits of all parts, so that the recipe must have no overrides"
        )
    return {
        "weights": WIDTHS,
        "activations": (recipe.activations.bits,) if is_deployed(recipe) else WIDTHS,
    }


def _pairs_that_matter(problem: Problem, bits: Bits) -> list[tuple[Choice, Choice]]:
    """Return the pairs of a solution with the largest product of errors that are not measured yet."""
    chosen = sorted((operand, width) for operand, width in bits.items())
    by_size = sorted(
        combinations(chosen, 2),
        key=lambda pair: -problem.errors[pair[0]] * problem.errors[pair[1]],
    )
    return [pair for pair in by_size[:PAIRS] if pair not in problem.pairs]


def trace_frontier(problem: Problem, step: float = 0.25) -> list[FrontierPoint]:
    """Return the best allocations from few mean bits to many, without those that others dominate."""
    costs = problem.costs
    points: list[FrontierPoint] = []
    for number in range(round(8 / step) + 1):
        try:
            bits = solve(problem, Budget(bits=max(2.0, number * step)))
        except InfeasibleError:
            continue
        point = FrontierPoint(costs.mean_bits(bits), costs.bytes(bits), problem.predict(bits))
        if not points or point.loss < points[-1].loss:
            points.append(point)
    return points


def with_bits(recipe: Recipe, bits: Bits, costs: BitCosts) -> Recipe:
    """Return a recipe with allocated bits: those of most weights and multiply-accumulates, and the others as overrides.

    Args:
        recipe: Recipe without overrides.
        bits: Bits of each operand.
        costs: Costs of the bits of each operand.
    """
    weights = _most_common(bits, {operand: sum(counts) for operand, counts in costs.weights.items()})
    activations = _most_common(bits, costs.activation_macs)
    overrides = {}
    for part in PAPER_PARTS:
        own_weights = bits.get(Operand(part, "weights"), weights)
        own_activations = bits.get(Operand(part, "activations"), activations)
        override = Override(
            weights=None if own_weights == weights else own_weights,
            activations=None if own_activations == activations else own_activations,
        )
        if override != Override():
            overrides[part] = override
    probabilities = recipe.probabilities
    if probabilities.kind == "log" and probabilities.coarsest < probabilities.finest:
        widest = max(width for operand, width in bits.items() if operand.kind == "activations")
        probabilities = replace(probabilities, finest=finest_granularity(widest))
    return replace(
        recipe,
        weights=replace(recipe.weights, bits=weights),
        activations=replace(recipe.activation_spec, bits=activations),
        probabilities=probabilities,
        overrides=overrides,
    )


def _most_common(bits: Bits, amounts: Mapping[Operand, int]) -> int:
    """Return the bits that the largest amount has; the fewest of several."""
    totals: dict[int, int] = {}
    for operand, amount in amounts.items():
        totals[bits[operand]] = totals.get(bits[operand], 0) + amount
    return max(sorted(totals), key=lambda width: totals[width])
