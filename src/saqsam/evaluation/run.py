"""Looking at every image of a data set once: read ahead, encoded once for all tasks and decoders, records kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import SamModel, SamProcessor

from saqsam.data.detections import DetectionSource, load_detections
from saqsam.data.types import Dataset, Sample
from saqsam.evaluation import ranks
from saqsam.evaluation.fingerprint import dataset_identity, encoder_identity, model_identity
from saqsam.evaluation.metrics.iou import MeanIoU, clear_ignored, fill_box, mask_iou
from saqsam.evaluation.records import RecordFolder
from saqsam.evaluation.results import Evaluation
from saqsam.evaluation.skipped import CROWD, check_scored, nothing_to_score, sum_notes, sum_skipped
from saqsam.evaluation.task import ImageSession, Record, Task
from saqsam.evaluation.tasks.instance import InstanceTask
from saqsam.evaluation.tasks.prompt import BELOW_MIN_AREA, PromptKind, PromptTask
from saqsam.inference.backend import Backend
from saqsam.inference.predictor import Predictor
from saqsam.utils.arithmetic import float32_arithmetic
from saqsam.utils.progress import Progress

WORKERS = 2
"""Threads that read images ahead of the model."""


def evaluate(
    model: SamModel | Backend,
    processor: SamProcessor | None,
    dataset: Dataset,
    *,
    prompt: PromptKind = "box",
    detections: str | Path | DetectionSource | None = None,
    tasks: Sequence[Task] | None = None,
    limit: int | None = None,
    min_area: int = 0,
    prompts_at_once: int = 16,
    unfinished: Path | None = None,
    workers: int = WORKERS,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a model on a data set: mean IoU of masks from prompts, or any other tasks.

    In a process group of torch.distributed each process looks at its share of the images, and rank 0 gets the result;
    with the same number of threads in each process it is that of one process alone, bit by bit.

    Args:
        model: The model, or another backend; evaluated in eval mode, and left as it was.
        processor: Its processor; None builds the one that fits the model.
        dataset: What to segment; read one image at a time.
        prompt: `box`, `point` or `clicks`, see `PromptTask`; not with `tasks`.
        detections: A detector's boxes, or their COCO results file, which needs a `CocoDataset` or `DotaDataset`: adds
            `InstanceTask`; not with `tasks`.
        tasks: What to ask; None for what `prompt` and `detections` say.
        limit: Look at the first `limit` images only.
        min_area: Leave out instances with fewer pixels than this as prompts; not with `tasks`.
        prompts_at_once: Prompts per decoder call, see `prompt_batches.prompts_within`.
        unfinished: Folder that records are written to as they are made. Records of the same evaluation that are there
            already are not made again. The caller removes it.
        workers: Threads that read images ahead.
        progress: Progress callback, called after each image; its phase is "evaluating".

    Returns:
        The scores; of other ranks than 0 without records and figures.

    Raises:
        ValueError: An unknown prompt, a limit below 1, no instance to score, unreadable data, outputs of the model
            that are not finite, or `unfinished` is of another evaluation.
    """
    if tasks is None:
        tasks = [PromptTask(prompt, min_area=min_area)]
        if isinstance(detections, str | Path):
            detections = load_detections(detections, dataset)
        if detections is not None:
            tasks = [*tasks, InstanceTask(detections)]
    subject = Subject(model, processor, prompts_at_once)
    (result,) = evaluate_together(
        [subject], dataset, tasks, limit=limit, unfinished=unfinished, workers=workers, progress=progress
    )
    return result


class Subject:
    """A model among those that are evaluated together.

    Args:
        model: As for `evaluate`.
        processor: As for `evaluate`.
        prompts_at_once: As for `evaluate`.
    """

    def __init__(
        self, model: SamModel | Backend, processor: SamProcessor | None, prompts_at_once: int = 16
    ) -> None:
        self.model = model
        self.predictor = Predictor(model, processor, prompts_at_once=prompts_at_once)


def evaluate_together(
    subjects: Sequence[Subject],
    dataset: Dataset,
    tasks: Sequence[Task],
    *,
    limit: int | None = None,
    unfinished: Path | None = None,
    workers: int = WORKERS,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Evaluate several models image by image: each image is read once, and encoded once by models of one encoder.

    Arguments, results and errors are those of `evaluate`; records of model k are kept in the folder `unfinished/k`, of
    a single one in `unfinished`.
    """
    if not tasks or len({task.name for task in tasks}) < len(tasks):
        raise ValueError(f"tasks: expected one or more different ones, got {[task.name for task in tasks]}")
    count = _count(dataset, limit)
    folders = [
        None
        if unfinished is None
        else RecordFolder(
            unfinished if len(subjects) == 1 else unfinished / str(number),
            _header(subject.predictor, dataset, tasks, count),
            count=count,
            schemas={task.name: task.schema() for task in tasks},
            rank=ranks.rank(),
        )
        for number, subject in enumerate(subjects)
    ]
    made = _walk(subjects, dataset, tasks, count, folders, workers, progress)
    try:
        return [_result(dataset, tasks, count, records) for records in made]
    except ValueError:
        # All images were looked at, so going on would end here again.
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _header(predictor: Predictor, dataset: Dataset, tasks: Sequence[Task], count: int) -> dict[str, Any]:
    return {
        "model": model_identity(predictor),
        "data": {**dataset_identity(dataset), "looked_at": count},
        "tasks": {task.name: task.options() for task in tasks},
    }


def _walk(
    subjects: Sequence[Subject],
    dataset: Dataset,
    tasks: Sequence[Task],
    count: int,
    folders: Sequence[RecordFolder | None],
    workers: int,
    progress: Progress | None,
) -> list[dict[int, Record]]:
    """Records of this rank's images for each subject, by index."""
    made: list[dict[int, Record]] = [{} if folder is None else dict(folder.records) for folder in folders]
    own = range(ranks.rank(), count, ranks.world_size())
    missing = [index for index in own if any(index not in records for records in made)]
    done = len(own) - len(missing)
    encoders = [encoder_identity(s.predictor) for s in subjects] if len(subjects) > 1 else [None]
    with _eval_modes([subject.model for subject in subjects]), float32_arithmetic():
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
    found = {index: record for part in gathered for index, record in part.items()}
    records = [found[index] for index in range(count)]
    skipped, notes = sum_skipped(dataset, tasks, records), sum_notes(dataset, tasks, records)
    metrics = {task.name: task.reduce([record[task.name] for record in records]) for task in tasks}
    check_scored(dataset, tasks, records, skipped)
    return Evaluation(dataset.name, count, options, metrics, tuple(records), dict(skipped), dict(notes))


def _read_ahead(dataset: Dataset, indices: Sequence[int], workers: int) -> Iterator[tuple[int, Sample]]:
    """Samples in order, the next ones read by other threads while the caller is busy with one."""
    if workers < 1:
        for index in indices:
            yield index, dataset[index]
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[Sample]] = []
        try:
            for place, index in enumerate(indices):
                for ahead in indices[place + len(waiting) : place + 1 + workers]:
                    waiting.append(pool.submit(dataset.__getitem__, ahead))
                yield index, waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def fill_box_iou(dataset: Dataset, *, limit: int | None = None, min_area: int = 0) -> float:
    """Mean IoU of a predictor that answers a box prompt with the box itself: what a useful model has to beat.

    Args:
        dataset: As for `evaluate`.
        limit: As for `evaluate`.
        min_area: As for `evaluate`.

    Raises:
        ValueError: No instance to score, or a limit below 1.
    """
    mean_iou = MeanIoU()
    skipped = sum_skipped(dataset, (), ())
    count = _count(dataset, limit)
    for index in range(count):
        sample = dataset[index]
        skipped.update(sample.skipped)
        for instance in sample.instances:
            if instance.is_crowd or instance.area < min_area:
                skipped[CROWD if instance.is_crowd else BELOW_MIN_AREA] += 1
                continue
            filled = torch.from_numpy(fill_box(instance.box, sample.image.shape[:2]))[None]
            filled = clear_ignored(filled, sample.counted())
            mean_iou.update(mask_iou(filled, torch.from_numpy(instance.mask())[None]))
    if not len(mean_iou):
        raise ValueError(nothing_to_score(dataset, count, skipped))
    return mean_iou.compute()


def _count(dataset: Dataset, limit: int | None) -> int:
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 image, got {limit}")
    return len(dataset) if limit is None else min(limit, len(dataset))


@contextmanager
def _eval_modes(models: Sequence[SamModel | Backend]) -> Iterator[None]:
    training = [model for model in models if isinstance(model, SamModel) and model.training]
    for model in training:
        model.eval()
    try:
        yield
    finally:
        for model in training:
            model.train()
