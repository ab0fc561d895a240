"""A short run of the kill table; `make fuzz` runs the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("forks", allow_module_level=True)


@pytest.mark.slow
def test_faults_leave_the_old_output_or_a_whole_one_and_the_same_command_resumes() -> None:
    # quantize, export and report take longer: the long run and tests/ptq/test_journal.py have them.
    command = [
        sys.executable,
        "-m",
        "fuzz.kill",
        "--points",
        "2",
        "--seed",
        "3",
        "--only",
        "evaluate --json",
        "segment",
    ]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = done.stdout.strip().splitlines()[1:]
    assert len(rows) == 2 * 6
    assert sum("two at once" in row for row in rows) == 2
