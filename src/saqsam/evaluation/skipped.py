"""Counts of what an evaluation skipped, or accepted although unusual, over dataset, inputs of tasks and records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from saqsam.data.types import Dataset, Indexed, Noted
from saqsam.evaluation.task import Record, Task
from saqsam.utils.counts import count_phrase, skipped_phrase

CROWD = "crowd region, which is never scored"
_DETECTION = "detection: "


def sum_skipped(dataset: Dataset, tasks: Sequence[Task], records: Sequence[Record]) -> Counter[str]:
    """Return the number of skipped items by reason."""
    skipped = Counter(dataset.index_skipped) if isinstance(dataset, Indexed) else Counter()
    for task in tasks:
        skipped |= _of_detections(task.input_skipped())
    for record in records:
        skipped.update(record["skipped"])
    return skipped


def sum_notes(dataset: Dataset, tasks: Sequence[Task], records: Sequence[Record]) -> Counter[str]:
    """Return how often something unusual was accepted, by description."""
    notes = Counter(dataset.index_notes) if isinstance(dataset, Noted) else Counter()
    for task in tasks:
        notes |= _of_detections(task.input_notes())
    for record in records:
        notes.update(record["notes"])
    return notes


def _of_detections(counts: Mapping[str, int]) -> Counter[str]:
    # Tasks share a detector, so callers take the larger count instead of the sum.
    return Counter({_DETECTION + what: number for what, number in counts.items()})


def check_scored(
    dataset: Dataset, tasks: Sequence[Task], records: Sequence[Record], skipped: Mapping[str, int]
) -> None:
    """Check that each task had something to score, unless it allows a dataset without objects.

    Raises:
        ValueError: A task had nothing to score; the message says what was skipped and why.
    """
    is_lost = any(number for reason, number in skipped.items() if not reason.startswith(_DETECTION))
    for task in tasks:
        own = [record[task.name] for record in records]
        if any(map(task.is_scored, own)) or not (task.needs_objects or is_lost):
            continue
        reasons = Counter(skipped) + Counter(task.why_nothing_was_scored(own))
        raise ValueError(nothing_to_score(dataset, len(records), reasons, task.scored))


def nothing_to_score(
    dataset: Dataset, images: int, reasons: Mapping[str, int], scored: str = "instances"
) -> str:
    """Return the error message for a dataset of which everything was skipped."""
    why = skipped_phrase(reasons) or "; no image has annotated objects"
    return f"data {dataset.name!r}: expected {scored} to score, found none in {count_phrase(images, 'images')}{why}"
