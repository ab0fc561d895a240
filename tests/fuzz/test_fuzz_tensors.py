"""A short run of the tensor fuzzer; `make fuzz` runs the long one."""

import pytest

from fuzz.tensors import fuzz


@pytest.mark.slow
def test_no_mutated_tensor_is_used_silently() -> None:
    for tally in fuzz(12, seed=1, methods=["saq-sam-plus"]):
        assert tally.is_good, tally.failures
        assert tally.outcomes["refused"] > 0
