"""A short run of the fuzzer of unfinished runs; `make fuzz` runs the long one."""

import pytest

from fuzz.unfinished import fuzz


@pytest.mark.slow
def test_no_damaged_unfinished_run_is_resumed_silently() -> None:
    for tally in fuzz(12, seed=1):
        assert tally.is_good, tally.failures
        assert tally.outcomes["refused"] > 0
