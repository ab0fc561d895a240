"""Render a report as one self-contained HTML page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from saqsam.models.parts import PART_LABELS
from saqsam.models.registry import module_label, slot_label
from saqsam.report import charts, table_rows
from saqsam.report.content import Picture, Report

_PAGE = resources.files("saqsam.report") / "page"
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8a919c")
"""Colors of shares, in turn: those of Okabe and Ito, and a gray."""


def to_html(report: Report) -> str:
    """Return the page."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        data_uri=_data_uri, iou=table_rows.iou, change=table_rows.change, module_name=module_label
    )
    template = environment.from_string(_read("report.html.j2"))
    return template.render(
        **_content(report), style=Markup(_read("style.css")), script=Markup(_read("script.js"))
    )


def _content(report: Report) -> dict[str, Any]:
    """Return the variables of the template."""
    content = {
        "report": report,
        "title": table_rows.title(report),
        "lead": table_rows.lead(report),
        "cards": list(table_rows.cards(report)),
        "recipe": json.dumps(report.inventory.recipe.to_dict(), indent=2),
        "bands": [
            ("Bytes on disk", _shares(report.inventory.share_of_bytes())),
            ("Multiply-accumulates", _shares(report.inventory.share_of_macs())),
        ],
        "parts": list(table_rows.parts(report)),
        "clipping_rows": table_rows.clipping_rows(report),
        "clips": table_rows.clips(report),
        "curves": [
            {
                "svg": Markup(charts.loss_curve(unit.steps, unit.losses, unit.unit)),
                "name": unit.unit,
                "moved": table_rows.percent(unit.moved),
            }
            for unit in report.units
        ],
        "plots": [
            {
                "svg": Markup(charts.histogram(distribution)),
                "name": slot_label(distribution.slot),
                "bits": distribution.bits,
                "outside": table_rows.percent(distribution.outside),
                "range": f"{distribution.range[0]:.3g} to {distribution.range[1]:.3g}",
            }
            for distribution in table_rows.worst_of_parts(report)
        ],
        "ranges": table_rows.ranges(report),
        "left_out": table_rows.left_out(report),
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    if report.accuracy is not None:
        content["accuracy_text"] = table_rows.accuracy_text(report)
        content["accuracy_rows"] = list(table_rows.accuracy_rows(report))
        content["agreement_text"] = table_rows.agreement_text(report)
    if report.allocation is not None:
        found = report.allocation
        points = [(point.mean_bits, point.loss) for point in found.frontier]
        content["allocation_text"] = table_rows.allocation_text(report)
        content["allocation_rows"] = table_rows.allocation_rows(report)
        content["frontier"] = Markup(charts.frontier(points, (found.mean_bits, found.measured_loss)))
    if report.sensitivity is not None:
        content["sensitivity_rows"] = table_rows.sensitivity_rows(report)
        names = {group.name for group in report.sensitivity.groups}
        content["sensitivity_unit"] = "part" if names <= PART_LABELS.keys() else "layer"
    content["sections"] = [(anchor, name) for anchor, name, is_there in _sections(report) if is_there]
    return content


def _sections(report: Report) -> list[tuple[str, str, bool]]:
    """Return anchor, name and presence of each section."""
    return [
        ("how", "What was done", True),
        ("size", "Size and bits", True),
        ("budget", "Budget", report.allocation is not None),
        ("accuracy", "Accuracy", report.accuracy is not None),
        ("gallery", "Masks", bool(report.gallery)),
        ("sensitivity", "Sensitivity", report.sensitivity is not None),
        ("clipping", "Attention", bool(report.clipping or report.focus)),
        ("learning", "Learning", bool(report.units)),
        ("activations", "Activations", bool(report.distributions)),
        ("about", "About", True),
    ]


def _shares(shares: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "share": share,
            "text": f"{name} {table_rows.percent(share)}",
            "color": _COLORS[number % len(_COLORS)],
        }
        for number, (name, share) in enumerate(shares.items())
    ]


def _data_uri(picture: Picture) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture.data).decode()}"


def _read(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")
