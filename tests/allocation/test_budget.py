"""How a budget is written, and what is refused."""

import pytest

from saqsam.allocation.budget import Budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("4.2b", Budget(bits=4.2)),
        ("w3.5b", Budget(weight_bits=3.5)),
        ("a4b", Budget(activation_bits=4.0)),
        ("w3.5b, a4.3b", Budget(weight_bits=3.5, activation_bits=4.3)),
        ("6MB", Budget(bytes=6_000_000)),
        ("5.5 mb", Budget(bytes=5_500_000)),
        ("6MiB", Budget(bytes=6 * 2**20)),
        ("900kB", Budget(bytes=900_000)),
        ("loss=0.01", Budget(loss=0.01)),
        ("loss=.05,5MB", Budget(loss=0.05, bytes=5_000_000)),
    ],
)
def test_a_budget_is_read(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text", ["", "4.2", "4.2B", "6", "MB", "x4b", "loss=", "loss=-1", "1e3b", "4b;5b", "nanb"]
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"budget must look like 4\.2b"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4b,5b", "limits bits twice"),
        ("1MB,2KiB", "limits bytes twice"),
        ("9b", "mean bits must lie in 2 to 8, got 9"),
        ("w1.5b", "mean bits must lie in 2 to 8, got 1.5"),
        ("loss=1.5", "loss must lie between 0 and 1, got 1.5"),
        ("loss=0", "loss must lie between 0 and 1, got 0"),
        ("0.0001kB", "a size must be at least one byte, got '0.0001kB'"),
    ],
)
def test_a_limit_outside_its_range_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget.parse(text)


def test_a_budget_without_limits_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one limit"):
        Budget()
