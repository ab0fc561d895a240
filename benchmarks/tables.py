"""Write the tables of the documentation from benchmark rows.

    python benchmarks/tables.py            # write all tables
    python benchmarks/tables.py --check    # exit with 1 if a page differs from the rows

A page marks a table with `<!-- table:NAME -->` and `<!-- /table -->`; `<!-- table:NAME coco_val -->` is the part of it
for one dataset. `TABLES`, `VARIANT_TABLES` and `OTHER_TABLES` hold the names.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from other_tables import OTHER_TABLES
from plain_rows import read_plain
from row_tables import TABLES, VARIANT_TABLES
from rows import RESULTS, Row, current, read_rows

ROOT = Path(__file__).resolve().parents[1]
ROWS = (RESULTS / "ptq.csv", RESULTS / "methods.csv")
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "src").rglob("README.md")),
)
NOTHING_YET = "*Not measured yet: run `python benchmarks/ptq.py`, then `python benchmarks/tables.py`.*"

_BLOCK = re.compile(r"<!-- table:(\w+)(?: (\w+))? -->\n(.*?)<!-- /table -->", re.DOTALL)
_MARKER = re.compile(r"<!-- (?:table:|/table)")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Write the tables of the documentation from measured rows.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    parser.add_argument(
        "--csv", type=Path, action="append", help="rows; can be repeated, the last file's count"
    )
    parser.add_argument("pages", nargs="*", type=Path, default=list(PAGES), help="Markdown files")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        rows = {row.key: row for path in options.csv or ROWS for row in read_rows(path)}
        stale = update_pages(options.pages, list(rows.values()), write=not options.check)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for page in stale:
        print(f"{page}: stale, run benchmarks/tables.py" if options.check else f"{page}: written")
    return 1 if stale and options.check else 0


def update_pages(pages: Iterable[Path], rows: Sequence[Row], *, write: bool) -> list[Path]:
    """Return the pages with outdated tables, and rewrite them if `write` is set."""
    stale = []
    for page in pages:
        old = page.read_text(encoding="utf-8")
        try:
            new = fill_tables(old, rows)
        except ValueError as error:
            raise ValueError(f"{page}: {error}") from error
        if new != old:
            stale.append(page)
            if write:
                page.write_text(new, encoding="utf-8")
    return stale


def fill_tables(text: str, rows: Sequence[Row]) -> str:
    """Return a page with all its tables regenerated.

    Raises:
        ValueError: An unknown table, a marker without its partner, or rows that do not fit together.
    """
    unmodified = [row for row in rows if not row.settings]
    shown = current(unmodified)

    def fill(match: re.Match[str]) -> str:
        name, data = match[1], match[2]
        if name in VARIANT_TABLES:
            variants = [row for row in current(read_rows(RESULTS / f"{name}.csv")) if row.prompt == "box"]
            widths, models = {row.bits for row in variants}, {row.model for row in variants}
            weights = {row.model_hash for row in variants}
            # Of these models, methods of the same weights, even where newer ones have been measured.
            same = current(
                [row for row in unmodified if row.model not in models or row.model_hash in weights]
            )
            plain = [row for row in same if row.prompt == "box" and row.bits in widths]
            table = VARIANT_TABLES[name](variants, plain) or NOTHING_YET
        elif name in OTHER_TABLES:
            file, make = OTHER_TABLES[name]
            table = make(read_plain(RESULTS / file)) or NOTHING_YET
        elif name in TABLES:
            table = TABLES[name]([row for row in shown if data in (None, row.data)]) or NOTHING_YET
        else:
            known = [*TABLES, *VARIANT_TABLES, *OTHER_TABLES]
            raise ValueError(f"no table {name!r}; expected one of {', '.join(known)}")
        return f"<!-- table:{name}{f' {data}' if data else ''} -->\n\n{table}\n\n<!-- /table -->"

    blocks = list(_BLOCK.finditer(text))
    if any(_MARKER.search(block[3]) for block in blocks) or len(_MARKER.findall(text)) != 2 * len(blocks):
        raise ValueError("every <!-- table:NAME --> needs a <!-- /table --> of its own")
    return _BLOCK.sub(fill, text)


if __name__ == "__main__":
    sys.exit(main())
