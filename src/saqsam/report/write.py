"""Write a report as a file, in one of its forms."""

from __future__ import annotations

import pkgutil
from pathlib import Path

from saqsam.report.choices import FORMS
from saqsam.report.content import Report
from saqsam.utils.atomic_write import write_atomic

PAGE = "report.html"
"""File name of the short report in a checkpoint."""


def write_report(report: Report, path: Path, form: str = "html") -> None:
    """Write a report to a file, atomically.

    Args:
        report: The report.
        path: The file to write.
        form: One of `FORMS`: `html`, `md` or `json`.

    Raises:
        ValueError: There is no such form.
    """
    write_atomic(path, report_bytes(report, form))


def report_bytes(report: Report, form: str) -> bytes:
    """Render a report in one of the forms of `write_report`."""
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
    text: str = pkgutil.resolve_name(FORMS[form])(report)
    return text.encode()
