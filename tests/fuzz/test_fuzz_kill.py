"""A short run of the kill table; `make fuzz` runs the long one."""

import sys

import pytest

if sys.platform == "win32":
    pytest.skip("forks", allow_module_level=True)

from fuzz.kill import WHOLE, fuzz


def test_faults_leave_the_old_output_or_a_whole_one_and_the_same_command_resumes() -> None:
    # quantize, export and report take longer: the long run and tests/test_journal.py have them.
    rows = fuzz(2, seed=3, only=lambda command, fault: command in ("evaluate --json", "segment"))
    assert len(rows) == 12
    for row in rows:
        assert not row.wrong, (row.command, row.fault, row.wrong)
        assert row.equal == row.found.total()
        assert row.equal > 0 or row.skipped
    assert all(row.found == {WHOLE: 1} for row in rows if row.fault == "two at once")
