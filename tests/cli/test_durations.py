import pytest

from saqsam.cli.durations import duration_text, estimate_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.21, "4.2 s"),
        (9.96, "10 s"),
        (119.4, "119 s"),
        (119.6, "2 min"),
        (725, "12 min 5 s"),
        (3599.9, "1 h"),
        (6000, "1 h 40 min"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "about 10 s"),
        (43, "about 40 s"),
        (170, "about 3 min"),
        (3580, "about 1 h"),
        (4000, "about 1 h 10 min"),
        (7900, "about 2 h 10 min"),
    ],
)
def test_estimates_are_rounded(seconds: float, text: str) -> None:
    assert estimate_text(seconds) == text
