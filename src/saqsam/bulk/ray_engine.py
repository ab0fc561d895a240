"""Segment parts on a Ray cluster: Ray Data maps the numbers of parts over actors that hold the model.

A part is the unit of work and of retries. Its file is written as in a single process, so that a part may be done twice,
and what is finished when a cluster dies stays finished. Ray's own row checkpoints are not needed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from saqsam.bulk.plan import Plan
from saqsam.bulk.worker import Job, PartOutcome, PartWorker

_PART, _OUTCOME = "part", "outcome"


class _Actor:
    """Holds the model in a process of the cluster."""

    def __init__(self, job: Job, plan: Plan) -> None:
        self._worker = PartWorker(job, plan)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        outcomes = [self._worker.run(int(part)) for part in batch[_PART]]
        return {_OUTCOME: [json.dumps(asdict(one)) for one in outcomes]}


def run_on_ray(
    job: Job, plan: Plan, parts: Sequence[int], *, actors: int | None, cpus: float, gpus: float
) -> Iterator[PartOutcome]:
    """Segment parts on the cluster that Ray finds (`RAY_ADDRESS`), or on this machine if there is none.

    Ray Data starts a killed actor again, any number of times, and gives its part to one that lives. `Attempts` ends
    this where an image is the cause.

    Args:
        job: The job. All machines of the cluster see its folder and its images under the same paths.
        plan: The plan of the run.
        parts: Numbers of the parts.
        actors: Actors; None for as many as the cluster has room for.
        cpus: Cores of an actor.
        gpus: GPUs of an actor.

    Yields:
        The outcome of each part, in the order in which they end.
    """
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    for name in ("ray", "ray.data"):  # the command shows the progress itself
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    pool = ActorPoolStrategy(size=actors) if actors else ActorPoolStrategy(min_size=1, max_size=len(parts))
    numbers = ray.data.from_items([{_PART: part} for part in parts], override_num_blocks=len(parts))
    outcomes = numbers.map_batches(
        _Actor,
        fn_constructor_args=(job, plan),
        batch_size=1,
        compute=pool,
        num_cpus=cpus,
        num_gpus=gpus or None,
    )
    for row in outcomes.iter_rows():
        fields = json.loads(row[_OUTCOME])
        pairs = {name: tuple(map(tuple, fields[name])) for name in ("failures", "notes")}
        yield PartOutcome(**{**fields, **pairs})
