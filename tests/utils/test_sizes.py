"""Sizes of memory: text and numbers of bytes, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saqsam.evaluation.prompt_batches import prompts_within
from saqsam.utils.sizes import parse_size
from support.tiny_sam import tiny_processor


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * 2**30),
        ("512MiB", 2**29),
        (" 1.5 GiB ", 3 * 2**29),
        ("2g", 2**31),
        ("64kib", 2**16),
        ("1TB", 10**12),
        ("6mb", 6 * 10**6),
        ("0.25M", 2**18),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@settings(max_examples=40, derandomize=True)
@given(number=st.integers(1, 10**6), unit=st.sampled_from(["KiB", "MiB", "GiB", "TiB"]))
def test_whole_sizes_are_exact(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * 1024 ** (1 + ["KiB", "MiB", "GiB", "TiB"].index(unit))


@pytest.mark.parametrize("text", ["", "4", "GiB", "4 PiB", "-1GiB", "1e3MiB", "4GiB 1MiB", "nanGiB", "4GiBs"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match="a size must look like 4GiB or 512MiB, or be a number of bytes, got"
    ):
        parse_size(text)


@pytest.mark.parametrize("size", [1, 2**40])
def test_bytes_stay_bytes(size: int) -> None:
    assert parse_size(size) == size


@pytest.mark.parametrize("size", [0, -1, "0GiB", "0.0001KiB"])
def test_less_than_a_byte_is_refused(size: int | str) -> None:
    with pytest.raises(ValueError, match="a size must be at least one byte, got"):
        parse_size(size)


@pytest.mark.parametrize("size", [True, 1.5, None])
def test_other_values_are_refused(size: object) -> None:
    with pytest.raises(ValueError, match="or be a number of bytes, got"):
        parse_size(size)  # type: ignore[arg-type]


def test_a_budget_for_prompts_is_text_or_bytes() -> None:
    assert prompts_within("2MiB", tiny_processor()) == prompts_within(2 * 2**20, tiny_processor()) == 10
