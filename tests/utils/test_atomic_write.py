import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saqsam.data.images import read_image
from saqsam.utils import atomic_write
from saqsam.utils.atomic_write import (
    atomic_folder,
    check_file_writable,
    check_writable,
    write_atomic,
    write_png,
)


def test_a_file_is_written_with_the_folders_above_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    check_file_writable(path)
    assert list(tmp_path.iterdir()) == []  # asking makes nothing
    write_atomic(path, b"text")
    assert path.read_bytes() == b"text"
    assert [p.name for p in path.parent.iterdir()] == ["c.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_picture_survives(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "p.png", picture)
    assert np.array_equal(read_image(tmp_path / "p.png"), picture)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "c.txt"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(atomic_write, "sync_file", fail)
    with pytest.raises(type(error)):
        write_atomic(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["c.txt"]


def test_places_where_nothing_can_be_written_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is not a folder"):
        check_writable(tmp_path / "file" / "below" / "x")
    with pytest.raises(ValueError, match="it is a folder"):
        check_file_writable(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="no permission"):
        check_writable(tmp_path / "missing" / "x")


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("case", ["file", "folder", "folder-without-swap"])
def test_killed_between_any_two_steps_the_old_or_the_new_content_is_there(case: str, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "support" / "killed_writer.py"
    done = subprocess.run(
        [sys.executable, script, case, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(run["killed"] for run in runs) > 40
    assert {run["found"] for run in runs if not run["killed"]} == {"new"}
    for run in runs:
        before = "old" if run["old"] else "none"
        # Without a way to swap folders there is a moment in which the old one lies aside.
        assert run["found"] in {before, "new"} | ({"none"} if case == "folder-without-swap" else set())
        assert run["recovered"] in {before, "new"}
        assert run["then"] == "new"
        assert run["names"] == ["out"]
    assert {run["recovered"] for run in runs} == {"none", "old", "new"}
    assert any(run["beside"] for run in runs)


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as first:
        (first / "a").touch()
        with atomic_folder(tmp_path / "out") as second:
            (second / "b").touch()
        write_atomic(tmp_path / "out2", b"x")
        assert (first / "a").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    (tmp_path / ".out.abcdefgh.partial").touch()  # what a killed process left
    (tmp_path / ".out2.abcdefgh.partial").touch()
    (tmp_path / ".out.notes.partial").touch()  # somebody's
    write_atomic(tmp_path / "out2", b"y")
    with atomic_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.notes.partial", "out", "out2"]


def test_devices_are_not_replaced() -> None:
    with pytest.raises(ValueError, match="expected a regular file"):
        check_file_writable(Path(os.devnull))
