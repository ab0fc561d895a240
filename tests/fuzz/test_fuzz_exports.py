"""A short run of the fuzzer of exports; `make fuzz` runs the long one."""

from fuzz.exports import KINDS, fuzz


def test_no_mutated_export_is_used_silently() -> None:
    tallies = fuzz(6, seed=1)
    assert [tally.kind for tally in tallies] == list(KINDS)
    for tally in tallies:
        assert tally.is_good, tally.failures
        assert tally.outcomes["refused"] > 0
