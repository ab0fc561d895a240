"""Models that answer for the page, and the images that were uploaded to it."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from saqsam.data.images import read_image_bytes
from saqsam.inference.encoded_image import EncodedImage
from saqsam.inference.generator_options import GeneratorOptions
from saqsam.inference.mask_generator import MaskGenerator
from saqsam.inference.predictor import Predictor
from saqsam.segmentation.objects import SegmentedImage, SegmentedObject
from saqsam.segmentation.prompts import Prompt, segment_prompts

MAX_UPLOAD = 64 * 2**20
"""Largest image that may be uploaded, in bytes."""
MAX_PIXELS = 50_000_000
"""Largest image that may be uploaded, in pixels."""
SHOWN_SIDE = 1024
"""Longest side of the masks that the page shows, in pixels; files that it downloads have the size of the image."""
KEPT_IMAGES = 16
"""Images that are kept; the one that was used least recently goes first."""
MAX_POINTS = 64
GENERATOR = GeneratorOptions(points_per_side=16, pred_iou_thresh=0.5, stability_score_thresh=0.5)
"""Options of segmenting everything, which suit small models too."""


class UnknownImage(LookupError):
    """Raised for an image that was never uploaded, or is no longer kept."""


@dataclass(frozen=True)
class ServedModel:
    """A model that answers.

    Attributes:
        name: Its name on the page.
        kind: What it is, such as the name of its recipe and runtime.
        size: Its bytes.
        predictor: Its predictor.
    """

    name: str
    kind: str
    size: int
    predictor: Predictor


@dataclass
class Upload:
    """An image on the server, with its encodings by the name of a model."""

    name: str
    pixels: NDArray[np.uint8]
    encoded: dict[str, Future[tuple[EncodedImage, float]]]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.pixels.shape[0], self.pixels.shape[1])

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) of the masks that the page shows."""
        scale = min(1.0, SHOWN_SIDE / max(self.size))
        return (max(1, round(self.size[0] * scale)), max(1, round(self.size[1] * scale)))


class Session:
    """The models and images of a server. Threads may share it.

    Args:
        models: The models, by name.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self.models: Mapping[str, ServedModel] = {model.name: model for model in models}
        self._uploads: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()

    def upload(self, content: bytes, name: str) -> tuple[str, Upload]:
        """Read an image and keep it under a new id.

        Raises:
            ValueError: It is no image, or too large.
        """
        if len(content) > MAX_UPLOAD:
            raise ValueError(f"{name}: expected at most {MAX_UPLOAD // 2**20} MiB")
        pixels, _ = read_image_bytes(content, name)
        height, width = pixels.shape[:2]
        if height * width > MAX_PIXELS:
            raise ValueError(
                f"{name}: expected at most {MAX_PIXELS // 1_000_000} megapixels, got {width} x {height}"
            )
        upload = Upload(name, pixels, {})
        number = secrets.token_urlsafe(12)
        with self._lock:
            self._uploads[number] = upload
            while len(self._uploads) > KEPT_IMAGES:
                self._uploads.popitem(last=False)
        return number, upload

    def image(self, number: str) -> Upload:
        """Return an image.

        Raises:
            UnknownImage: There is none of this id.
        """
        with self._lock:
            if number not in self._uploads:
                raise UnknownImage("the image is no longer kept; open it again")
            self._uploads.move_to_end(number)
            return self._uploads[number]

    def encode(self, upload: Upload, model: ServedModel) -> tuple[EncodedImage, float]:
        """Return an image's encoding by a model, and the seconds that it took; it is computed once."""
        with self._lock:
            future = upload.encoded.get(model.name)
            is_first = future is None
            if future is None:
                future = upload.encoded[model.name] = Future()
        if is_first:
            try:
                start = time.perf_counter()
                encoded = model.predictor.encode(upload.pixels)
                future.set_result((encoded, time.perf_counter() - start))
            except BaseException as error:
                with self._lock:
                    del upload.encoded[model.name]
                future.set_exception(error)
                raise
        return future.result()

    def predict(self, upload: Upload, model: ServedModel, prompt: Prompt) -> Answer:
        """Return the mask of a prompt in pixels of the image, at the size that the page shows."""
        encoded, _ = self.encode(upload, model)
        start = time.perf_counter()
        shown = replace(encoded, original_size=upload.shown_size)
        scale = upload.shown_size[1] / upload.size[1], upload.shown_size[0] / upload.size[0]
        (found,) = segment_prompts(model.predictor, shown, [scaled(prompt, scale)])
        return Answer(found, found.mask(), time.perf_counter() - start)

    def full_mask(self, upload: Upload, model: ServedModel, prompt: Prompt) -> SegmentedImage:
        """Return the mask of a prompt at the size of the image."""
        encoded, _ = self.encode(upload, model)
        found = segment_prompts(model.predictor, encoded, [prompt])
        return SegmentedImage(1, upload.name, upload.size, tuple(found))

    def everything(self, upload: Upload, model: ServedModel) -> tuple[list[Answer], float]:
        """Return the masks of everything in an image, the largest first, and the seconds that they took."""
        encoded, _ = self.encode(upload, model)
        start = time.perf_counter()
        height, width = upload.shown_size
        shown = cv2.resize(upload.pixels, (width, height), interpolation=cv2.INTER_AREA)
        encoded = replace(encoded, original_size=upload.shown_size)
        masks = MaskGenerator(model.predictor, GENERATOR).generate(shown, encoded=encoded)
        answers = [
            Answer(
                SegmentedObject(one.rle, one.predicted_iou, one.stability_score, "everything"),
                one.mask(),
                0.0,
            )
            for one in sorted(masks, key=lambda one: -one.area)
        ]
        return answers, time.perf_counter() - start


@dataclass(frozen=True)
class Answer:
    """A mask of a model.

    Attributes:
        found: The object.
        mask: HW bool at the size that the page shows.
        seconds: Time of prompt encoder, mask decoder and upscaling.
    """

    found: SegmentedObject
    mask: NDArray[np.bool_]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return what the page draws."""
        return {
            "runs": row_runs(self.mask),
            "size": list(self.mask.shape),
            "pixels": int(np.count_nonzero(self.mask)),
            "predicted_iou": round(self.found.predicted_iou, 4),
            "stability": round(self.found.stability_score, 4),
            "ms": round(1000 * self.seconds, 2),
        }


def row_runs(mask: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of runs along the rows of a mask HW, the first of them of background."""
    flat = np.concatenate([[False], mask.ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs: list[int] = np.diff(np.concatenate([[0], edges, [mask.size]])).astype(int).tolist()
    return runs if runs[-1] else runs[:-1]


def agreement(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the IoU of two masks; 1 if both are empty."""
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 1.0


def scaled(prompt: Prompt, scale: tuple[float, float]) -> Prompt:
    """Return a prompt of points and a box, scaled along x and y."""
    x, y = scale
    box = prompt.box and (prompt.box[0] * x, prompt.box[1] * y, prompt.box[2] * x, prompt.box[3] * y)
    return replace(prompt, box=box, points=tuple((px * x, py * y) for px, py in prompt.points))


def parse_prompt(content: Any, size: tuple[int, int]) -> Prompt:
    """Read the prompt of a request, in pixels of an image of `size` (height, width).

    Points beyond the border count as on it.

    Raises:
        ValueError: It has another form.
    """
    if not isinstance(content, dict) or not set(content) <= {"points", "labels", "box"}:
        raise ValueError("prompt: expected points, labels and box")
    height, width = size
    points, labels, box = content.get("points") or [], content.get("labels") or [], content.get("box")
    is_list = isinstance(points, list) and isinstance(labels, list) and len(points) == len(labels)
    if not is_list or len(points) > MAX_POINTS or any(label not in (0, 1) for label in labels):
        raise ValueError(f"prompt: expected at most {MAX_POINTS} points with a label 0 or 1 each")
    placed = [_numbers(point, 2) for point in points]
    inside = tuple((min(max(x, 0.0), width - 1e-3), min(max(y, 0.0), height - 1e-3)) for x, y in placed)
    corners = None
    if box is not None:
        x0, y0, x1, y1 = _numbers(box, 4)
        corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    if corners is None and 1 not in labels:
        raise ValueError("prompt: expected a box, or a point on the object")
    return Prompt(box=corners, points=inside, labels=tuple(int(label) for label in labels))


def _numbers(values: Any, count: int) -> list[float]:
    is_list = isinstance(values, list) and len(values) == count
    if not is_list or not all(type(value) in (int, float) and abs(value) < 1e6 for value in values):
        raise ValueError(f"prompt: expected {count} numbers")
    return [float(value) for value in values]
