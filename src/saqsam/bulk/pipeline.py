"""Segment a stream of images: threads read ahead, others encode and decode, and results keep the order of images."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from saqsam.bulk.attempts import Attempts
from saqsam.bulk.table import Failure, Result
from saqsam.inference.backend import Backend
from saqsam.inference.encoded_image import EncodedImage, PreparedImage
from saqsam.inference.predictor import Predictor
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.segmentation.objects import SegmentedImage
from saqsam.segmentation.prompts import Prompt
from saqsam.segmentation.run import Task, choose_prompts, segment_image
from saqsam.segmentation.sources import ImageSource
from saqsam.utils.errors import shorten_message
from saqsam.utils.map_ahead import map_ahead

_Made = TypeVar("_Made")

POISON = (ValueError, MemoryError, torch.OutOfMemoryError)
"""Errors that an image causes: it is skipped, and the others go on."""


@dataclass(frozen=True)
class Parallelism:
    """Threads and batch size of a pipeline.

    Attributes:
        workers: Threads that run the model, each with its own images.
        readers: Threads that read and resize images ahead.
        batch: Images per call of the encoder.

    Raises:
        ValueError: A number is below 1.
    """

    workers: int = 1
    readers: int = 2
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("workers", "readers", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class _Read:
    """An image that was read, with its prompts."""

    source: ImageSource
    picture: NDArray[np.uint8]
    prompts: tuple[Prompt, ...]
    categories: dict[int, str]
    prepared: PreparedImage | None


class Pipeline:
    """Segments streams of images.

    Args:
        predictor: The predictor. Its current image may change.
        task: The task.
        parallelism: Threads and batch size.

    Attributes:
        clock: Time that the model has taken.
        notes: Number of images by assumption that was made when they were read.
    """

    def __init__(self, predictor: Predictor, task: Task, parallelism: Parallelism) -> None:
        self.clock = ModelClock(predictor.backend)
        self.notes: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._predictor = Predictor(
            self.clock, predictor.processor, prompts_at_once=predictor.prompts_at_once
        )
        self._task, self._parallelism = task, parallelism
        self._readers = ThreadPoolExecutor(parallelism.readers, "saqsam-read")
        self._workers = ThreadPoolExecutor(parallelism.workers, "saqsam-segment")

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._readers, self._workers):
            pool.shutdown(wait=True, cancel_futures=True)

    def segment(self, images: Iterable[ImageSource], attempts: Attempts) -> Iterator[Result]:
        """Yield the result of each image, in order; a few images are in memory at a time.

        Args:
            images: The images.
            attempts: Journal of the images in flight. After a crash, images are processed one at a time.
        """
        several = self._parallelism
        batch = 1 if attempts.has_crashed else several.batch
        reads_ahead = 0 if attempts.has_crashed else several.readers + several.workers * batch
        runs_ahead = 0 if attempts.has_crashed else 2 * several.workers

        def read(source: ImageSource) -> _Read | Failure:
            if attempts.is_poison(source.image_id):
                return Failure(
                    source.image_id, source.name, "the process crashed each time it reached this image"
                )
            attempts.begin(source.image_id)
            return _guard(source, lambda: self._read(source))

        read_images = map_ahead(self._readers, read, images, reads_ahead)
        batches = iter(lambda: tuple(itertools.islice(read_images, batch)), ())
        for results in map_ahead(self._workers, self._segment_batch, batches, runs_ahead):
            for result in results:
                attempts.end(result.image_id)
                yield result

    def _read(self, source: ImageSource) -> _Read:
        given = () if self._task.prompt_file is None else self._task.prompt_file.of(source.name)
        picture, notes, brought = source.read()
        with self._lock:
            self.notes.update(notes)
        prompts, categories = choose_prompts(self._task, given, source, brought)
        is_encoded = self._task.tiling is None and (prompts or self._task.generator is not None)
        prepared = self._predictor.prepare(picture) if is_encoded else None
        return _Read(source, picture, prompts, dict(categories), prepared)

    def _segment_batch(self, batch: Sequence[_Read | Failure]) -> list[Result]:
        encodings = self._encode([one for one in batch if isinstance(one, _Read)])

        def finish(one: _Read) -> SegmentedImage | Failure:
            return _guard(one.source, lambda: self._segment(one, encodings.get(one.source.image_id)))

        return [finish(one) if isinstance(one, _Read) else one for one in batch]

    def _encode(self, images: Sequence[_Read]) -> dict[int, EncodedImage]:
        """Encode the images that need it in one call; if that fails, leave each to its own call."""
        needed = [one for one in images if one.prepared is not None]
        try:
            encoded = self._predictor.encode_prepared(
                [one.prepared for one in needed if one.prepared is not None]
            )
        except POISON:
            return {}
        return {one.source.image_id: encoding for one, encoding in zip(needed, encoded, strict=True)}

    def _segment(self, one: _Read, encoded: EncodedImage | None) -> SegmentedImage:
        objects = segment_image(self._predictor, one.picture, one.prompts, self._task, encoded)
        size = (one.picture.shape[0], one.picture.shape[1])
        source = one.source
        return SegmentedImage(source.image_id, source.name, size, tuple(objects), source.path, one.categories)


class ModelClock:
    """A backend that adds up the time spent in it, over all threads.

    Attributes:
        seconds: The sum.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self.seconds = 0.0

    def encode(self, pixel_values: torch.Tensor) -> Features:
        """Encode images, as `Backend.encode`."""
        with self._timed():
            return self._backend.encode(pixel_values)

    def decode(
        self, features: Features, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict masks, as `Backend.decode`."""
        with self._timed():
            return self._backend.decode(features, prompts, multimask_output)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds += time.perf_counter() - start


def _guard(source: ImageSource, make: Callable[[], _Made]) -> _Made | Failure:
    """Return what is made of an image, or its failure."""
    try:
        return make()
    except POISON as error:
        message = shorten_message(error) or type(error).__name__
        return Failure(source.image_id, source.name, message)
