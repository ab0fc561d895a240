"""Markdown formatting that all tables of results share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rows import FILL_BOX, FLOAT

BITS = ("w8a8", "w6a6", "w4a8", "w4a4")
METHODS = (
    *(FILL_BOX, FLOAT, "min-max", "percentile", "mse", "brecq", "qdrop", "repq-vit", "adalog", "gptq", "erq"),
    *("ptq4sam-s", "ptq4sam", "ahcptq-s", "ahcptq", "car-sam-s", "car-sam"),
    *("saq-sam-s", "saq-sam", "saq-sam-plus"),
)
DATA = ("scenes", "coco_val", "nuclei_val", "aerial_val")
PROMPTS = ("box", "point")


def method_label(method: str) -> str:
    """Return the display name of a method."""
    return {FILL_BOX: "box-fill baseline", FLOAT: "float model"}.get(method, f"`{method}`")


def signed(value: float) -> str:
    """Format a difference with three digits and its sign."""
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text.replace("-", "−")


def ordered(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """Sort names by a known order, unknown names last and by name."""
    return sorted(names, key=lambda name: rank(name, order))


def rank(name: str, order: Sequence[str]) -> tuple[int, str]:
    """Return the sort key of `ordered`."""
    return (order.index(name) if name in order else len(order), name)


def listed(names: Iterable[str]) -> str:
    """Return the unique names, sorted."""
    return "; ".join(sorted(set(names)))


def markdown(heading: Sequence[str], lines: Sequence[Sequence[str]], right: int = 0) -> str:
    """Format a Markdown table whose last `right` columns are right-aligned."""
    rule = ["---"] * (len(heading) - right) + ["---:"] * right
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, rule, *lines))
