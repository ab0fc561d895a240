"""Rows of a report's tables as text, shared by the renderings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from saqsam.analysis.inventory import mac_width
from saqsam.evaluation.compare import Interval
from saqsam.models.parts import PAPER_PARTS
from saqsam.models.registry import module_label, slot_label
from saqsam.report.content import Distribution, Report
from saqsam.report.labels import part_name, short_path
from saqsam.utils.counts import count_phrase

METRICS = {
    "miou": "mean IoU",
    "boundary_iou": "mean boundary IoU",
    "share_above_90": "share of objects above IoU 0.9",
}
_SECTIONS = {
    "log": "Clipping and learning",
    "accuracy": "Accuracy",
    "gallery": "Masks",
    "sensitivity": "Sensitivity",
    "distributions": "Activations",
    "focus": "Focus",
}


@dataclass(frozen=True)
class Card:
    """Key metric with its label and a remark."""

    label: str
    value: str
    more: str


def iou(value: float | int | None) -> str:
    """Return a metric in [0, 1] with three digits; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def change(value: float) -> str:
    """Return a signed change with three digits, without a sign where it rounds to 0."""
    return f"{value:+.3f}".replace("-", "−") if abs(value) >= 0.0005 else "0.000"


def interval(estimate: Interval | None) -> str:
    """Return both ends of an interval; a dash where there are none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return "–"
    return f"{change(estimate.low)} to {change(estimate.high)}"


def megabytes(count: int) -> str:
    """Return a number of bytes in megabytes."""
    return f"{count / 1e6:.1f} MB" if count >= 10_000_000 else f"{count / 1e6:.2f} MB"


def percent(share: float) -> str:
    """Return a share in percent, with two significant digits where it is small."""
    return f"{100 * share:.1f} %" if share >= 0.01 or share == 0 else f"{100 * share:.2g} %"


def title(report: Report) -> str:
    """Return the title of a report: model and recipe."""
    return report.name if report.source is None else f"{short_path(report.source.model)}, {report.name}"


def lead(report: Report) -> str:
    """Summarize a report in one or two sentences."""
    inventory = report.inventory
    shares = inventory.share_of_macs()
    width, share = next(iter(shares.items()))
    text = (
        f"A Segment Anything Model quantized after training: {megabytes(inventory.float32_bytes)} of float32 became "
        f"{megabytes(report.disk_bytes)}, with {percent(share)} of its multiply-accumulates {_width(width)}."
    )
    accuracy = report.accuracy
    if accuracy is not None and accuracy.float is not None and accuracy.difference is not None:
        estimate = accuracy.difference.difference
        text += (
            f" On {accuracy.images} images of {accuracy.dataset}, mean IoU with the truth went from "
            f"{iou(accuracy.float['miou'])} to {iou(accuracy.quantized['miou'])}"
        )
        text += "." if interval(estimate) == "–" else f" (change {interval(estimate)} with 95 % confidence)."
    return text


def _width(width: str) -> str:
    """Return the bit widths of a product in words."""
    match = re.fullmatch(r"([wa])(\d)a(\d)", width)
    if match is None:
        return f"in {width}"
    kind, one, other = match.groups()
    if kind == "a":
        return f"on activations of {one} and {other} bits"
    return f"on {one}-bit weights and {other}-bit activations ({width})"


def cards(report: Report) -> Iterator[Card]:
    """Yield the key metrics."""
    inventory = report.inventory
    ratio = inventory.float32_bytes / report.disk_bytes if report.disk_bytes else 0
    yield Card("Size on disk", megabytes(report.disk_bytes), f"{ratio:.1f}× smaller than float32")
    macs = list(inventory.share_of_macs().items())
    yield Card(
        "Multiply-accumulates",
        f"{percent(macs[0][1])} {macs[0][0]}",
        ", ".join(f"{percent(s)} {w}" for w, s in macs[1:3]),
    )
    accuracy = report.accuracy
    if accuracy is None:
        return
    if accuracy.float is None or accuracy.difference is None:
        yield Card(
            "Mean IoU", iou(accuracy.quantized["miou"]), f"{accuracy.images} images of {accuracy.dataset}"
        )
        return
    estimate = accuracy.difference.difference
    assert estimate is not None
    more = f"{iou(accuracy.float['miou'])} → {iou(accuracy.quantized['miou'])}"
    ends = interval(estimate)
    yield Card("Change of mean IoU", change(estimate.mean), more if ends == "–" else f"{more}; 95 %: {ends}")
    agreement = accuracy.difference.agreement
    if agreement is not None:
        yield Card(
            "Same masks as float",
            f"IoU {iou(agreement.iou)}",
            f"{percent(agreement.share_above_90)} of masks above 0.9",
        )


def parts(report: Report) -> Iterator[dict[str, Any]]:
    """Yield size and bits of each part; `share` is relative to the largest."""
    largest = max(part.bytes for part in report.inventory.parts)
    for part in report.inventory.parts:
        if not part.bytes:
            continue
        yield {
            "name": part_name(part.part),
            "bits": mac_width(part),
            "parameters": f"{part.parameters:,}",
            "size": _bytes(part.bytes),
            "ratio": f"1/{4 * part.parameters / part.bytes:.1f}" if part.parameters else "",
            "share": part.bytes / largest,
        }


def accuracy_rows(report: Report) -> Iterator[dict[str, str]]:
    """Yield the metrics of float and quantized model."""
    accuracy = report.accuracy
    assert accuracy is not None
    exact: Mapping[str, Any] = accuracy.float or {}
    for name, words in METRICS.items():
        before, after = exact.get(name), accuracy.quantized[name]
        has_interval = name == "miou" and accuracy.difference is not None
        yield {
            "name": words,
            "float": iou(before),
            "quantized": iou(after),
            "change": "–" if before is None or after is None else change(after - before),
            "interval": interval(accuracy.difference.difference)
            if has_interval and accuracy.difference
            else "",
        }


def accuracy_text(report: Report) -> str:
    """Describe what was scored."""
    accuracy = report.accuracy
    assert accuracy is not None
    return (
        f"{accuracy.quantized['instances']:,} objects in {accuracy.images} images of {accuracy.dataset}, each "
        f"prompted with {PROMPTS[accuracy.prompt]}."
    )


PROMPTS = {
    "box": "its own box",
    "point": "one point on it",
    "clicks": "five clicks, each where the mask is wrong",
}


def agreement_text(report: Report) -> str:
    """Describe the agreement of the masks; empty without a float model."""
    difference = None if report.accuracy is None else report.accuracy.difference
    if difference is None or difference.agreement is None:
        return ""
    agreement = difference.agreement
    return (
        f"Masks of the quantized model have a mean IoU of {iou(agreement.iou)} with those of the float model; "
        f"{percent(agreement.share_above_90)} of them have one above 0.9."
    )


def sensitivity_rows(report: Report) -> list[dict[str, Any]]:
    """Return the loss and gain of each group, the largest loss first, with bar lengths in [0, 1]."""
    sensitivity = report.sensitivity
    assert sensitivity is not None
    rows = [(part_name(g.name), 1 - g.alone, g.without - sensitivity.quantized) for g in sensitivity.groups]
    largest = max((max(lost, gained) for _, lost, gained in rows), default=0) or 1
    return [
        {
            "name": name,
            "lost": lost,
            "gained": gained,
            "lost_share": lost / largest,
            "gained_share": max(0.0, gained / largest),
        }
        for name, lost, gained in sorted(rows, key=lambda row: -row[1])
    ]


def allocation_text(report: Report) -> str:
    """Return what a budget chose, as sentences."""
    found = report.allocation
    assert found is not None
    return (
        f"A budget chose the bits of each part: {found.mean_bits:.2f} on average over the operands of "
        f"multiply-accumulates, {found.mean_weight_bits:.2f} of weights and {found.mean_activation_bits:.2f} of "
        f"activations. Before learning, masks differed from the float model's by {iou(found.measured_loss)} (1 - IoU, "
        f"mean over {count_phrase(found.images, 'calibration images')}); {iou(found.predicted_loss)} was predicted."
    )


def allocation_rows(report: Report) -> list[dict[str, str]]:
    """Return the chosen bits of each operand, with its loss alone at each width that was measured."""
    found, recipe = report.allocation, report.inventory.recipe
    assert found is not None
    losses: dict[tuple[str, str], dict[int, float]] = {}
    for error in found.errors:
        losses.setdefault((error.part, error.kind), {})[error.bits] = error.loss
    return [
        {
            "name": f"{part_name(part)}, {kind}",
            "bits": str(recipe.bits_of(part)[kind == "activations"]),
            "losses": ", ".join(f"{bits}: {iou(loss)}" for bits, loss in sorted(by_bits.items())),
        }
        for part in PAPER_PARTS
        for kind in ("weights", "activations")
        if (by_bits := losses.get((part, kind)))
    ]


def clipping_rows(report: Report) -> list[dict[str, Any]]:
    """Return the focus deviation of each attention before and after clipping."""
    return [
        {"name": module_label(entry.name), "before": entry.before, "after": entry.after}
        for entry in report.clipping
    ]


def clips(report: Report) -> list[dict[str, str]]:
    """Return the chosen clipping ranges."""
    return [
        {
            "name": slot_label(f"{entry.name}.{clip.slot}"),
            "quantile": "kept" if clip.quantile is None else f"{clip.quantile:g}",
            "low": f"{clip.low:.3g}",
            "high": f"{clip.high:.3g}",
        }
        for entry in report.clipping
        for clip in entry.clips
    ]


def worst_of_parts(report: Report) -> list[Distribution]:
    """Return the activation of each part with the largest share outside its range."""
    worst: dict[str, Distribution] = {}
    for distribution in report.distributions:  # in that order already
        worst.setdefault(distribution.part, distribution)
    return list(worst.values())


def ranges(report: Report) -> list[dict[str, str]]:
    """Return values and range of every activation."""
    return [
        {
            "name": slot_label(distribution.slot),
            "bits": str(distribution.bits),
            "seen": f"{distribution.seen[0]:.3g} to {distribution.seen[1]:.3g}",
            "range": f"{distribution.range[0]:.3g} to {distribution.range[1]:.3g}",
            "outside": percent(distribution.outside),
        }
        for distribution in report.distributions
    ]


def left_out(report: Report) -> list[tuple[str, str]]:
    """Return the missing sections with the reasons."""
    return [(_SECTIONS[name], why) for name, why in report.left_out.items()]


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
