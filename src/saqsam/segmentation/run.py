"""Segment images one after another: find the prompts of each, predict, and hand the masks on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from saqsam.inference.generator_options import GeneratorOptions
from saqsam.inference.mask_generator import MaskGenerator
from saqsam.inference.predictor import Predictor
from saqsam.segmentation.objects import NO_CATEGORIES, SegmentedImage, SegmentedObject
from saqsam.segmentation.prompt_files import PromptFile
from saqsam.segmentation.prompts import Prompt, segment_prompts
from saqsam.segmentation.sources import ImageSource
from saqsam.segmentation.tiling import Tiling, segment_everything_in_tiles, segment_prompts_in_tiles
from saqsam.utils.progress import Progress

Handler = Callable[[SegmentedImage, Callable[[], NDArray[np.uint8]]], None]
"""Takes an image with its masks, and a function that returns its pixels."""


@dataclass(frozen=True)
class Task:
    """What to segment in each image.

    Attributes:
        prompts: Prompts for every image.
        prompt_file: Prompts of single images, or None.
        generator: Options for segmenting everything, or None for prompts.
        tiling: How to cut images, or None to take them whole.
    """

    prompts: tuple[Prompt, ...] = ()
    prompt_file: PromptFile | None = None
    generator: GeneratorOptions | None = None
    tiling: Tiling | None = None


@dataclass
class Outcome:
    """What became of the images.

    Attributes:
        images: Images that were segmented.
        masks: Their masks.
        without_prompts: Images among them without any prompt.
        failures: Messages about images that were left out, by name.
        notes: Number of images by what was assumed when they were read.
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

    An image that cannot be read, or whose prompts do not fit it, is left out where there are several.

    Args:
        predictor: The predictor; its current image does not change, except for segmenting everything.
        sources: The images.
        task: What to segment.
        handle: Takes each image with its masks.
        progress: Callback of progress, see `Progress`.

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
            prompts = (*task.prompts, *given, *brought)
            objects = _segment(predictor, picture, prompts, task)
        except ValueError as error:
            if len(sources) == 1:
                raise
            outcome.failures[source.name] = str(error)
            continue
        categories = source.categories if task.prompt_file is None else task.prompt_file.categories
        size = (picture.shape[0], picture.shape[1])
        image = SegmentedImage(
            source.image_id, source.name, size, tuple(objects), source.path, categories or NO_CATEGORIES
        )
        handle(image, lambda picture=picture: picture)  # type: ignore[misc]
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


def _segment(
    predictor: Predictor, picture: NDArray[np.uint8], prompts: Sequence[Prompt], task: Task
) -> list[SegmentedObject]:
    if task.generator is None:
        if not prompts:
            return []
        if task.tiling is not None:
            return segment_prompts_in_tiles(predictor, picture, prompts, task.tiling)
        return segment_prompts(predictor, predictor.encode(picture), prompts)
    generator = MaskGenerator(predictor, task.generator)
    tiling = task.tiling or Tiling(max(picture.shape[:2]), 0)
    return segment_everything_in_tiles(generator, picture, tiling)
