"""The solver finds the best allocation: compared with a search over all of them."""

from itertools import product

import numpy as np
import pytest

from saqsam.allocation.budget import Budget
from saqsam.allocation.costs import BitCosts, Operand
from saqsam.allocation.solver import InfeasibleError, Problem, solve

OPERANDS = tuple(
    Operand(part, kind)
    for part in ("encoder.qkv", "neck", "decoder.mlp")
    for kind in ("weights", "activations")
)
WIDTHS = (3, 4, 8)


def problem(seed: int, pairs: int = 0) -> Problem:
    """Errors that fall with bits at random, and random costs and pairs."""
    random = np.random.default_rng(seed)
    amounts = random.integers(10, 1000, len(OPERANDS))
    costs = BitCosts(
        OPERANDS,
        {operand: float(amount) for operand, amount in zip(OPERANDS, amounts, strict=True)},
        {
            operand: int(amount)
            for operand, amount in zip(OPERANDS, amounts, strict=True)
            if operand.kind == "activations"
        },
        {
            operand: (int(amount),)
            for operand, amount in zip(OPERANDS, amounts, strict=True)
            if operand.kind == "weights"
        },
        fixed_bytes=500,
    )
    errors = {}
    for operand in OPERANDS:
        scale = random.uniform(0.1, 1)
        for bits in WIDTHS:
            errors[operand, bits] = scale * 0.3 * 2.0 ** -(bits - 3) * random.uniform(0.8, 1.2)
    choices = [(a, b) for a in sorted(errors) for b in sorted(errors) if a[0] < b[0]]
    measured = {
        choices[i]: float(random.normal(0, 0.01)) for i in random.choice(len(choices), pairs, replace=False)
    }
    return Problem(costs, errors, measured)


def all_allocations(within: Problem, budget: Budget) -> list[dict[Operand, int]]:
    found = (dict(zip(OPERANDS, widths, strict=True)) for widths in product(WIDTHS, repeat=len(OPERANDS)))
    return [bits for bits in found if within.satisfies(bits, budget)]


def squared(within: Problem, bits: dict[Operand, int]) -> float:
    """The objective itself: `predict` is 0 where measured pairs make it negative."""
    chosen = set(bits.items())
    return sum(within.errors[choice] ** 2 for choice in chosen) + sum(
        extra for pair, extra in within.pairs.items() if chosen.issuperset(pair)
    )


@pytest.mark.parametrize("pairs", [0, 12])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("text", ["4.5b", "w3.6b,a5b", "1700B", "loss=0.2", "loss=0.2,5.5b"])
def test_no_allocation_is_better(text: str, seed: int, pairs: int) -> None:
    budget = Budget(bytes=1700) if text == "1700B" else Budget.parse(text)
    given = problem(seed, pairs)
    candidates = all_allocations(given, budget)
    if not candidates:
        with pytest.raises(InfeasibleError):
            solve(given, budget)
        return
    found = solve(given, budget)
    assert found in candidates
    if budget.loss is None:
        assert squared(given, found) == pytest.approx(
            min(squared(given, bits) for bits in candidates), abs=1e-7
        )
    else:
        cheapest = min(given.costs.mean_bits(bits) for bits in candidates)
        assert given.costs.mean_bits(found) == pytest.approx(cheapest)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(bits=2.5), "mean bits of 2.5 cannot be reached, at least 3 are needed"),
        (Budget(bytes=100), "0.1 kB cannot be reached, at least 2 kB are needed"),
        (Budget(loss=0.0001), "loss=0.0001 cannot be reached: masks differ by 0.0"),
        (Budget(bits=3.0, loss=0.1), "its limits cannot be satisfied together"),
    ],
)
def test_a_budget_out_of_reach_says_what_can_be_reached(budget: Budget, message: str) -> None:
    with pytest.raises(InfeasibleError, match=message):
        solve(problem(0), budget)
