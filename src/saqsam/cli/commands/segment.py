"""Implementation of `saqsam segment`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import SamModel, SamProcessor

from saqsam.cli.checks import parse_numbers, parse_point
from saqsam.cli.inputs import open_model
from saqsam.cli.integer_layers import measure_integers, print_integers
from saqsam.cli.outputs import Output, claim_output
from saqsam.cli.progress import busy, progress_phases
from saqsam.cli.segment_options import SegmentOutputs, SegmentPrompts
from saqsam.cli.terminal import print_table, result_table, say, warn
from saqsam.data.mask_pairs import read_mask
from saqsam.evaluation.registry import GENERATOR_OPTIONS
from saqsam.evaluation.task_inputs import generator_options
from saqsam.inference.backend import Backend
from saqsam.inference.generator_options import GeneratorOptions
from saqsam.inference.predictor import Predictor
from saqsam.runtimes import TORCH_INTEGER
from saqsam.segmentation.formats.registry import OVERLAY, MaskFormat, output_path
from saqsam.segmentation.objects import SegmentedImage
from saqsam.segmentation.prompt_files import read_prompts
from saqsam.segmentation.prompts import Prompt
from saqsam.segmentation.run import Outcome, Task, segment_images
from saqsam.segmentation.sources import ImageSource, find_sources
from saqsam.segmentation.tiling import Tiling
from saqsam.segmentation.writer import CLASSES, MARKER, MaskWriter
from saqsam.utils.atomic_write import check_file_writable
from saqsam.utils.counts import count_phrase

NO_PROMPTS = "give at least one --box x0,y0,x1,y1 or --point x,y, another kind of prompt, or --everything"
SHOWN_FAILURES = 5
"""Skipped images whose error is shown."""


@dataclass(frozen=True)
class Machine:
    """Device, runtime, threads and input size that a model runs with, as in the options of these names."""

    device: str
    runtime: str | None
    threads: int | None
    image_size: int | None

    def open(self, model: str) -> tuple[SamModel | Backend, SamProcessor, str]:
        """Load a model with its processor and the name of its recipe."""
        return open_model(model, self.device, self.runtime, self.threads, self.image_size)


def segment(
    model: str,
    inputs: Sequence[str],
    prompts: SegmentPrompts,
    generator: Mapping[str, Any],
    form: MaskFormat,
    outputs: SegmentOutputs,
    machine: Machine,
    *,
    overwrite: bool,
) -> None:
    """Segment images and write their masks."""
    sources = find_sources(inputs, prompts.detections)
    task = make_task(prompts, generator, outputs)
    has_prompts = task.prompts or task.prompt_file or task.generator or sources[0].has_prompts
    if not has_prompts:
        raise ValueError(NO_PROMPTS)
    target, is_folder = _target(sources, form, outputs.out_path)
    _check_target(target, is_folder, form, sources)
    if len(sources) == 1:
        pixels = sources[0].read()  # a bad image ends the command before the model is loaded
        sources = [replace(sources[0], read=lambda: pixels)]
    results: list[SegmentedImage] = []
    with claim_output(target, overwrite=overwrite) as output:
        sam, processor, _ = machine.open(model)
        predictor = Predictor(sam, processor)
        outcome = _run(predictor, sources, task, form, outputs, output, results, is_folder=is_folder)
    _report(outcome, results, sources, task)
    what = "picture" if form.name == OVERLAY and not is_folder else "masks"
    say(f"{what}: {target}")
    if machine.runtime == TORCH_INTEGER:
        print_integers(measure_integers(sam))


def make_task(prompts: SegmentPrompts, generator: Mapping[str, Any], outputs: SegmentOutputs) -> Task:
    """Return what the options ask of every image.

    Raises:
        ValueError: A value is out of its range, or a file of prompts or masks cannot be read.
    """
    tiling = None
    if outputs.tile is not None:
        tiling = Tiling(outputs.tile, outputs.tile // 8 if outputs.overlap is None else outputs.overlap)
    if prompts.everything:
        options = generator_options({option.name: generator.get(option.name) for option in GENERATOR_OPTIONS})
        return Task(generator=options, tiling=tiling)
    prompt_file = None if prompts.prompt_file is None else read_prompts(prompts.prompt_file)
    return Task(tuple(_parse_prompts(prompts)), prompt_file, tiling=tiling)


def _parse_prompts(given: SegmentPrompts) -> list[Prompt]:
    """Return the prompts for every image; background points are added to each."""
    prompts = []
    for text in given.box or ():
        x0, y0, x1, y1 = parse_numbers(text, 4, "--box", "x0,y0,x1,y1")
        prompts.append(Prompt(box=(x0, y0, x1, y1)))
    single = [parse_point(text, "--point") for text in given.point or ()]
    prompts += [Prompt(points=((x, y),), labels=(1,)) for x, y, label in single if label]
    for text in given.points or ():
        points = [parse_point(point, "--points") for point in text.split(";")]
        prompts.append(
            Prompt(points=tuple((x, y) for x, y, _ in points), labels=tuple(label for _, _, label in points))
        )
    prompts += [Prompt(mask=read_mask(path)) for path in given.mask or ()]
    beside = [(x, y) for x, y, label in single if not label]
    return [
        replace(one, points=(*one.points, *beside), labels=(*one.labels, *(0 for _ in beside)))
        for one in prompts
    ]


def _target(sources: Sequence[ImageSource], form: MaskFormat, out: Path | None) -> tuple[Path, bool]:
    """Return the path to write, and whether it is a folder."""
    has_many = len(sources) > 1
    target = output_path(form, out, None if has_many else sources[0].path)
    if target is None:
        raise ValueError("--out: needed for the masks of several images, or of an image that is not a file")
    if form.files is None:
        return target, False
    is_file = not form.is_folder and (out is None or target.suffix.lower() == form.suffix)
    if is_file and has_many:
        raise ValueError(f"--out: expected a folder for {len(sources)} images, got the file {out}")
    return target, not is_file


def _check_target(target: Path, is_folder: bool, form: MaskFormat, sources: Sequence[ImageSource]) -> None:
    """Refuse a target that would replace an image, or anything but a folder of masks that saqsam has written."""
    if not is_folder:
        check_file_writable(target)
        return
    if not target.is_dir():
        return
    paths = list(target.rglob("*"))
    inside = {path.resolve() for path in paths}
    if any(one.path is not None and one.path.resolve() in inside for one in sources):
        raise ValueError(f"--out: {target} holds the images to segment; choose another folder")
    if paths and not (target / MARKER).is_file():
        raise ValueError(
            f"--out: {target} holds files that saqsam segment did not write; choose another folder"
        )
    for path in paths:
        is_mask = path.suffix.lower() == form.suffix or path.name in (MARKER, CLASSES)
        if path.is_file() and not is_mask:
            raise ValueError(f"--out: {target} holds {path.name}, which is not a mask; choose another folder")


def _run(
    predictor: Predictor,
    sources: Sequence[ImageSource],
    task: Task,
    form: MaskFormat,
    outputs: SegmentOutputs,
    output: Output,
    results: list[SegmentedImage],
    *,
    is_folder: bool,
) -> Outcome:
    """Segment all images and write the masks; keep those of a single image in `results`."""
    writer = MaskWriter(
        form,
        output.staged,
        [source.name for source in sources],
        is_folder=is_folder,
        tolerance=outputs.simplify,
        final=output.target,
    )

    def handle(image: SegmentedImage, picture: NDArray[np.uint8]) -> None:
        if len(sources) == 1:
            results.append(image)
            if task.generator is not None and not image.objects:
                raise ValueError(_nothing_found(task.generator))
        writer.add(image, picture)

    if len(sources) == 1:
        with busy(f"segmenting {sources[0].path or sources[0].name}"):
            outcome = segment_images(predictor, sources, task, handle)
    else:
        with progress_phases("images") as progress:
            outcome = segment_images(predictor, sources, task, handle, progress)
    writer.finish()
    output.place(is_folder=is_folder)
    return outcome


def _nothing_found(options: GeneratorOptions) -> str:
    return (
        f"no mask has a predicted IoU above --pred-iou {options.pred_iou_thresh} and a stability above --stability "
        f"{options.stability_score_thresh}; lower them"
    )


def _report(
    outcome: Outcome, results: Sequence[SegmentedImage], sources: Sequence[ImageSource], task: Task
) -> None:
    """Print the masks of a single image, or counts for several."""
    for note, count in outcome.notes.items():
        warn(note if len(sources) == 1 else f"{note} ({count_phrase(count, 'images')})")
    warn_of_failures(list(outcome.failures.items()))
    if len(sources) == 1 and task.generator is not None:
        say(f"{len(results[0].objects)} masks from {task.generator.points_per_side}^2 points")
    elif len(sources) == 1:
        table = result_table("prompt", "predicted IoU", "stability", "pixels", right=3)
        for one in results[0].objects:
            table.add_row(
                one.prompt, f"{one.predicted_iou:.3f}", f"{one.stability_score:.3f}", f"{one.area:,}"
            )
        print_table(table)
    else:
        parts = [count_phrase(outcome.masks, "masks"), f"in {count_phrase(outcome.images, 'images')}"]
        if outcome.without_prompts:
            parts.append(f"({outcome.without_prompts} without prompts)")
        if outcome.failures:
            parts.append(f"({count_phrase(len(outcome.failures), 'images')} skipped)")
        say(" ".join(parts))


def warn_of_failures(failures: Sequence[tuple[str, str]]) -> None:
    """Print name and error of the first images that failed, and the number of the others."""
    for name, message in failures[:SHOWN_FAILURES]:
        warn(f"skipped {name}: {message}")
    if len(failures) > SHOWN_FAILURES:
        warn(f"skipped {len(failures) - SHOWN_FAILURES} more images")
