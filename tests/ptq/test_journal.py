"""Interrupted work is not lost: a run that is killed goes on to the very same checkpoint."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saqsam.ptq.journal import Journal
from saqsam.ptq.pipeline import quantize
from saqsam.ptq.result import QuantizationResult
from saqsam.utils.errors import CheckpointError
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam import tiny_processor, tiny_sam

HERE = Path(__file__).parents[1]
STEPS = 25
# Run by another process, and by this one to finish what that left: the same arguments.
SCRIPT = f"""
import dataclasses, sys, time
import torch
torch.set_num_threads(1)
from saqsam.ptq.pipeline import quantize
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam import tiny_processor, tiny_sam

def run(folder, progress=None):
    recipe = tiny_recipe("saq-sam-plus", "w3a4")
    few = dataclasses.replace(
        recipe.reconstruction,
        steps={STEPS},
        encoder_steps=0.1,
        decoder_steps=1.0,
        final_steps=1,
        joint_steps=1,
        prompts=2,
        rounding_rate=0.05,
    )
    recipe = dataclasses.replace(recipe, reconstruction=few)
    return quantize(tiny_sam(), tiny_processor(), recipe, tiny_data(), resume_dir=folder, progress=progress)
"""


def run_here(folder: Path | None) -> QuantizationResult:
    names: dict[str, object] = {}
    threads = torch.get_num_threads()
    exec(SCRIPT, names)
    try:
        return names["run"](folder)  # type: ignore[operator]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_killed_at_several_points_it_ends_byte_equal(tmp_path: Path) -> None:
    expected = run_here(None)
    expected.save(tmp_path / "whole")
    unfinished = tmp_path / "unfinished"
    script = SCRIPT + "run(sys.argv[1], progress=lambda *step: time.sleep(0.01))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    for point in ("ranges", "unit-01", "unit-03", "unit-05"):
        process = subprocess.Popen([sys.executable, "-c", script, str(unfinished)], env=environment)
        deadline = time.monotonic() + 120
        while not (unfinished / f"{point}.safetensors").exists():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(0.02)  # into the next step
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finished = sorted(path.stem for path in unfinished.glob("*.safetensors"))
    assert "unit-05" in finished
    resumed = run_here(unfinished)
    resumed.save(tmp_path / "resumed")
    assert not unfinished.exists(), "its steps are not needed any more"
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert resumed.log == expected.log


def test_another_recipe_or_data_is_refused_and_finished_steps_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "unfinished"

    class Stop(Exception):
        pass

    def stop(what: str, *_: object) -> None:
        if what.startswith("packing"):
            raise Stop

    def run(recipe, data) -> None:
        quantize(tiny_sam(), tiny_processor(), recipe, data, resume_dir=folder, progress=stop)

    with pytest.raises(Stop):
        run(tiny_recipe("saq-sam-s"), tiny_data())
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "ranges.safetensors" in kept
    for recipe, data, what in (
        (tiny_recipe("ptq4sam-s"), tiny_data(), "recipe"),
        (tiny_recipe("saq-sam-s"), tiny_data(seed=8), "calibration data"),
    ):
        with pytest.raises(
            ValueError, match=f"unfinished run with another {what}; its finished steps are kept"
        ):
            run(recipe, data)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept


def test_a_damaged_step_is_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", {"a": "1"})
    journal.save("unit-00", {"x": torch.arange(3)}, {"loss": [1.5]})
    tensors, notes = journal.load("unit-00") or ({}, {})
    assert torch.equal(tensors["x"], torch.arange(3))
    assert notes == {"loss": [1.5]}
    assert journal.load("unit-01") is None
    path = tmp_path / "j" / "unit-00.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"unit-00\.safetensors is damaged: .*; remove it to redo this step"):
        journal.load("unit-00")
    journal.save("unit-00", {"x": torch.arange(3)}, {})
    path.rename(tmp_path / "j" / "unit-01.safetensors")
    with pytest.raises(CheckpointError, match="its digest does not match"):
        journal.load("unit-01")
    other = Journal(tmp_path / "k", {"a": "2"})
    other.save("unit-00", {"x": torch.arange(3)}, {})
    other.path("unit-00").rename(path)
    with pytest.raises(CheckpointError, match="the arguments of this run"):
        journal.load("unit-00")
    save_file({"x": torch.arange(3)}, path, metadata={"notes": "{}"})
    with pytest.raises(CheckpointError, match="older versions"):
        journal.load("unit-00")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="is in the way: it is not an unfinished run"):
        Journal(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_damaged_arguments_are_named(tmp_path: Path) -> None:
    for content in ("{", "[1]", '{"a": ' + "[" * 200 + "]" * 200 + "}", '{"a": 1, "a": 2}'):
        (tmp_path / "arguments.json").write_text(content)
        with pytest.raises(CheckpointError, match=rf"arguments\.json: .*; remove {tmp_path} to start again"):
            Journal(tmp_path, {"a": "1"})
