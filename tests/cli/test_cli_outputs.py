"""Outputs of commands: kept unless told otherwise, written by one process at a time, whole or not at all."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from saqsam.cli import app
from saqsam.cli.guard import guarded
from saqsam.cli.outputs import claim_output
from support.command_line import assert_done, assert_refused, run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def commands(model: Path, photo: Path, out: Path) -> dict[str, tuple[Any, ...]]:
    """Each command with one output, by a name; the output of some is not named."""
    return {
        "quantize": ("quantize", model, "--out", out),
        "evaluate": ("evaluate", model, "--limit", "1", "--json", out),
        "compare": ("compare", model, model, "--limit", "1", "--json", out),
        "compare-picture": ("compare", model, model, "--limit", "1", "--out", out.with_suffix(".png")),
        "inspect": ("inspect", model, "--json", out),
        "report": ("report", model, "--limit", "1", "--sensitivity", "none", "--format", "md", "--out", out),
        "export": ("export", model, "--out", out),
        "segment": ("segment", model, photo, "--point", "9,9", "--out", out.with_suffix(".png")),
        "segment-default": ("segment", model, photo, "--point", "9,9"),
        "segment-everything": ("segment", model, photo, "--everything", "--out", out.with_suffix(".png")),
    }


NAMES = tuple(commands(Path(), Path(), Path("out")))


def target(name: str, photo: Path, out: Path) -> Path:
    if name == "segment-default":
        return photo.with_name("photo.masks.png")
    return out.with_suffix(".png") if name.startswith("segment") or name == "compare-picture" else out


@pytest.mark.parametrize("name", NAMES)
def test_an_existing_output_is_refused_before_any_work_and_kept(
    name: str, packed: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin() -> None:
        pytest.fail("the library was imported")

    path = target(name, photo, tmp_path / "out")
    path.write_text("mine")
    monkeypatch.setattr(app, "library", begin)
    result = run(*commands(packed, photo, tmp_path / "out")[name])
    assert_refused(result, f"{path} exists; choose another name, or pass --overwrite")
    assert len(result.stderr.splitlines()) == 1
    assert path.read_text() == "mine"
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted([path.name, "photo.png"])


@pytest.mark.parametrize(
    "name", ["evaluate", "compare", "compare-picture", "inspect", "report", "segment-default"]
)
def test_overwrite_replaces_an_output(name: str, packed: Path, photo: Path, tmp_path: Path) -> None:
    command = commands(packed, photo, tmp_path / "out")[name]
    path = target(name, photo, tmp_path / "out")
    result = run(*command)
    assert_done(result)
    assert str(path) in result.stdout
    content = path.read_bytes()
    path.write_text("old")
    assert_done(run(*command, "--overwrite"))
    assert path.read_bytes() == content
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted([path.name, "photo.png"])


def test_overwrite_follows_a_link(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    assert_refused(run("inspect", packed, "--json", tmp_path / "link.json"), "exists")
    assert_done(run("inspect", packed, "--json", tmp_path / "link.json", "--overwrite"))
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text().startswith("{")


@pytest.mark.parametrize("name", NAMES)
def test_a_second_run_into_one_output_is_refused(
    name: str, packed: Path, photo: Path, tmp_path: Path
) -> None:
    path = target(name, photo, tmp_path / "out")
    with claim_output(path, overwrite=False):
        result = run(*commands(packed, photo, tmp_path / "out")[name])
        assert_refused(result, f"{path} is being written by process {os.getpid()}; wait for it to end")
    assert [item.name for item in tmp_path.iterdir()] == ["photo.png"]


def test_leftovers_of_a_killed_run_are_removed_and_its_steps_kept(tmp_path: Path) -> None:
    unfinished = tmp_path / "q.unfinished"
    (unfinished / "staged" / "below").mkdir(parents=True)
    (unfinished / ".arguments.json.abcdefgh.partial").touch()
    (unfinished / "lock").write_text("1")
    (unfinished / "ranges.safetensors").touch()

    def fail() -> None:
        with claim_output(tmp_path / "q", overwrite=False) as output:
            assert sorted(path.name for path in unfinished.iterdir()) == ["lock", "ranges.safetensors"]
            output.staged.mkdir()
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed") as caught:
        fail()
    assert [path.name for path in unfinished.iterdir()] == ["ranges.safetensors"]
    assert caught.value.__notes__ == [
        f"finished steps are kept in {unfinished}; run the same command again to resume"
    ]
    with claim_output(tmp_path / "q", overwrite=False) as output:
        output.staged.mkdir()
        (output.staged / "a").touch()
        output.place_folder()
    assert [path.name for path in (tmp_path / "q").iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


def test_a_folder_that_was_set_aside_returns_to_its_place(tmp_path: Path) -> None:
    # Killed between the two renames, where folders cannot be swapped.
    (tmp_path / "q.unfinished" / "replaced").mkdir(parents=True)
    (tmp_path / "q.unfinished" / "replaced" / "old").touch()
    with pytest.raises(ValueError, match="q exists"), claim_output(tmp_path / "q", overwrite=False):
        pass
    assert [path.name for path in (tmp_path / "q").iterdir()] == ["old"]


@pytest.mark.parametrize("name", ["notes.txt", "photos"])
def test_an_unfinished_folder_with_files_of_others_is_left_alone(
    name: str, packed: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.json.unfinished" / name).mkdir(parents=True)
    result = run("evaluate", packed, "--limit", "1", "--json", tmp_path / "a.json")
    assert_refused(result, f"{name} in it is not of an unfinished run")
    assert (tmp_path / "a.json.unfinished" / name).is_dir()


def test_an_error_of_the_disk_says_what_became_of_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @guarded
    def fail() -> None:
        with claim_output(tmp_path / "out.json", overwrite=True):
            raise OSError(errno.ENOSPC, "No space left on device")

    for state in ("was not written", "is unchanged"):
        with pytest.raises(typer.Exit) as caught:
            fail()
        assert caught.value.exit_code == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines == [f"error: No space left on device; {tmp_path / 'out.json'} {state}"]
        (tmp_path / "out.json").touch()


def test_ranks_keep_records_in_one_folder_and_the_first_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with claim_output(path, overwrite=False) as first, claim_output(path, overwrite=False, rank=1) as second:
        assert first.unfinished == second.unfinished
        assert sorted(item.name for item in first.unfinished.iterdir()) == ["lock", "lock-1"]
        with (
            pytest.raises(ValueError, match="is being written by process"),
            claim_output(path, overwrite=False, rank=1),
        ):
            pass
        first.write(b"{}")
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]
