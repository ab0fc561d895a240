"""Choices of a report; imports nothing, so that the command line can list them at once."""

from __future__ import annotations

from typing import Literal

Level = Literal["parts", "layers"]
"""Granularity of the sensitivity analysis: the recipe's parts, or every single layer."""

FORMS = {
    "html": "saqsam.report.html:to_html",
    "md": "saqsam.report.markdown:to_markdown",
    "json": "saqsam.report.plain:to_json",
}
"""Forms of a report by the suffix of their files, and the function that renders each."""
