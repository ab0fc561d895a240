"""Tables of mixed precision, from the rows of `bit_budget.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from plain_rows import of_newest_weights
from rows import RESULTS, Row, current, float_scores, read_rows
from table_text import markdown, signed

_MEANS = re.compile(r"-w([\d.]+)a([\d.]+)$")
_WITHOUT_LEARNING = "reconstruction=none"


def budget(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate size and mean IoU of uniform bits, of a wide decoder, and of bits under a budget.

    Args:
        lines: Rows of allocations.csv.
    """
    lines, rows = of_newest_weights(lines), current(read_rows(RESULTS / "budget.csv"))
    reference = float_scores(rows)
    names = {line["settings"]: f"`--budget {line['budget']}`" for line in lines}
    data = list(dict.fromkeys(row.data for row in rows))
    by_checkpoint: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_checkpoint.setdefault(row.checkpoint, {})[row.data] = row
    cells = []
    for of_checkpoint in by_checkpoint.values():
        row = next(iter(of_checkpoint.values()))
        settings = row.settings.removesuffix(_WITHOUT_LEARNING).strip()
        weights, activations = _mean_bits(row)
        scores = [
            f"{of_checkpoint[name].miou:.3f} ({signed(of_checkpoint[name].miou - reference[name])})"
            if name in of_checkpoint
            else ""
            for name in data
        ]
        learned = "no" if row.settings.endswith(_WITHOUT_LEARNING) else "yes"
        name = names[settings] if settings else f"`--bits {row.bits}`"
        size = f"{(row.checkpoint_bytes or 0) / 1e6:.2f} MB"
        cells.append(
            (weights + activations, [name, learned, f"{weights:.2f}", f"{activations:.2f}", size, *scores])
        )
    heading = ["bits", "learned", "mean of weights", "of activations", "size", *data]
    return markdown(heading, [cell for _, cell in sorted(cells)], right=3 + len(data)) if cells else ""


def _mean_bits(row: Row) -> tuple[float, float]:
    """Return the mean bits of weights and of activations, which a mixed recipe has in its name."""
    match = _MEANS.search(row.recipe)
    assert match is not None, row.recipe
    return float(match[1]), float(match[2])


def allocations(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate the bits that budgets chose, and the losses on the images of the allocation."""
    cells = [
        [
            f"`{line['budget']}`",
            f"{float(line['mean_bits']):.2f}",
            f"{int(float(line['bytes'])) / 1e6:.2f} MB",
            _bits_text(line),
            f"{float(line['predicted_loss']):.3f}",
            f"{float(line['measured_loss']):.3f}",
        ]
        for line in of_newest_weights(lines)
    ]
    heading = ["budget", "mean bits", "size", "bits", "predicted loss", "measured"]
    return markdown(heading, cells) if cells else ""


def _bits_text(line: Mapping[str, str]) -> str:
    """Return the bits of a line, such as `w4a4; decoder.mlp w8`."""
    parts: dict[str, str] = {}
    for setting in line["settings"].split():
        key, _, value = setting.partition("=")
        if key.startswith("overrides."):
            part, _, kind = key.removeprefix("overrides.").rpartition(".")
            parts[part] = parts.get(part, "") + kind[0] + value
    return "; ".join([line["bits"], *(f"{part} {bits}" for part, bits in parts.items())])


def bit_errors(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate predicted and measured losses of allocations whose bits were drawn at random, and of uniform ones."""
    cells = [
        [
            line["allocation"],
            *(f"{float(line[name]):.3f}" for name in ("mean_bits", "predicted_loss", "measured_loss")),
        ]
        for line in sorted(of_newest_weights(lines), key=lambda line: float(line["measured_loss"]))
    ]
    return markdown(["bits", "mean", "predicted loss", "measured"], cells, right=3) if cells else ""
