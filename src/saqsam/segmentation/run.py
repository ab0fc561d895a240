"""Segment images one after another: find the prompts of each, predict, and hand the masks on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from saqsam.inference.encoded_image import EncodedImage
from saqsam.inference.generator_options import GeneratorOptions
from saqsam.inference.mask_generator import MaskGenerator
from saqsam.inference.predictor import Predictor
from saqsam.segmentation.objects import NO_CATEGORIES, SegmentedImage, SegmentedObject
from saqsam.segmentation.prompt_files import PromptFile
from saqsam.segmentation.prompts import Prompt, segment_prompts
from saqsam.segmentation.sources import ImageSource
from saqsam.segmentation.tiling import Tiling, segment_everything_in_tiles, segment_prompts_in_tiles
from saqsam.utils.progress import Progress

Handler = Callable[[SegmentedImage, NDArray[np.uint8]], None]
"""Takes the masks of an image, and the image itself, HWC uint8 RGB."""


@dataclass(frozen=True)
class Task:
    """Prompts or generator options of a run, and its tiling.

    Attributes:
        prompts: Prompts for every image.
        prompt_file: Prompts of single images, or None.
        generator: Options for segmenting everything, or None for prompts.
        tiling: Tiles of an image, or None for whole images.
    """

    prompts: tuple[Prompt, ...] = ()
    prompt_file: PromptFile | None = None
    generator: GeneratorOptions | None = None
    tiling: Tiling | None = None


@dataclass
class Outcome:
    """Counts, failures and notes of a run.

    Attributes:
        images: Images that were segmented.
        masks: Their masks.
        without_prompts: Images among them without any prompt.
        failures: Error messages of skipped images, by name.
        notes: Number of images by assumption that was made when they were read.
    """

    images: int = 0
    masks: int = 0
    without_prompts: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)


def segment_images(
    predictor: Predictor,
    sources: Sequence[ImageSource],
    task: Task,
    handle: Handler,
    progress: Progress | None = None,
) -> Outcome:
    """Segment images and hand each to `handle`.

    Where there are several, an image that cannot be read, or whose prompts do not fit it, is skipped.

    Args:
        predictor: The predictor; its current image does not change, except for segmenting everything.
        sources: The images.
        task: The task.
        handle: Takes each image with its masks.
        progress: Progress callback.

    Raises:
        ValueError: The only image cannot be segmented, or none can; prompts of the file fit no image.
    """
    own: list[tuple[Prompt, ...]] = [()] * len(sources)
    if task.prompt_file is not None:
        own = task.prompt_file.match([source.name for source in sources])
    outcome = Outcome()
    for number, (source, given) in enumerate(zip(sources, own, strict=True)):
        if progress is not None and len(sources) > 1:
            progress("segmenting", number, len(sources), source.name)
        try:
            picture, notes, brought = source.read()
            prompts, categories = choose_prompts(task, given, source, brought)
            objects = segment_image(predictor, picture, prompts, task)
        except ValueError as error:
            if len(sources) == 1:
                raise
            outcome.failures[source.name] = str(error)
            continue
        size = (picture.shape[0], picture.shape[1])
        image = SegmentedImage(source.image_id, source.name, size, tuple(objects), source.path, categories)
        handle(image, picture)
        outcome.images += 1
        outcome.masks += len(objects)
        outcome.without_prompts += task.generator is None and not prompts
        outcome.notes.update(notes)
    if progress is not None and len(sources) > 1:
        progress("segmenting", len(sources), len(sources))
    if not outcome.images:
        name, message = next(iter(outcome.failures.items()))
        raise ValueError(f"none of {len(sources)} images could be segmented; the first: {name}: {message}")
    return outcome


def choose_prompts(
    task: Task, given: tuple[Prompt, ...], source: ImageSource, brought: tuple[Prompt, ...]
) -> tuple[tuple[Prompt, ...], Mapping[int, str]]:
    """Return the prompts of an image and the names of their categories. Annotated boxes give way to all others."""
    if task.prompt_file is not None:
        return given, task.prompt_file.categories
    if task.prompts or task.generator is not None:
        return task.prompts, NO_CATEGORIES
    return brought, source.categories


def segment_image(
    predictor: Predictor,
    picture: NDArray[np.uint8],
    prompts: Sequence[Prompt],
    task: Task,
    encoded: EncodedImage | None = None,
) -> list[SegmentedObject]:
    """Segment one image.

    Args:
        predictor: The predictor; its current image does not change, except for segmenting everything.
        picture: HWC uint8 RGB.
        prompts: The prompts of the image.
        task: The task.
        encoded: The image from `predictor.encode`, unless the task has tiles; None to encode it here.

    Raises:
        ValueError: The prompts do not fit the image, or the model's outputs are not finite.
    """
    if task.generator is None:
        if not prompts:
            return []
        if task.tiling is not None:
            return segment_prompts_in_tiles(predictor, picture, prompts, task.tiling)
        return segment_prompts(predictor, encoded or predictor.encode(picture), prompts)
    generator = MaskGenerator(predictor, task.generator)
    tiling = task.tiling or Tiling(max(picture.shape[:2]), 0)
    return segment_everything_in_tiles(generator, picture, tiling, encoded)
