"""Rows of benchmarks that have columns of their own, in CSV files that only ever grow."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def read_plain(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, or none if it does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_plain(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Add rows, which may lack columns, to a file, which is begun where there is none."""
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def of_newest_weights(lines: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return the rows of the weights that were measured last, by the column `model_hash`; the others are history."""
    return [line for line in lines if line["model_hash"] == lines[-1]["model_hash"]]


def of_most_images(lines: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return the rows of the largest number of images of each dataset; the others are trials (`--limit`)."""
    most: dict[str, int] = {}
    for line in lines:
        most[line["data"]] = max(int(line["images"]), most.get(line["data"], 0))
    return [line for line in lines if int(line["images"]) == most[line["data"]]]
