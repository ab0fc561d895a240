"""A report as a file, in one of its forms."""

from __future__ import annotations

import json
from pathlib import Path

from saqsam.report.content import Report
from saqsam.report.html import to_html
from saqsam.report.markdown import to_markdown
from saqsam.utils.atomic_write import write_whole

PAGE = "report.html"
"""The short report beside a checkpoint."""


def write_report(report: Report, path: Path, form: str = "html") -> None:
    """Write a report as an atomic write.

    Args:
        report: The report.
        path: The file to write.
        form: `html`, `md` or `json`.

    Raises:
        ValueError: There is no such form.
    """
    write_whole(path, report_bytes(report, form))


def report_bytes(report: Report, form: str) -> bytes:
    """Render a report in one of the forms of `write_report`."""
    if form == "html":
        text = to_html(report)
    elif form == "md":
        text = to_markdown(report)
    elif form == "json":
        text = json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n"
    else:
        raise ValueError(f"form: expected html, md or json, got {form!r}")
    return text.encode()
