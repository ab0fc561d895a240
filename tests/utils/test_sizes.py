"""Sizes in bytes are read from numbers and text, and anything else is refused in one line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saqsam.utils.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * 2**30),
        ("512MiB", 2**29),
        (" 1.5 GiB ", 3 * 2**29),
        ("2g", 2**31),
        ("64kib", 2**16),
        ("1TB", 2**40),
        ("0.25M", 2**18),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@settings(max_examples=40, deadline=None, derandomize=True)
@given(number=st.integers(1, 10**6), unit=st.sampled_from(["KiB", "MiB", "GiB", "TiB"]))
def test_whole_sizes_are_exact(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * 1024 ** (1 + ["KiB", "MiB", "GiB", "TiB"].index(unit))


@pytest.mark.parametrize(
    "text", ["", "4", "GiB", "4 PiB", "-1GiB", "0GiB", "0.0001KiB", "1e3MiB", "4GiB 1MiB", "nanGiB", "4GiBs"]
)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a size must look like 4GiB or 512MiB, got"):
        parse_size(text)


def test_numbers_are_bytes() -> None:
    assert parse_size(150_000) == 150_000
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"a size must be at least 1 byte, got {size}"):
            parse_size(size)


@pytest.mark.parametrize("value", [True, 1.5, None])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a size must look like 4GiB or 512MiB, got"):
        parse_size(value)  # type: ignore[arg-type]
