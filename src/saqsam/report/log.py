"""Log of a quantization, as JSON and as a picture of loss curves and focus deviations."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saqsam.allocation.allocate import Allocation
from saqsam.allocation.log import AllocationLog, read_allocation
from saqsam.models.registry import module_label
from saqsam.ptq.log import AttentionClipping, QuantizationLog, UnitLog, read_clipping, read_unit_log
from saqsam.recipes.recipe import Recipe
from saqsam.utils.atomic_write import write_atomic
from saqsam.utils.errors import CheckpointError, shorten
from saqsam.utils.strict_json import read_json_object

LOG_JSON, LOG_PICTURE = "quantization.json", "quantization.png"
_BEFORE, _AFTER, _INK = "#b9bec9", "#1f6feb", "#333a45"


@dataclass(frozen=True)
class Source:
    """Inputs that a checkpoint was made from, as written on the command line.

    Attributes:
        model: Float model.
        calibration: Calibration set.
        detections: Detections file; None without one.
        ignore_label: Value of mask pixels that do not count, as `--ignore-label`.
    """

    model: str
    calibration: str
    detections: str | None = None
    ignore_label: str = "auto"


@dataclass(frozen=True)
class KnownLog:
    """Log that was read from a file.

    Attributes:
        log: Log of the quantization.
        source: Inputs of the checkpoint; None where they were not recorded.
        allocation: How a budget chose its bits; None without a budget.
    """

    log: QuantizationLog
    source: Source | None
    allocation: AllocationLog | None = None


def write_log(
    log: QuantizationLog,
    recipe: Recipe,
    folder: Path,
    source: Source | None = None,
    allocation: Allocation | None = None,
) -> None:
    """Write `quantization.json`, and `quantization.png` where something was clipped or learned.

    Args:
        log: Log of the quantization.
        recipe: Recipe of the checkpoint.
        folder: Folder of the checkpoint.
        source: Inputs of the checkpoint.
        allocation: The bit allocation that chose the recipe; None without a budget.
    """
    made_of: dict[str, Any] = {} if source is None else {"source": asdict(source)}
    if allocation is not None:
        made_of["allocation"] = allocation.log.to_dict()
    content = {"recipe": recipe.to_dict(), **made_of, **asdict(log)}
    write_atomic(folder / LOG_JSON, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    if log.clipping or log.units:
        write_atomic(folder / LOG_PICTURE, draw_log(log, recipe.name))


def read_log(folder: Path) -> KnownLog | None:
    """Return the log beside a checkpoint; None if there is none.

    Raises:
        CheckpointError: The log is damaged.
    """
    path = folder / LOG_JSON
    if not path.is_file():
        return None
    content = {"skipped": {}, "notes": {}, "images": 0, "prompts": 0, **read_json_object(path)}
    try:
        log = QuantizationLog(
            _counts(content, "signs"),
            [read_clipping(entry) for entry in _entries(content, "clipping")],
            [read_unit_log(entry) for entry in _entries(content, "units")],
            _counts(content, "skipped"),
            _counts(content, "notes"),
            _count(content["images"]),
            _count(content["prompts"]),
        )
        source = _read_source(content["source"]) if "source" in content else None
        allocation = read_allocation(content["allocation"]) if "allocation" in content else None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return KnownLog(log, source, allocation)


def _entries(content: dict[str, Any], name: str) -> list[Any]:
    entries = content.get(name)
    if not isinstance(entries, list):
        raise ValueError(f"{name}: expected a list, got {shorten(entries)}")
    return entries


def _counts(content: dict[str, Any], name: str) -> dict[str, int]:
    counts = content.get(name)
    if not isinstance(counts, dict):
        raise ValueError(f"{name}: expected counts by name, got {shorten(counts)}")
    return {key: _count(count) for key, count in counts.items()}


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a count, got {shorten(value)}")
    return value


def _read_source(value: Any) -> Source:
    required, names = {"model", "calibration"}, {"model", "calibration", "detections", "ignore_label"}
    if not isinstance(value, dict) or not required <= value.keys() <= names:
        raise ValueError(f"source: expected model, calibration and detections, got {shorten(value)}")
    if not all(
        isinstance(text, str) or (name == "detections" and text is None) for name, text in value.items()
    ):
        raise ValueError(f"source: expected text, got {shorten(value)}")
    return Source(**value)


def draw_log(log: QuantizationLog, title: str) -> bytes:
    """Draw the loss of each unit and the focus deviation of each attention, as PNG."""
    # Imported late: only this needs it, and it is slow to import.
    from matplotlib.figure import Figure

    columns = min(4, max(1, len(log.units)))  # a single curve takes the whole width
    rows = -(-len(log.units) // columns)
    clipping_rows = 1 if log.clipping else 0
    figure = Figure(figsize=(11, 2.3 * rows + 2.8 * clipping_rows + 0.5), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=_INK)
    grid = figure.add_gridspec(
        rows + clipping_rows, columns, height_ratios=[1.0] * rows + [1.25] * clipping_rows
    )
    for index, unit in enumerate(log.units):
        _draw_losses(figure.add_subplot(grid[index // columns, index % columns]), unit)
    if log.clipping:
        _draw_clipping(figure.add_subplot(grid[rows, :]), log.clipping)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw_losses(axes, unit: UnitLog) -> None:  # type: ignore[no-untyped-def]
    axes.plot(unit.steps, unit.losses, color=_AFTER, linewidth=1.5)
    moved = f", {unit.moved:.1%} of weights moved" if unit.moved else ""
    axes.set_title(f"loss of the {unit.unit}{moved}", fontsize=8, color=_INK, loc="left")
    axes.set_ylim(bottom=0)
    _plain(axes)


def _draw_clipping(axes, clipping: list[AttentionClipping]) -> None:  # type: ignore[no-untyped-def]
    names = [short_name(entry.name) for entry in clipping]
    places = range(len(names))
    axes.bar(
        [p - 0.2 for p in places], [e.before for e in clipping], 0.38, color=_BEFORE, label="before clipping"
    )
    axes.bar([p + 0.2 for p in places], [e.after for e in clipping], 0.38, color=_AFTER, label="after")
    axes.set_xticks(list(places), names)
    axes.set_title("focus deviation of the decoder's attentions", fontsize=9, color=_INK, loc="left")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)


def _plain(axes) -> None:  # type: ignore[no-untyped-def]
    axes.tick_params(labelsize=7, colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)


def short_name(attention: str) -> str:
    """Return the display name of a decoder attention on two lines, split at its comma."""
    return module_label(attention).replace(", ", "\n")
