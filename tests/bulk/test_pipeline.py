"""The pipeline keeps the order, sets aside what fails, and holds few images at a time."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from saqsam.bulk.attempts import MOST_DEATHS, Attempts
from saqsam.bulk.pipeline import Parallelism, Pipeline
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


def test_only_a_killed_process_leaves_suspects(tmp_path: Path) -> None:
    path = tmp_path / "attempts"
    with pytest.raises(KeyboardInterrupt), Attempts(path).recording():
        raise KeyboardInterrupt
    assert not path.exists()
    for death in range(MOST_DEATHS):
        attempts = Attempts(path)
        assert not attempts.is_deadly(7)
        with attempts.recording():
            for number in (7, 8 + death):
                attempts.begin(number)
            attempts.begin(1)
            attempts.end(1)
            at_death = path.read_bytes()  # what a killed process leaves
        path.write_bytes(at_death)
    assert Attempts(path).is_deadly(7)
    assert not Attempts(path).is_deadly(8)
    assert not Attempts(path).is_deadly(1)


def test_an_image_that_kills_the_process_is_set_aside(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "attempts"
    path.write_text("begin\n+1\n-1\n+2\n" * MOST_DEATHS)
    with Pipeline(predictor, Task(PROMPTS), Parallelism()) as pipeline:
        found = list(pipeline.segment(sources(3), Attempts(path)))
    assert [isinstance(result, SegmentedImage) for result in found] == [True, False, True]
    assert "killed" in found[1].error


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"readers": 0}, {"batch": -1}])
def test_parallelism_of_none_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        Parallelism(**wrong)
