"""Compare methods by a paired bootstrap over objects: results/bootstrap.csv from the rows of methods.csv.

    python benchmarks/bootstrap.py                    # saq-sam and saq-sam-plus against every rival

Pairs are the IoUs of two methods on the same object, each the mean over the seeds that both were measured with. The
scores of single objects lie in results/scores. Comparisons of rows that have none there stay as they were; those of
earlier weights go.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import get_type_hints

import numpy as np
from numpy.typing import NDArray

from rows import FILL_BOX, RESULTS, Row, current, read_rows
from saqsam.utils.atomic_write import write_atomic
from scores import read_scores, scores_file

METHODS = ("saq-sam", "saq-sam-plus")
RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """Difference of mean IoU between a method and a rival.

    Attributes:
        model_hash: Weights of the float model.
        bits: Of both.
        calibration: Data set of the calibration.
        data: Data set of the evaluation.
        prompt: `box` or `point`.
        method: The one.
        rival: The other; `float` for the float model.
        seeds: How many seeds the IoUs are means of.
        instances: Number of objects.
        difference: Mean over the objects, above 0 where the method is ahead.
        low: 2.5 % quantile of the resampled means.
        high: 97.5 % quantile.
    """

    model_hash: str
    bits: str
    calibration: str
    data: str
    prompt: str
    method: str
    rival: str
    seeds: int
    instances: int
    difference: float
    low: float
    high: float


def interval(differences: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean, from resamples drawn with replacement."""
    random, count = np.random.default_rng(seed), len(differences)
    means = [differences[random.integers(0, count, count)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def compare(rows: Sequence[Row], csv_file: Path, method: str = METHODS[0]) -> Iterator[Comparison]:
    """Compare a method with all others that were measured under the same conditions and have scores.

    Raises:
        ValueError: If the scores are of other objects.
    """

    def circumstances(row: Row) -> tuple[str, ...]:
        return row.model_hash, row.bits, row.calibration, row.data, row.prompt

    plain = [row for row in rows if not row.settings and scores_file(csv_file, row.key).is_file()]
    plain.sort(key=circumstances)
    references = {(row.model_hash, row.data, row.prompt): row for row in plain if row.method == "float"}
    for key, group in groupby(plain, circumstances):
        of_method: dict[str, dict[int | None, Row]] = {}
        for row in group:
            of_method.setdefault(row.method, {})[row.seed] = row
        own = of_method.pop(method, {})
        reference = references.get((key[0], key[3], key[4]))
        if own and reference is not None:
            of_method["float"] = dict.fromkeys(own, reference)
        for rival, others in of_method.items():
            seeds = sorted(own.keys() & others.keys(), key=str)
            if rival == FILL_BOX or not seeds:
                continue
            ids, mine = _mean_scores([own[seed] for seed in seeds], csv_file)
            other_ids, theirs = _mean_scores([others[seed] for seed in seeds], csv_file)
            if ids != other_ids:
                raise ValueError(f"{method} and {rival} at {key[1]} on {key[3]} were scored on other objects")
            differences = mine - theirs
            low, high = interval(differences)
            yield Comparison(*key, method, rival, len(seeds), len(mine), float(differences.mean()), low, high)


def _mean_scores(rows: Sequence[Row], csv_file: Path) -> tuple[set[int], NDArray[np.float64]]:
    """Return the set of id checksums of some rows, one if all have the same objects, and their mean IoU [N]."""
    scores = [read_scores(scores_file(csv_file, row.key)) for row in rows]
    ids = {checksum for _, checksum in scores}
    if len(ids) > 1:
        raise ValueError(f"{rows[0].method} at {rows[0].bits} on {rows[0].data}: seeds of different objects")
    return ids, np.asarray(sum(ious for ious, _ in scores) / len(scores))


def read_csv(path: Path) -> list[Comparison]:
    """Read the comparisons of a results file; none if there is no file."""
    if not path.is_file():
        return []
    kinds = get_type_hints(Comparison)
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Comparison(**{name: kinds[name](value) for name, value in line.items()})
            for line in csv.DictReader(file)
        ]


def merge(old: Sequence[Comparison], new: Sequence[Comparison]) -> list[Comparison]:
    """Return new comparisons and the old ones of the same weights that they do not replace, in a fixed order."""
    weights = {comparison.model_hash for comparison in new}
    kept = [comparison for comparison in old if comparison.model_hash in weights]
    merged = {astuple(comparison)[:7]: comparison for comparison in [*kept, *new]}
    return [merged[key] for key in sorted(merged)]


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """Return the lines of the results file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Comparison)], lineterminator="\n")
    writer.writeheader()
    for comparison in comparisons:
        values = asdict(comparison)
        writer.writerow({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in values.items()})
    return text.getvalue()


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Paired bootstrap of a method against its rivals.")
    parser.add_argument("--csv", type=Path, default=RESULTS / "methods.csv", help="rows")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS / "bootstrap.csv")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        rows = current(read_rows(options.csv))
        comparisons = [c for method in options.methods for c in compare(rows, options.csv, method)]
        if not comparisons:
            raise ValueError(f"{options.csv}: nothing to compare {' or '.join(options.methods)} with")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_atomic(options.out, to_csv(merge(read_csv(options.out), comparisons)).encode())
    for comparison in comparisons:
        print(
            f"{comparison.bits} {comparison.data} {comparison.prompt}: {comparison.method} - {comparison.rival}"
            f" = {comparison.difference:+.4f} [{comparison.low:+.4f}, {comparison.high:+.4f}]"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
