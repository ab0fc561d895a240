import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from saqsam.utils.locks import LockHeldError, lock_file

HOLD = """
import sys, time
from pathlib import Path
from saqsam.utils.locks import lock_file
with lock_file(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_lock_is_held_by_one_and_its_file_removed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with lock_file(path):
        assert path.read_text() == str(os.getpid())
        with pytest.raises(LockHeldError, match=f"locked by process {os.getpid()}"), lock_file(path):
            pass
        assert path.exists()
    assert not path.exists()
    with lock_file(path):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockHeldError) as caught, lock_file(path):
            pass
        assert caught.value.pid == holder.pid
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert path.exists()
        with lock_file(path):
            assert path.read_text() == str(os.getpid())
    finally:
        holder.kill()
        holder.stdout.close()
        holder.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_was_removed_meanwhile_does_not_remove_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_file(path):
        path.unlink()
        path.write_text("of the next process")
    assert path.read_text() == "of the next process"
