"""Choose the bits of every operand under a budget, as a mixed-integer linear program that HiGHS solves to optimality.

One binary variable for each operand and each of its bits says whether they are chosen. Squared errors, bits and bytes
are linear in these variables. A measured pair of choices adds a variable that is 1 where both are chosen, with the
amount by which their squared error differs from the sum of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from saqsam.allocation.budget import Budget
from saqsam.allocation.costs import BitCosts, Bits, Operand

Choice = tuple[Operand, int]
"""An operand and the bits chosen for it."""


class InfeasibleError(ValueError):
    """No allocation satisfies the budget."""


@dataclass(frozen=True)
class Problem:
    """All that an allocation depends on, other than its budget.

    Attributes:
        costs: Costs of the bits of each operand.
        errors: Measured error of each choice alone, the mean Jaccard distance of masks, in [0, 1].
        pairs: Squared error of two choices together minus that of both alone, where it was measured.
    """

    costs: BitCosts
    errors: Mapping[Choice, float]
    pairs: Mapping[tuple[Choice, Choice], float] = field(default_factory=dict)

    def predict(self, bits: Bits) -> float:
        """Return the predicted error of an allocation: the root of the sum of squares and of measured pairs."""
        chosen = {(operand, bits[operand]) for operand in self.costs.operands}
        squared = sum(self.errors[choice] ** 2 for choice in sorted(chosen))
        squared += sum(extra for pair, extra in self.pairs.items() if chosen.issuperset(pair))
        return float(np.sqrt(max(squared, 0.0)))

    def satisfies(self, bits: Bits, budget: Budget) -> bool:
        """Return whether an allocation satisfies all limits, the predicted loss included."""
        costs = self.costs
        limits = (
            (budget.bits, costs.mean_bits),
            (budget.weight_bits, costs.mean_weight_bits),
            (budget.activation_bits, costs.mean_activation_bits),
            (budget.bytes, costs.bytes),
            (budget.loss, self.predict),
        )
        return all(limit is None or cost(bits) <= limit + 1e-9 for limit, cost in limits)


def solve(problem: Problem, budget: Budget) -> dict[Operand, int]:
    """Return the best allocation under a budget.

    It has the least predicted error; if the budget limits the loss, the least mean bits instead.

    Raises:
        InfeasibleError: No allocation satisfies the budget; the message says what can be reached.
    """
    # Imported late: only this needs it, and it takes a second.
    from scipy.optimize import Bounds, LinearConstraint, milp

    program = _Program(problem)
    objective = program.mean_bits() if budget.loss is not None else program.squared_error()
    constraints = [LinearConstraint(matrix, low, high) for matrix, low, high in program.structure()]
    constraints += [LinearConstraint(row, -np.inf, limit) for row, limit in program.limits(budget)]
    found = milp(
        objective,
        integrality=np.ones(program.size),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0, "presolve": False},
    )
    if found.x is None:
        raise InfeasibleError(_why_infeasible(problem, budget))
    return program.allocation(found.x)


class _Program:
    """The linear program of a problem: its variables, and the rows of its constraints."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._choices: list[Choice] = sorted(problem.errors)
        self._pairs = sorted(problem.pairs)
        self._index = {choice: number for number, choice in enumerate(self._choices)}
        self.size = len(self._choices) + len(self._pairs)

    def _row(self, values: Sequence[float], pairs: Sequence[float] | None = None) -> NDArray[np.float64]:
        return np.array([*values, *([0.0] * len(self._pairs) if pairs is None else pairs)])

    def squared_error(self) -> NDArray[np.float64]:
        """Return the coefficients of the squared error, in units of its largest."""
        squares = [self._problem.errors[choice] ** 2 for choice in self._choices]
        row = self._row(squares, [self._problem.pairs[pair] for pair in self._pairs])
        self._unit = max(float(np.abs(row).max()), 1e-12)
        return row / self._unit

    def mean_bits(self) -> NDArray[np.float64]:
        """Return the coefficients of the mean bits of operands."""
        return self._mean(self._problem.costs.macs)

    def _mean(self, amounts: Mapping[Operand, float]) -> NDArray[np.float64]:
        total = sum(amounts.values())
        return self._row([bits * amounts.get(operand, 0) / total for operand, bits in self._choices])

    def limits(self, budget: Budget) -> list[tuple[NDArray[np.float64], float]]:
        """Return the coefficients and the upper limit of each limit of a budget."""
        costs = self._problem.costs
        weights = {operand: sum(counts) for operand, counts in costs.weights.items()}
        limits = [
            (self._mean(amounts), limit)
            for amounts, limit in (
                (costs.macs, budget.bits),
                (weights, budget.weight_bits),
                (costs.activation_macs, budget.activation_bits),
            )
            if limit is not None
        ]
        if budget.bytes is not None:
            codes = self._row([costs.code_bytes(*choice) / 1e6 for choice in self._choices])
            limits.append((codes, (budget.bytes - costs.fixed_bytes) / 1e6))
        if budget.loss is not None:
            limits.append((self.squared_error(), budget.loss**2 / self._unit))
        return limits

    def structure(self) -> list[tuple[NDArray[np.float64], float, float]]:
        """Return the constraints that make variables choices: one for each operand, and pairs of both."""
        rows: list[tuple[NDArray[np.float64], float, float]] = []
        for operand in self._problem.costs.operands:
            rows.append((self._row([float(known == operand) for known, _ in self._choices]), 1, 1))
        for number, pair in enumerate(self._pairs):
            both = np.zeros(self.size)
            both[[self._index[choice] for choice in pair]] = 1
            variable = np.zeros(self.size)
            variable[len(self._choices) + number] = 1
            rows.append((both - variable, -np.inf, 1))
            rows.append((2 * variable - both, -np.inf, 0))
        return rows

    def allocation(self, values: NDArray[np.float64]) -> dict[Operand, int]:
        """Return the bits that the values of the variables choose."""
        return {
            operand: bits
            for (operand, bits), value in zip(self._choices, values[: len(self._choices)], strict=True)
            if value > 0.5
        }


def _why_infeasible(problem: Problem, budget: Budget) -> str:
    """Return a message that says what the cheapest and the most exact allocation reach."""
    costs = problem.costs
    widths = {operand: [b for known, b in problem.errors if known == operand] for operand in costs.operands}
    narrow = {operand: min(bits) for operand, bits in widths.items()}
    reached = (
        ("mean bits", budget.bits, costs.mean_bits),
        ("mean weight bits", budget.weight_bits, costs.mean_weight_bits),
        ("mean activation bits", budget.activation_bits, costs.mean_activation_bits),
    )
    for name, limit, cost in reached:
        if limit is not None and cost(narrow) > limit:
            return f"budget: {name} of {limit:g} cannot be reached, at least {cost(narrow):g} are needed"
    if budget.bytes is not None and costs.bytes(narrow) > budget.bytes:
        needed = -(-costs.bytes(narrow) // 1000)
        return f"budget: {budget.bytes / 1000:g} kB cannot be reached, at least {needed} kB are needed"
    if budget.loss is not None:
        best = min(problem.predict({o: max(bits) for o, bits in widths.items()}), 1.0)
        if best > budget.loss:
            return (
                f"budget: loss={budget.loss:g} cannot be reached: masks differ by {best:.4f} at the most bits"
            )
    return "budget: its limits cannot be satisfied together"
