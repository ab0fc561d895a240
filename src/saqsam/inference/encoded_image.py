"""Encoded images, and the current image of each thread."""

from __future__ import annotations

import asyncio
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch

from saqsam.models.family import Features

_Caller = threading.Thread | asyncio.Task[Any]


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image that is resized and normalized for the encoder.

    Attributes:
        pixel_values: [1, 3, S, S] float32.
        original_size: (height, width) of the image.
        input_size: (height, width) of the resized image within the square input.
    """

    pixel_values: torch.Tensor
    original_size: tuple[int, int]
    input_size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """The output of the image encoder for one image: immutable, and safe to share among threads.

    Attributes:
        encoding: Features of the image, on the model's device.
        original_size: (height, width) of the image.
        input_size: (height, width) of the resized image within the square input.
    """

    encoding: Features
    original_size: tuple[int, int]
    input_size: tuple[int, int]

    @property
    def features(self) -> torch.Tensor:
        """Embedding of the image, [1, C, h, w] on the model's device."""
        return self.encoding.embedding

    @property
    def mask_size(self) -> tuple[int, int]:
        """(4h, 4w), the size of the decoder's low-resolution masks."""
        height, width = self.features.shape[2:]
        return 4 * height, 4 * width


class CurrentImage:
    """The current image of each thread. An asyncio task counts as a thread of its own.

    The current image of a thread is the one that it set last. A thread that never set one takes the image of another
    thread if there is only one candidate: the images of threads still alive, and the last one that was set at all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: weakref.WeakKeyDictionary[_Caller, EncodedImage | None] = weakref.WeakKeyDictionary()
        self._latest: EncodedImage | None = None

    def set(self, image: EncodedImage) -> None:
        """Make an image the current one of the calling thread."""
        with self._lock:
            self._own[_caller()] = self._latest = image

    def clear(self) -> None:
        """Leave the calling thread without a current image until it sets another."""
        with self._lock:
            caller = _caller()
            if self._own.get(caller) is self._latest or caller not in self._own:
                self._latest = None
            self._own[caller] = None

    def get(self) -> EncodedImage | None:
        """Return the current image of the calling thread; None if there is none.

        Raises:
            RuntimeError: The thread set none, and there are several candidates.
        """
        with self._lock:
            caller = _caller()
            if caller in self._own:
                return self._own[caller]
            candidates = {id(image): image for image in self._candidates()}
        if len(candidates) > 1:
            raise RuntimeError(
                "image: several threads have set one, and this thread has not; call set_image in this thread, "
                "or pass image=predictor.encode(...)"
            )
        return next(iter(candidates.values()), None)

    def _candidates(self) -> list[EncodedImage]:
        alive = [image for caller, image in self._own.items() if _is_alive(caller)]
        return [image for image in (*alive, self._latest) if image is not None]

    def __getstate__(self) -> tuple[EncodedImage | None]:
        # Locks and threads cannot be copied: a copy keeps the image of the thread that makes it.
        with self._lock:
            return (self._own.get(_caller(), self._latest),)

    def __setstate__(self, state: tuple[EncodedImage | None]) -> None:
        self.__init__()  # type: ignore[misc]
        if state[0] is not None:
            self.set(state[0])


def _caller() -> _Caller:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return threading.current_thread() if task is None else task


def _is_alive(caller: _Caller) -> bool:
    return caller.is_alive() if isinstance(caller, threading.Thread) else not caller.done()
