"""Quantization shared by the processes of torchrun: the bytes of one process, and one end for all."""

import os
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from saqsam.data.scenes.dataset import ScenesDataset
from support.tiny_sam import tiny_processor, tiny_sam
from support.torchrun import finish, start, torchrun

OPTIONS = ("--device", "cpu", "--check", "none", "--images", "3", "--steps", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_sam().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one process writes."""
    folder = tmp_path_factory.mktemp("one") / "q"
    ((code, _, errors),) = torchrun(1, "quantize", model, "--out", folder, *OPTIONS)
    assert code == 0, errors
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])  # 4: one has no image
def test_several_processes_write_the_bytes_of_one(
    processes: int, model: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    ended = torchrun(processes, "quantize", model, "--out", tmp_path / "q", *OPTIONS)
    assert [code for code, *_ in ended] == [0] * processes, ended
    # Each rank has run its share of the images.
    assert f"calibrating: {2 if processes == 2 else 1} image" in ended[0][2]
    assert ended[1:] == [(0, "", "")] * (processes - 1)
    assert files(tmp_path / "q") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


@pytest.mark.slow
def test_several_processes_allocate_the_bits_of_one(model: Path, tmp_path: Path) -> None:
    options = ("--method", "min-max", "--budget", "4.6b", *OPTIONS[:-2])
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        ended = torchrun(processes, "quantize", model, "--out", folder, *options)
        assert [code for code, *_ in ended] == [0] * processes, ended
        assert ended[1:] == [(0, "", "")] * (processes - 1)
    assert files(tmp_path / "1") == files(tmp_path / "2")


@pytest.mark.slow
def test_a_killed_run_is_resumed_by_another_number_of_processes(model: Path, tmp_path: Path) -> None:
    units = ("reconstruction.encoder_steps=1.0", "reconstruction.decoder_steps=1.0")
    options = (*OPTIONS, *(option for unit in units for option in ("--set", unit)))
    ((code, _, errors),) = torchrun(1, "quantize", model, "--out", tmp_path / "one", *options)
    assert code == 0, errors
    expected = files(tmp_path / "one")
    shutil.rmtree(tmp_path / "one")
    command = ("quantize", model, "--out", tmp_path / "q", *options)
    running = start(2, *command)
    deadline = time.monotonic() + 200
    while not (tmp_path / "q.unfinished" / "unit-01.safetensors").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(running[1].pid, signal.SIGKILL)
    (code, output, errors), (killed, *_) = finish(running)
    assert (code, killed, output) == (2, -signal.SIGKILL, "")
    last = errors.splitlines()[-1]
    assert last.startswith("error: another process of this run has ended")
    assert last.endswith("run the same command again to resume")
    assert [path.name for path in tmp_path.iterdir()] == ["q.unfinished"]

    ended = torchrun(3, *command)
    assert [code for code, *_ in ended] == [0] * 3, ended
    assert "encoder stage 1" not in ended[0][2]
    assert "whole decoder" in ended[0][2]
    assert files(tmp_path / "q") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


@pytest.mark.slow
@pytest.mark.parametrize("unreadable", [0, 1])
def test_an_error_of_one_process_is_told_once_and_leaves_nothing(
    unreadable: int, model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for index in range(3):
        _, png = cv2.imencode(".png", np.asarray(ScenesDataset(3, seed=0)[index].image))
        content = png.tobytes()
        (data / f"{index}.png").write_bytes(content[: len(content) // 2] if index == unreadable else content)
    out = tmp_path / "q"
    ended = torchrun(2, "quantize", model, "--out", out, "--calibration", data, *OPTIONS)
    assert [code for code, *_ in ended] == [2, 2], ended
    lines = [line for _, _, errors in ended for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert f"{unreadable}.png" in lines[0]
    assert not ended[1][2]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_once(model: Path, tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "mine").touch()
    boxes = tmp_path / "boxes.json"
    boxes.write_text("[]")
    for arguments, word in (
        (("--out", tmp_path / "q"), "exists"),
        (("--out", tmp_path / "new", "--detections", boxes), "COCO format"),
    ):
        ended = torchrun(2, "quantize", model, *arguments, *OPTIONS)
        assert [code for code, *_ in ended] == [2, 2], ended
        lines = [line for _, _, errors in ended for line in errors.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, ended
        assert word in lines[0]
        assert not ended[1][2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.json", "q"]
