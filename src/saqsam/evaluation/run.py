"""Evaluate models on a dataset: each image is read ahead, encoded once for all tasks, and recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import SamModel, SamProcessor

from saqsam.data.open import SCENES, DatasetSource, as_dataset
from saqsam.data.types import Dataset, Sample
from saqsam.evaluation.fingerprint import dataset_identity, encoder_identity, model_identity
from saqsam.evaluation.records import RecordFolder
from saqsam.evaluation.registry import create_tasks
from saqsam.evaluation.results import Evaluation
from saqsam.evaluation.skipped import check_scored, sum_notes, sum_skipped
from saqsam.evaluation.subject import Subject, in_eval_mode
from saqsam.evaluation.task import ImageSession, Record, Task
from saqsam.inference.backend import Backend
from saqsam.inference.predictor import Predictor
from saqsam.utils import ranks
from saqsam.utils.arithmetic import float32_arithmetic
from saqsam.utils.map_ahead import map_ahead
from saqsam.utils.progress import Progress

WORKERS = 2
"""Threads that read images ahead of the model."""


def evaluate(
    model: SamModel | Backend,
    processor: SamProcessor | None = None,
    dataset: DatasetSource = SCENES,
    *,
    tasks: Sequence[Task | str] | None = None,
    limit: int | None = None,
    prompts_at_once: int = 16,
    resume_dir: str | Path | None = None,
    workers: int = WORKERS,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Score a model on a dataset: mean IoU of masks from box prompts, or any other tasks.

    In a process group of torch.distributed each process evaluates its share of the images, and rank 0 returns the
    result. With the same number of threads in each process it equals that of a single process bit by bit.

    Args:
        model: Model, or another backend; evaluated in eval mode, and left as it was.
        processor: Processor of the model; None builds the one that fits the model.
        dataset: Labeled data: a name, a path, or a dataset; read one image at a time.
        tasks: Tasks, or their names in `saqsam.evaluation.registry.TASKS`; None for `prompt`, and for `instance` too
            with `detections`.
        limit: Evaluate the first `limit` images only.
        prompts_at_once: Prompts per decoder call, see `prompts_within`.
        resume_dir: Folder that records are written to as they are made. If the same evaluation was interrupted, it
            resumes from the records in this folder. Remove it once you have the result.
        workers: Threads that read images ahead.
        progress: Progress callback, called after each image; its phase is "evaluating".
        **options: Options of the tasks that are given by name or by default, such as `prompt="point"`, `min_area=100`
            or `detections="boxes.json"`; see the entries of `TASKS`.

    Returns:
        The scores; on other ranks than 0 without records and metrics.

    Raises:
        ValueError: A task or an option is unknown, `limit` is below 1, there is nothing to score, data are unreadable,
            outputs of the model are not finite, or `resume_dir` holds another evaluation.
    """
    dataset = as_dataset(dataset)
    (result,) = evaluate_together(
        [Subject(model, processor, prompts_at_once)],
        dataset,
        _resolve_tasks(dataset, tasks, options),
        limit=limit,
        resume_dir=resume_dir,
        workers=workers,
        progress=progress,
    )
    return result


def _resolve_tasks(
    dataset: Dataset, tasks: Sequence[Task | str] | None, options: Mapping[str, Any]
) -> list[Task]:
    """Return tasks in their order, those given by name created with the options."""
    if tasks is None:
        return create_tasks(dataset, **options)
    names = [task for task in tasks if isinstance(task, str)]
    created = {task.name: task for task in create_tasks(dataset, names, **options)}
    return [created[task] if isinstance(task, str) else task for task in tasks]


def evaluate_together(
    subjects: Sequence[Subject],
    dataset: Dataset,
    tasks: Sequence[Task],
    *,
    limit: int | None = None,
    resume_dir: str | Path | None = None,
    workers: int = WORKERS,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Evaluate several models image by image: each image is read once, and encoded once per distinct encoder.

    Arguments, results and errors are those of `evaluate`. Records of model k are kept in the folder `resume_dir/k`,
    those of a single model in `resume_dir`.
    """
    if not tasks or len({task.name for task in tasks}) < len(tasks):
        raise ValueError(f"tasks: expected one or more different ones, got {[task.name for task in tasks]}")
    count = count_images(dataset, limit)
    folder = None if resume_dir is None else Path(resume_dir)
    folders = [
        None
        if folder is None
        else RecordFolder(
            folder if len(subjects) == 1 else folder / str(number),
            _header(subject.predictor, dataset, tasks, count),
            count=count,
            schemas={task.name: task.schema() for task in tasks},
            rank=ranks.rank(),
        )
        for number, subject in enumerate(subjects)
    ]
    with ranks.agreement():
        scored = _score_images(subjects, dataset, tasks, count, folders, workers, progress)
    try:
        return [_result(dataset, tasks, count, records) for records in scored]
    except ValueError:
        # All images were evaluated, so resuming would end here again.
        for records_of_model in folders:
            if records_of_model is not None:
                records_of_model.remove()
        raise


def _header(predictor: Predictor, dataset: Dataset, tasks: Sequence[Task], count: int) -> dict[str, Any]:
    return {
        "model": model_identity(predictor),
        "data": {**dataset_identity(dataset), "looked_at": count},
        "tasks": {task.name: task.options() for task in tasks},
    }


def _score_images(
    subjects: Sequence[Subject],
    dataset: Dataset,
    tasks: Sequence[Task],
    count: int,
    folders: Sequence[RecordFolder | None],
    workers: int,
    progress: Progress | None,
) -> list[dict[int, Record]]:
    """Return the records of this rank's images for each subject, by index."""
    made: list[dict[int, Record]] = [{} if folder is None else dict(folder.records) for folder in folders]
    own = ranks.share(count)
    missing = [index for index in own if any(index not in records for records in made)]
    done = len(own) - len(missing)
    if progress is not None:
        progress("evaluating", done, len(own))
    encoders = [encoder_identity(s.predictor) for s in subjects] if len(subjects) > 1 else [None]
    with in_eval_mode(subjects), float32_arithmetic():
        for index, sample in _read_ahead(dataset, missing, workers):
            encoded: dict[str, Predictor] = {}
            for subject, records, folder, encoder in zip(subjects, made, folders, encoders, strict=True):
                if index in records:
                    continue
                shared = encoded.get(encoder or "")
                if shared is not None:
                    subject.predictor.share_image(shared)
                session = ImageSession(subject.predictor, sample, encoded=shared is not None)
                records[index] = _record(index, session, tasks)
                if folder is not None:
                    folder.append(records[index])
                if encoder is not None and session.is_encoded:
                    encoded[encoder] = subject.predictor
            done += 1
            if progress is not None:
                progress("evaluating", done, len(own))
    return made


def _record(index: int, session: ImageSession, tasks: Sequence[Task]) -> Record:
    record: Record = {
        "index": index,
        "image_id": session.sample.image_id,
        "file_name": session.sample.file_name,
        "size": list(session.sample.image.shape[:2]),
    }
    session.skipped.update(session.sample.skipped)
    for task in tasks:
        record[task.name] = task.score(session)
    record["skipped"] = dict(session.skipped)
    record["notes"] = dict(session.sample.notes)
    return record


def _result(dataset: Dataset, tasks: Sequence[Task], count: int, own: Mapping[int, Record]) -> Evaluation:
    gathered = ranks.gather(dict(own))
    options = {task.name: task.options() for task in tasks}
    if gathered is None:
        return Evaluation(dataset.name, count, options, {}, ())
    by_index = {index: record for part in gathered for index, record in part.items()}
    records = [by_index[index] for index in range(count)]
    skipped, notes = sum_skipped(dataset, tasks, records), sum_notes(dataset, tasks, records)
    metrics = {task.name: task.reduce([record[task.name] for record in records]) for task in tasks}
    check_scored(dataset, tasks, records, skipped)
    return Evaluation(dataset.name, count, options, metrics, tuple(records), dict(skipped), dict(notes))


def _read_ahead(dataset: Dataset, indices: Sequence[int], workers: int) -> Iterator[tuple[int, Sample]]:
    """Yield samples in order, while other threads read the next ones."""
    if workers < 1:
        for index in indices:
            yield index, dataset[index]
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from zip(indices, map_ahead(pool, dataset.__getitem__, indices, workers), strict=True)


def count_images(dataset: Dataset, limit: int | None) -> int:
    """Return how many images of a dataset are evaluated.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 image, got {limit}")
    return len(dataset) if limit is None else min(limit, len(dataset))
