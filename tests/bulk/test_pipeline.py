"""The pipeline keeps the order, sets aside what fails, and holds few images at a time."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saqsam.bulk.attempts import Attempts
from saqsam.bulk.pipeline import Parallelism, Pipeline
from saqsam.bulk.table import Failure, Result
from saqsam.inference.generator_options import GeneratorOptions
from saqsam.inference.predictor import Predictor
from saqsam.segmentation.objects import SegmentedImage
from saqsam.segmentation.prompts import Prompt, segment_prompts
from saqsam.segmentation.run import Task
from saqsam.segmentation.sources import ImageSource, Pixels
from saqsam.segmentation.tiling import Tiling
from support.coco_folder import picture
from support.tiny_sam import tiny_processor, tiny_sam

PROMPTS = (Prompt(box=(2.0, 2.0, 14.0, 12.0)), Prompt(points=((5.0, 6.0),), labels=(1,)))
SETTINGS = [Parallelism(*numbers) for numbers in ((1, 2, 1), (3, 2, 1), (1, 3, 4), (2, 2, 3))]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_sam(), tiny_processor())


def pixels(number: int) -> np.ndarray:
    return picture((20 + number, 24), number)


def sources(count: int, bad: tuple[int, ...] = ()) -> Iterator[ImageSource]:
    for number in range(1, count + 1):

        def read(number: int = number) -> Pixels:
            time.sleep(0.02 if number % 3 == 0 else 0)  # later ones end first
            if number in bad:
                raise ValueError(f"{number} is bad")
            return pixels(number), (), ()

        yield ImageSource(number, f"{number}.png", read)


def no_attempts(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path / "attempts")


@pytest.mark.parametrize("parallelism", SETTINGS)
def test_results_are_those_of_one_image_after_another(
    predictor: Predictor, tmp_path: Path, parallelism: Parallelism
) -> None:
    with Pipeline(predictor, Task(PROMPTS), parallelism) as pipeline:
        found = list(pipeline.segment(sources(9, bad=(4, 5)), no_attempts(tmp_path)))
    assert [result.image_id for result in found] == [*range(1, 10)]
    for result in found:
        if result.image_id in (4, 5):
            assert result.error == f"{result.image_id} is bad"
            continue
        expected = segment_prompts(predictor, predictor.encode(pixels(result.image_id)), PROMPTS)
        assert result.size == (20 + result.image_id, 24)
        for one, other in zip(result.objects, expected, strict=True):
            assert np.mean(one.mask() == other.mask()) > 0.99
            assert one.predicted_iou == pytest.approx(other.predicted_iou, abs=1e-4)
    assert pipeline.clock.seconds > 0


@pytest.mark.parametrize("tiling", [None, Tiling(16, 4)])
def test_everything_in_images(predictor: Predictor, tmp_path: Path, tiling: Tiling | None) -> None:
    task = Task(generator=GeneratorOptions(2, 0.0, 0.0), tiling=tiling)
    with Pipeline(predictor, task, Parallelism(2, 2, 2)) as pipeline:
        found = list(pipeline.segment(sources(4), no_attempts(tmp_path)))
    assert all(isinstance(result, SegmentedImage) and result.objects for result in found)


def test_a_prompt_outside_its_image_fails_that_image_alone(predictor: Predictor, tmp_path: Path) -> None:
    task = Task((Prompt(points=((5.0, 21.5),), labels=(1,)),))
    with Pipeline(predictor, task, Parallelism(batch=3)) as pipeline:
        found = list(pipeline.segment(sources(3), no_attempts(tmp_path)))
    assert [isinstance(result, SegmentedImage) for result in found] == [False, True, True]
    assert "expected one inside" in found[0].error


def test_few_images_are_in_memory(predictor: Predictor, tmp_path: Path) -> None:
    begun = 0

    def counted() -> Iterator[ImageSource]:
        nonlocal begun
        for source in sources(60):
            begun += 1
            yield source

    parallelism = Parallelism(workers=2, readers=2, batch=2)
    with Pipeline(predictor, Task(PROMPTS), parallelism) as pipeline:
        for number, _ in enumerate(pipeline.segment(counted(), no_attempts(tmp_path)), 1):
            assert begun - number <= 20


def test_a_reader_that_has_a_bug_ends_the_run(predictor: Predictor, tmp_path: Path) -> None:
    def read() -> Pixels:
        raise TypeError("a bug")

    with (
        Pipeline(predictor, Task(PROMPTS), Parallelism()) as pipeline,
        pytest.raises(TypeError, match="a bug"),
    ):
        list(pipeline.segment([*sources(2), ImageSource(3, "3.png", read)], no_attempts(tmp_path)))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("saqsam-")]


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_only_a_killed_process_leaves_its_journal(tmp_path: Path) -> None:
    path = tmp_path / "attempts"
    with pytest.raises(KeyboardInterrupt), Attempts(path).recording():
        raise KeyboardInterrupt
    assert not path.exists()
    assert not Attempts(path).has_crashed


def test_the_image_that_crashes_the_process_is_skipped_and_none_of_those_read_ahead(
    predictor: Predictor, tmp_path: Path
) -> None:
    path, begun = tmp_path / "attempts", []
    found: list[Result] = []

    def read_ahead() -> Iterator[ImageSource]:
        for source in sources(12):

            def read(source: ImageSource = source) -> Pixels:
                if source.image_id == 6:
                    at_death.write_bytes(path.read_bytes())
                    raise Killed
                return source.read()

            yield replace(source, read=read)

    at_death = tmp_path / "at_death"
    for _ in range(6):
        attempts = Attempts(path)
        begun.append(attempts.has_crashed)
        found = []
        try:
            with Pipeline(predictor, Task(PROMPTS), Parallelism(2, 3, 2)) as pipeline, attempts.recording():
                found.extend(pipeline.segment(read_ahead(), attempts))
        except Killed:
            path.write_bytes(at_death.read_bytes())  # what a killed process leaves
        else:
            break
    # The first attempt reads ahead; the two after it have this image alone in flight.
    assert begun == [False, True, True, True]
    assert [result.image_id for result in found] == [*range(1, 13)]
    assert [result.image_id for result in found if isinstance(result, Failure)] == [6]
    assert "crashed" in found[5].error
    assert not path.exists()


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"readers": 0}, {"batch": -1}])
def test_parallelism_of_none_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        Parallelism(**wrong)
