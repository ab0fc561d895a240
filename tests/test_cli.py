"""The command line, on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import saqsam
from saqsam.cli import app
from tiny_sam import tiny_processor, tiny_sam


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(message: str, *arguments: object) -> None:
    """The command ends with exit code 2 and one line that holds the message."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in result.output


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sam().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(model: Path) -> Path:
    folder = model.parent / "w4a4"
    result = run(
        "quantize", model, "--out", folder, "--method", "min-max", "--images", 2, "--check-images", 2
    )
    assert result.exit_code == 0, result.output
    assert "mean IoU" in result.stdout
    assert "smaller" in result.stdout
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


def test_quantize_writes_a_checkpoint_and_a_picture(checkpoint: Path) -> None:
    assert saqsam.recipe_of(saqsam.load_checkpoint(checkpoint)).name == "min-max-w4a4"
    with Image.open(checkpoint / "comparison.png") as image:
        assert image.width > 800
    assert not [p for p in checkpoint.parent.iterdir() if p.name.startswith(".")]


def test_an_existing_out_is_kept(checkpoint: Path, model: Path) -> None:
    before = {p.name: p.read_bytes() for p in checkpoint.iterdir()}
    refused("exists", "quantize", model, "--out", checkpoint)
    assert {p.name: p.read_bytes() for p in checkpoint.iterdir()} == before


def test_wrong_use_of_quantize(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("did you mean 'min-max'", "quantize", model, "--out", out, "--method", "minmax")
    refused("weight bits must be an integer from 2 to 8", "quantize", model, "--out", out, "--bits", "w9a4")
    refused("must look like w4a4", "quantize", model, "--out", out, "--bits", "int4")
    refused("no model", "quantize", "nonsense", "--out", out)
    refused("no such folder", "quantize", model, "--out", out, "--calibration", tmp_path / "[none]")
    assert not out.exists()
    assert run("quantize", model).exit_code == 2
    assert run("quantize", model, "--out", out, "--images", 0).exit_code == 2


def test_calibration_on_a_bare_folder(model: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--method", "min-max", "--check", "none")
    result = run("quantize", model, "--out", out, "--calibration", picture.parent, *options)
    assert result.exit_code == 0, result.output
    assert "note: calibrating on 1 images" in result.stderr
    assert saqsam.recipe_of(saqsam.load_checkpoint(out)).calibration.images == 32


def test_evaluate_writes_json(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    for prompt in ("box", "point"):
        result = run("evaluate", checkpoint, "--limit", 1, "--prompt", prompt, "--json", path)
        assert result.exit_code == 0, result.output
        scores = json.loads(path.read_text())
        assert scores["instances"] > 0
        assert 0 <= scores["miou"] <= 1
    refused("expected 'box' or 'point'", "evaluate", checkpoint, "--limit", 1, "--prompt", "clicks")
    refused("no folder", "evaluate", checkpoint, "--json", tmp_path / "nowhere" / "scores.json")


def test_segment(checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    original = picture.read_bytes()
    result = run("segment", checkpoint, picture, "--box", "5,5,40,40", "--point", "20,30")
    assert result.exit_code == 0, result.output
    with Image.open(picture.with_name("picture.masks.png")) as image:
        assert image.size == (70, 50)
    assert picture.read_bytes() == original
    refused("give at least one", "segment", checkpoint, picture)
    refused("must look like x0,y0,x1,y1", "segment", checkpoint, picture, "--box", "5,5,40")
    refused("box", "segment", checkpoint, picture, "--box", "40,5,5,40")
    refused("point", "segment", checkpoint, picture, "--point", "400,5")
    broken = tmp_path / "broken.png"
    broken.write_bytes(original[:60])
    refused("broken.png", "segment", checkpoint, broken, "--point", "1,1")


def test_inspect(checkpoint: Path, model: Path) -> None:
    result = run("inspect", checkpoint)
    assert result.exit_code == 0, result.output
    for text in ("min-max-w4a4", "encoder.qkv", "w4a4", "a4a4", "MACs", "float16"):
        assert text in result.stdout
    refused("not a checkpoint of saqsam", "inspect", model)
    refused("no checkpoint folder", "inspect", checkpoint / "none")


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "saqsam", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"saqsam {saqsam.__version__}\n"
    assert done.stderr == ""
