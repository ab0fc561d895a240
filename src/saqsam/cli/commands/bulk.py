"""Implementation of `saqsam segment --format parquet`."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saqsam.bulk.collections import Collection, Inputs
from saqsam.bulk.plan import Plan, Shard, claim_folder, finished_parts, read_plan
from saqsam.bulk.table import Result
from saqsam.bulk.worker import Job, PartOutcome, PartWorker
from saqsam.cli.commands.segment import NO_PROMPTS, Machine, make_task, warn_of_failures
from saqsam.cli.inputs import usable_device
from saqsam.cli.progress import progress_phases
from saqsam.cli.segment_options import IMAGES_PER_FILE, RAY, BulkOptions, SegmentOutputs, SegmentPrompts
from saqsam.cli.terminal import say, warn
from saqsam.evaluation.fingerprint import model_identity
from saqsam.export import is_export
from saqsam.export.manifest import parse_manifest
from saqsam.inference.predictor import Predictor
from saqsam.models.registry import family_of
from saqsam.utils.atomic_write import check_writable
from saqsam.utils.counts import count_phrase
from saqsam.utils.progress import Progress

PHASE = "segmenting"

SMALL_SIDE = 512
"""Input side in pixels up to which an export runs with one thread for each image."""
CORES_PER_LARGE_IMAGE = 8


def segment_bulk(
    model: str,
    inputs: Sequence[str],
    prompts: SegmentPrompts,
    generator: Mapping[str, Any],
    outputs: SegmentOutputs,
    bulk: BulkOptions,
    machine: Machine,
    *,
    overwrite: bool,
) -> None:
    """Segment the parts of this process that are not there yet, and write a Parquet file for each."""
    assert outputs.out_path is not None
    folder = outputs.out_path.resolve()
    model = _absolute(model)
    named = Inputs(
        tuple(_absolute(name) for name in inputs),
        None if prompts.detections is None else prompts.detections.resolve(),
        bulk.images_per_file or IMAGES_PER_FILE,
    )
    collection = named.open()
    task = make_task(prompts, generator, outputs)
    if not (task.prompts or task.prompt_file or task.generator or collection.has_prompts):
        raise ValueError(NO_PROMPTS)
    if task.prompt_file is not None and collection.names is not None:
        task.prompt_file.match(collection.names)
    check_writable(folder)
    shard = Shard() if bulk.shard is None else Shard.parse(bulk.shard)
    workers = bulk.workers or _default_workers(model, machine.threads)
    if machine.threads is None and workers > 1:
        machine = replace(machine, threads=max(1, _cores() // workers))
    open_predictor = functools.partial(_open_predictor, machine, model)
    predictor = open_predictor()
    plan = Plan.of(model_identity(predictor), model, named, collection, task)
    if overwrite and folder.is_dir():
        _remove_run(folder)
    claim_folder(folder, plan)
    done = finished_parts(folder)
    parts = [part for part in shard.of(plan.parts) if part not in done]
    job = Job(open_predictor, named, task, folder, workers, bulk.batch)
    if done:
        say(f"{len(done)} of {count_phrase(plan.parts, 'parts')} are there")
    with progress_phases("images" if collection.names is not None else "parts") as progress:
        if bulk.engine == RAY:
            del predictor
            outcomes = list(
                _with_progress(
                    _ray_outcomes(job, plan, parts, bulk.actors, machine), collection, parts, progress
                )
            )
        else:
            outcomes = _run_here(job, plan, predictor, collection, parts, progress)
    _report(outcomes, folder)


def _absolute(name: str) -> str:
    """Return an existing path as an absolute one, since Ray's actors work elsewhere."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _open_predictor(machine: Machine, model: str) -> Predictor:
    sam, processor, _ = machine.open(model)
    return Predictor(sam, processor)


def _default_workers(model: str, threads: int | None) -> int:
    """Return the threads that run a model where the command names none.

    torch and runtimes use several cores for one image well if the image is large. For small ones, a worker per core is
    faster; for large ones, it would only take memory.
    """
    if threads is not None:
        return max(1, _cores() // threads)
    if not is_export(model):
        return 1
    config = parse_manifest(Path(model)).sam_config
    side = family_of(config).input_spec(config).pixels[-1]
    return _cores() if side <= SMALL_SIDE else max(1, _cores() // CORES_PER_LARGE_IMAGE)


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _run_here(
    job: Job,
    plan: Plan,
    predictor: Predictor,
    collection: Collection,
    parts: Sequence[int],
    progress: Progress,
) -> list[PartOutcome]:
    """Segment parts in this process, reporting each image."""
    worker = PartWorker(job, plan, predictor)
    total = _image_count(collection, parts)
    done = 0

    def on_image(result: Result) -> None:
        nonlocal done
        done += 1
        if total is not None and done < total:
            progress(PHASE, done, total)

    outcomes = []
    progress(PHASE, 0, len(parts) if total is None else total)
    for number, part in enumerate(parts, 1):
        outcomes.append(worker.run(part, on_image))
        if total is None:
            progress(PHASE, number, len(parts), count_phrase(done, "images"))
    if total is not None:
        progress(PHASE, total, total)
    return outcomes


def _ray_outcomes(
    job: Job, plan: Plan, parts: Sequence[int], actors: int | None, machine: Machine
) -> Iterator[PartOutcome]:
    """Segment parts on a Ray cluster."""
    if not parts:
        return
    from saqsam.bulk.ray_engine import run_on_ray

    cpus = (machine.threads or 1) * job.workers
    gpus = float(usable_device(machine.device).startswith("cuda"))
    yield from run_on_ray(job, plan, parts, actors=actors, cpus=cpus, gpus=gpus)


def _with_progress(
    outcomes: Iterator[PartOutcome], collection: Collection, parts: Sequence[int], progress: Progress
) -> Iterator[PartOutcome]:
    """Yield outcomes, reporting each."""
    total = _image_count(collection, parts)
    done = 0
    progress(PHASE, 0, len(parts) if total is None else total)
    for number, outcome in enumerate(outcomes, 1):
        done += outcome.images
        progress(PHASE, number if total is None else done, len(parts) if total is None else total)
        yield outcome


def _image_count(collection: Collection, parts: Sequence[int]) -> int | None:
    """Return the number of images of parts where it is known before they are read."""
    if collection.names is None:
        return None
    return sum(sum(1 for _ in collection.images(part)) for part in parts)


def _remove_run(folder: Path) -> None:
    """Remove the folder of an earlier run.

    Raises:
        ValueError: It is not one.
    """
    read_plan(folder)
    shutil.rmtree(folder)


def _report(outcomes: Sequence[PartOutcome], folder: Path) -> None:
    """Print counts, speed and failures.

    Raises:
        ValueError: A part has failed.
    """
    failures = [failure for one in outcomes for failure in one.failures]
    notes: Counter[str] = Counter()
    for one in outcomes:
        notes.update(dict(one.notes))
    for note, count in notes.items():
        warn(f"{note} ({count_phrase(count, 'images')})")
    warn_of_failures(failures)
    images, masks = sum(one.images for one in outcomes), sum(one.masks for one in outcomes)
    parts = [f"{count_phrase(masks, 'masks')} in {count_phrase(images - len(failures), 'images')}"]
    without = sum(one.without_masks for one in outcomes)
    if without:
        parts.append(f"({without} without masks)")
    if failures:
        parts.append(f"({count_phrase(len(failures), 'images')} skipped)")
    say(" ".join(parts))
    seconds = sum(one.seconds for one in outcomes)
    if images and seconds:
        outside = 1 - sum(one.model_seconds for one in outcomes) / sum(
            one.seconds * one.workers for one in outcomes
        )
        speed = images / seconds
        text = f"{speed:.1f}" if speed >= 1 else f"{speed:.2f}"
        say(f"{text} images per second and process; {outside:.0%} of the time outside the model")
    broken = [one for one in outcomes if one.error is not None]
    if broken:
        raise ValueError(
            f"{len(broken)} of {count_phrase(len(outcomes), 'parts')} failed, the others are in {folder}; the first: "
            f"{broken[0].error}"
        )
    if images and images == len(failures):
        name, message = failures[0]
        raise ValueError(
            f"none of {count_phrase(images, 'images')} could be segmented, the first: {name}: {message}; mend the "
            "cause, and run again with --overwrite"
        )
    say(f"masks: {folder}")
