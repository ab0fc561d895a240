"""Draw accuracy over mean bits, from the rows of `bit_budget.py`: `figures.py` writes docs/assets/bits.png."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

import saqsam
from rows import RESULTS, Row, current, float_scores, read_rows
from saqsam.allocation.costs import BitCosts, bit_costs
from saqsam.recipes.overrides import with_overrides
from saqsam.recipes.presets import MIXED_SUFFIX

LABELS = ("same bits everywhere", "decoder at 8 bits", "budget")


def draw_bits(config: Any) -> Figure:
    """Draw mean IoU without learning over the mean bits of all operands of quantized multiply-accumulates.

    Args:
        config: Configuration of the bundled model.
    """
    rows = current(read_rows(RESULTS / "budget.csv"))
    floats = float_scores(rows)
    data = list(dict.fromkeys(row.data for row in rows))
    figure = Figure(figsize=(4 * len(data), 3.4), layout="constrained")
    panels = figure.subplots(1, len(data), squeeze=False)[0]
    costs = bit_costs(config, saqsam.recipe_for(rows[0].method, "w4a4"))
    for axes, name in zip(panels, data, strict=True):
        points: dict[str, list[tuple[float, float]]] = {label: [] for label in LABELS}
        for row in rows:
            if row.data == name:
                points[_label(row)].append((_mean_bits(row, costs), row.miou))
        for label, marker in zip(LABELS, "o^s", strict=True):
            axes.plot(*zip(*sorted(points[label]), strict=True), marker=marker, label=label)
        axes.axhline(floats[name], color="0.5", linestyle="--", label="float")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("mean bits, by multiply-accumulates")
        axes.set_ylabel("mean IoU")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def _label(row: Row) -> str:
    if row.bits.endswith(MIXED_SUFFIX):
        return LABELS[1]
    return LABELS[2] if "overrides." in row.settings else LABELS[0]


def _mean_bits(row: Row, costs: BitCosts) -> float:
    """Return the mean bits of the recipe of a row."""
    recipe = with_overrides(saqsam.recipe_for(row.method, row.bits), row.settings.split())
    bits = {}
    for operand in costs.operands:
        weights, activations = recipe.bits_of(operand.part)
        width = weights if operand.kind == "weights" else activations
        assert width is not None
        bits[operand] = width
    return costs.mean_bits(bits)
