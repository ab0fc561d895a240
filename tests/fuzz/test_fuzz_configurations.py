"""A short run of the configuration fuzzer; `make fuzz` runs the long one."""

import pytest

from fuzz.configurations import fuzz


@pytest.mark.slow
def test_no_mutated_configuration_is_used_silently() -> None:
    for tally in fuzz(15, seed=1):
        assert tally.is_good, tally.failures
        assert tally.outcomes["refused"] > 0
