"""Render a report as JSON."""

from __future__ import annotations

import json

from saqsam.report.content import Report


def to_json(report: Report) -> str:
    """Return the report as JSON text."""
    return json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n"
