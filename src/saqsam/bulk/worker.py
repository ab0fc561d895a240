"""Segment parts, one file each: the work of one process, whatever the engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from saqsam.bulk.attempts import Attempts
from saqsam.bulk.collections import Inputs
from saqsam.bulk.pipeline import Parallelism, Pipeline
from saqsam.bulk.plan import Plan, attempts_path, part_path
from saqsam.bulk.table import Failure, Result, write_part
from saqsam.evaluation.fingerprint import model_identity
from saqsam.inference.predictor import Predictor
from saqsam.segmentation.run import Task

GPU_BATCH = 8
"""Images per call of the encoder on a GPU, unless told otherwise."""

MOST_READERS = 8
"""Threads that read images ahead on machines with many cores."""


@dataclass(frozen=True)
class Job:
    """Description of a run for the processes that segment its parts; picklable.

    Attributes:
        open_predictor: Loads the model.
        inputs: The images.
        task: The task.
        folder: Folder of the run.
        workers: Threads that run the model.
        batch: Images per call of the encoder; None for `GPU_BATCH` or 1.
    """

    open_predictor: Callable[[], Predictor]
    inputs: Inputs
    task: Task
    folder: Path
    workers: int = 1
    batch: int | None = None


@dataclass(frozen=True)
class PartOutcome:
    """Outcome of one part.

    Attributes:
        part: Its number.
        images: Its images, with those that failed.
        masks: Its masks.
        without_masks: Images without a mask that did not fail.
        failures: Name and error of images that failed.
        notes: Assumptions that were made when images were read, each with their number.
        seconds: Time that the part took.
        model_seconds: Time that all threads have spent in the model.
        workers: Threads that ran the model.
        error: Why the whole part failed, or None.
    """

    part: int
    images: int = 0
    masks: int = 0
    without_masks: int = 0
    failures: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, int], ...] = ()
    seconds: float = 0.0
    model_seconds: float = 0.0
    workers: int = 1
    error: str | None = None


class PartWorker:
    """Segments parts with one model.

    Args:
        job: The job.
        plan: The plan of the run; None where the caller has checked it.
        predictor: The model, or None to load it.

    Raises:
        ValueError: The model or the images are not those of the plan.
    """

    def __init__(self, job: Job, plan: Plan | None = None, predictor: Predictor | None = None) -> None:
        self._job = job
        self._predictor = job.open_predictor() if predictor is None else predictor
        self._collection = job.inputs.open()
        self.checkpoint = model_identity(self._predictor)
        if plan is not None and self.checkpoint != plan.checkpoint:
            raise ValueError(f"model: expected {plan.checkpoint}, found {self.checkpoint} here")
        if plan is not None and self._collection.digest != plan.listing:
            raise ValueError("images: expected those that the run was begun with, found others here")
        is_gpu = self._predictor.device.type != "cpu"
        readers = max(2, min(MOST_READERS, os.cpu_count() or 1))
        self._parallelism = Parallelism(job.workers, readers, job.batch or (GPU_BATCH if is_gpu else 1))
        if self._parallelism.workers > 1:
            torch.set_num_threads(1)  # each worker resizes its masks itself

    def run(self, part: int, on_image: Callable[[Result], None] | None = None) -> PartOutcome:
        """Segment the images of a part and write its file.

        Args:
            part: The number of the part.
            on_image: Takes each result.

        Raises:
            OSError: The file cannot be written.
        """
        folder, job = self._job.folder, self._job
        counts = _Counts()
        attempts = Attempts(attempts_path(folder, part))
        start = time.perf_counter()
        with Pipeline(self._predictor, job.task, self._parallelism) as pipeline:
            try:
                with attempts.recording():
                    results = pipeline.segment(self._collection.images(part), attempts)
                    write_part(part_path(folder, part), counts.count(results, on_image), self.checkpoint)
            except ValueError as error:  # a damaged archive; single images do not raise
                return PartOutcome(part, error=str(error))
            except OSError as error:
                error.add_note(
                    f"{part_path(folder, part)} was not written; finished parts are kept, and the same command resumes"
                )
                raise
            seconds = time.perf_counter() - start
            return PartOutcome(
                part,
                counts.images,
                counts.masks,
                counts.without_masks,
                tuple(counts.failures),
                tuple(pipeline.notes.items()),
                seconds,
                pipeline.clock.seconds,
                self._parallelism.workers,
            )


class _Counts:
    """Counts of the results of a part."""

    def __init__(self) -> None:
        self.images = self.masks = self.without_masks = 0
        self.failures: list[tuple[str, str]] = []

    def count(self, results: Iterable[Result], on_image: Callable[[Result], None] | None) -> Iterator[Result]:
        for result in results:
            self.images += 1
            if isinstance(result, Failure):
                self.failures.append((result.name, result.error))
            else:
                self.masks += len(result.objects)
                self.without_masks += not result.objects
            if on_image is not None:
                on_image(result)
            yield result
