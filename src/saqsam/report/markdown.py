"""Render a report as Markdown, without pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saqsam.report import table_rows
from saqsam.report.content import Report
from saqsam.report.table_rows import change, iou


def to_markdown(report: Report) -> str:
    """Return the report as text."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield from (f"# {table_rows.title(report)}", "", table_rows.lead(report), "")
    for card in table_rows.cards(report):
        yield (
            f"- {card.label}: **{card.value}** ({card.more})"
            if card.more
            else f"- {card.label}: **{card.value}**"
        )
    yield from ("", "## What was done", "")
    for number, step in enumerate(report.steps, 1):
        yield f"{number}. {step}"
    yield from ("", "## Size and bits", "")
    for name, shares in (
        ("Bytes", report.inventory.share_of_bytes()),
        ("Multiply-accumulates", report.inventory.share_of_macs()),
    ):
        yield f"- {name}: " + ", ".join(
            f"{table_rows.percent(share)} {width}" for width, share in shares.items()
        )
    yield ""
    yield from _table(
        {"name": "part", "bits": "bits", "parameters": "parameters", "size": "size"}, table_rows.parts(report)
    )
    if report.allocation is not None:
        yield from ("## Bits under a budget", "", table_rows.allocation_text(report), "")
        headings = {"name": "operand", "bits": "bits", "losses": "loss alone, by bits"}
        yield from _table(headings, table_rows.allocation_rows(report))
    if report.accuracy is not None:
        yield from ("## Accuracy", "", table_rows.accuracy_text(report), "")
        headings = {"name": "", "float": "float", "quantized": "quantized", "change": "change"}
        yield from _table({**headings, "interval": "95 % interval"}, table_rows.accuracy_rows(report))
        if table_rows.agreement_text(report):
            yield from (table_rows.agreement_text(report), "")
    if report.gallery:
        yield from ("Images with the largest accuracy drop:", "")
        rows = [
            {
                "file": g.file_name,
                "float": iou(g.first),
                "quantized": iou(g.other),
                "change": change(g.other - g.first),
            }
            for g in report.gallery
        ]
        headings = {"file": "image", "float": "float", "quantized": "quantized", "change": "change"}
        yield from _table(headings, rows)
    yield from _measured(report)
    for name, why in table_rows.left_out(report):
        yield f"- Not in this report: {name}: {why}"
    yield from ("", ", ".join(f"{name} {version}" for name, version in report.versions.items()))


def _measured(report: Report) -> Iterator[str]:
    if report.sensitivity is not None:
        sensitivity = report.sensitivity
        yield from ("## Which parts cost accuracy", "")
        yield (
            f"IoU with the float model's masks, {sensitivity.objects} objects in {sensitivity.images} images; "
            f"all quantized: {iou(sensitivity.quantized)}."
        )
        yield ""
        rows = [
            {"name": row["name"], "lost": change(-row["lost"]), "gained": change(row["gained"])}
            for row in table_rows.sensitivity_rows(report)
        ]
        yield from _table({"name": "", "lost": "quantized alone", "gained": "left float"}, rows)
    if report.clipping:
        yield from ("## Focus deviation of the decoder's attentions", "")
        rows = [
            {"name": row["name"], "before": iou(row["before"]), "after": iou(row["after"])}
            for row in table_rows.clipping_rows(report)
        ]
        yield from _table({"name": "attention", "before": "before clipping", "after": "after"}, rows)
    if report.units:
        yield from ("## Learning", "")
        rows = [
            {
                "name": unit.unit,
                "first": f"{unit.losses[0]:.3g}" if unit.losses else "–",
                "last": f"{unit.losses[-1]:.3g}" if unit.losses else "–",
                "moved": table_rows.percent(unit.moved),
            }
            for unit in report.units
        ]
        headings = {"name": "unit", "first": "first loss", "last": "last loss", "moved": "weights moved"}
        yield from _table(headings, rows)
    if report.distributions:
        yield from ("## Activations and their ranges", "")
        headings = {"name": "tensor", "bits": "bits", "seen": "seen", "range": "range", "outside": "outside"}
        yield from _table(headings, table_rows.ranges(report))


def _table(
    headings: Mapping[str, str], rows: Sequence[Mapping[str, Any]] | Iterator[Mapping[str, Any]]
) -> Iterator[str]:
    """Yield a table of the rows, with their keys mapped to headings, and an empty line."""
    yield "| " + " | ".join(headings.values()) + " |"
    yield "| --- |" + " ---: |" * (len(headings) - 1)
    for row in rows:
        yield "| " + " | ".join(str(row[key]).replace("|", "\\|") for key in headings) + " |"
    yield ""
