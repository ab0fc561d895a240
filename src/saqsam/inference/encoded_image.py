"""Encoded images, and which of them each thread of a program refers to."""

from __future__ import annotations

import asyncio
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch

_Caller = threading.Thread | asyncio.Task[Any]


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image after the encoder: immutable, and safe to share among threads.

    Attributes:
        features: Embedding of the image, [1, C, h, w] on the model's device.
        original_size: (height, width) of the image.
        input_size: (height, width) of the resized image within the padded square.
    """

    features: torch.Tensor
    original_size: tuple[int, int]
    input_size: tuple[int, int]


class CurrentImage:
    """The image that the calls of each thread refer to. An asyncio task counts as a thread of its own.

    A thread refers to the image that it set last. A thread that never set one refers to the image of another, if
    there is only one that it can mean: that of the threads still alive, or the last one that was set at all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: weakref.WeakKeyDictionary[_Caller, EncodedImage | None] = weakref.WeakKeyDictionary()
        self._latest: EncodedImage | None = None

    def set(self, image: EncodedImage) -> None:
        """Let the calling thread refer to an image."""
        with self._lock:
            self._own[_caller()] = self._latest = image

    def clear(self) -> None:
        """Leave the calling thread without an image until it sets another."""
        with self._lock:
            caller = _caller()
            if self._own.get(caller) is self._latest or caller not in self._own:
                self._latest = None
            self._own[caller] = None

    def get(self) -> EncodedImage | None:
        """Return the image that the calling thread refers to; None if there is none.

        Raises:
            RuntimeError: The thread set none, and several others are candidates.
        """
        with self._lock:
            caller = _caller()
            if caller in self._own:
                return self._own[caller]
            found = {id(image): image for image in self._candidates()}
        if len(found) > 1:
            raise RuntimeError(
                "image: several threads have set one, and this thread has not; call set_image in this thread, "
                "or pass image=predictor.encode(...)"
            )
        return next(iter(found.values()), None)

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
