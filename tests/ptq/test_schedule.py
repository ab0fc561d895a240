"""Schedules: even coverage of images and prompts, equal for equal seeds."""

import pytest
import torch

from saqsam.ptq.schedule import draw_schedule, used_prompts


def test_every_image_is_drawn_before_any_is_drawn_again() -> None:
    schedule = draw_schedule([3] * 10, 25, 2, seed=0)
    images = [draw.image for draw in schedule]
    assert sorted(images[:10]) == sorted(images[10:20]) == list(range(10))
    assert images[:10] != images[10:20]
    assert len(set(images[20:])) == 5


@pytest.mark.parametrize("count", [1, 2, 4, 5, 16])
def test_prompts_of_a_step_are_distinct_and_cover_the_image(count: int) -> None:
    schedule = draw_schedule([count], 8, 4, seed=3)
    for draw in schedule:
        assert len(draw.prompts) == min(4, count)
        assert draw.prompts.tolist() == sorted(set(draw.prompts.tolist()))
    (used,) = used_prompts(schedule[: -(-count // 4)], 1)
    assert used.tolist() == list(range(count))


def test_the_seed_decides_and_more_steps_go_on_from_fewer() -> None:
    def drawn(steps: int, seed: int) -> list[tuple[int, list[int]]]:
        return [(d.image, d.prompts.tolist()) for d in draw_schedule([5, 9, 2], steps, 3, seed)]

    assert drawn(12, 1) == drawn(12, 1)
    assert drawn(40, 1)[:12] == drawn(12, 1)
    assert drawn(12, 1) != drawn(12, 2)


def test_images_and_prompts_that_no_step_sees_are_not_used() -> None:
    schedule = draw_schedule([6] * 4, 2, 2, seed=0)
    used = used_prompts(schedule, 4)
    assert sum(map(len, used)) == 4
    for image, prompts in enumerate(used):
        assert prompts.dtype == torch.int64
        assert len(prompts) == (2 if image in {draw.image for draw in schedule} else 0)
