"""A local Ray cluster: one and two actors write the files of a single process, and a killed actor loses nothing."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from saqsam.bulk.plan import PLAN_FILE
from support.coco_folder import picture
from support.command_line import assert_done, run

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="Ray is not installed")
PARTS = 6
ARGUMENTS = ("--box", "5,5,30,30", "--format", "parquet", "--images-per-file", "4", "--threads", "1")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "photos"
    folder.mkdir()
    for seed in range(4 * PARTS - 1):
        Image.fromarray(picture((300, 400), seed)).save(folder / f"{seed:02}.png")
    return folder


@pytest.fixture(scope="module")
def expected(packed: Path, photos: Path) -> dict[str, bytes]:
    out = photos.parent / "expected"
    assert_done(run("segment", packed, photos, *ARGUMENTS, "--out", out))
    return contents(out)


def start(packed: Path, photos: Path, out: Path, actors: int) -> subprocess.Popen[str]:
    # A command of its own, which starts a cluster of its own and ends it.
    command = [sys.executable, "-m", "saqsam", "segment", str(packed), str(photos), *ARGUMENTS]
    command += ["--out", str(out), "--engine", "ray", "--actors", str(actors)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("actors", [1, 2])
def test_actors_write_the_files_of_a_single_process(
    packed: Path, photos: Path, expected: dict[str, bytes], tmp_path: Path, actors: int
) -> None:
    process = start(packed, photos, tmp_path / "masks", actors)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "23 masks in 23 images" in out
    assert contents(tmp_path / "masks") == expected


@pytest.mark.skipif(sys.platform != "linux", reason="finds actors by their open files in /proc")
def test_a_killed_actor_loses_nothing(
    packed: Path, photos: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    process = start(packed, photos, masks, actors=2)
    killed: list[int] = []

    def kill_one() -> None:
        # An actor that has begun a part, whose journal it holds open.
        while process.poll() is None and not killed:
            for journal in masks.glob(".part-*.attempts"):
                killed.extend(number for number in holders(journal) if not kill(number))
                if killed:
                    break
            time.sleep(0.005)

    watcher = threading.Thread(target=kill_one)
    watcher.start()
    _, err = process.communicate(timeout=300)
    watcher.join()
    assert process.returncode == 0, err
    assert killed
    found = contents(masks)
    assert {name: content for name, content in found.items() if name != PLAN_FILE} == {
        name: content for name, content in expected.items() if name != PLAN_FILE
    }


def holders(path: Path) -> list[int]:
    """Return the processes that have a file open."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if any(link.samefile(path) for link in (entry / "fd").iterdir()):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def kill(number: int) -> bool:
    """Kill a process; return whether it was gone already."""
    try:
        os.kill(number, signal.SIGKILL)
    except ProcessLookupError:
        return True
    return False
