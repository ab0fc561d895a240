"""`--image-size` of every command that loads a float model."""

import json
from pathlib import Path

import pytest
from PIL import Image

import saqsam
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.export import export_model
from saqsam.models.processing import input_side
from support.coco_folder import make_coco
from support.command_line import assert_done, assert_refused, run
from support.tiny_sam import tiny_processor, tiny_sam


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("data") / "coco")


def test_quantize_and_report_at_another_size(tiny: Path, labeled: Path, tmp_path: Path) -> None:
    out = tmp_path / "q"
    options = ("--images", "2", "--method", "min-max", "--check", str(labeled), "--calibration", str(labeled))
    assert_done(run("quantize", tiny, "--out", out, "--image-size", "96", *options))
    assert input_side(saqsam.load(out)[1]) == 96
    # The report loads the float model at the size of the checkpoint.
    page = tmp_path / "report.json"
    done = run("report", out, "--out", page, "--data", labeled, "--sensitivity", "none")
    assert_done(done)
    assert "could not be loaded" not in done.stdout
    assert json.loads(page.read_text())["left_out"].keys() <= {"sensitivity"}
    assert_refused(
        run("evaluate", out, "--image-size", "64"), "quantized at 96 px; quantize the float model at 64"
    )
    assert_refused(
        run("quantize", tiny, "--out", tmp_path / "r", "--image-size", "100", *options),
        "image_size: expected a multiple of 8 from 8 to 2048, such as 96 and 104; got 100",
    )
    assert not (tmp_path / "r").exists()


def test_evaluate_and_compare_at_another_size(tiny: Path, labeled: Path, tmp_path: Path) -> None:
    scores = []
    for number, size in enumerate(((), ("--image-size", "64"), ("--image-size", "96"))):
        file = tmp_path / f"{number}.json"
        assert_done(run("evaluate", tiny, "--data", labeled, "--json", file, *size))
        scores.append(json.loads(file.read_text())["tasks"]["prompt"]["metrics"]["miou"])
    assert scores[0] == scores[1] != scores[2]
    file = tmp_path / "compared.json"
    assert_done(run("compare", tiny, tiny, "--data", labeled, "--image-size", "96", "--json", file))
    compared = [model["metrics"]["prompt"]["miou"] for model in json.loads(file.read_text())["models"]]
    assert compared == [scores[2]] * 2


def test_segment_at_another_size(tiny: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(ScenesDataset(count=1, seed=0, size=(48, 64))[0].image).save(image)
    pictures = []
    for size in ("64", "96"):
        out = tmp_path / f"{size}.png"
        assert_done(run("segment", tiny, image, "--box", "4,5,40,30", "--image-size", size, "--out", out))
        pictures.append(out.read_bytes())
    assert pictures[0] != pictures[1]


def test_export_at_another_size(tiny: Path, labeled: Path, tmp_path: Path) -> None:
    """The command itself compares the masks of all runtimes with torch's."""
    out = tmp_path / "onnx"
    assert_done(run("export", tiny, "--out", out, "--image-size", "96", "--min-parity", "0.99"))
    assert (
        json.loads((out / "processor_config.json").read_text())["image_processor"]["pad_size"]["height"] == 96
    )
    assert_done(run("evaluate", out, "--data", labeled, "--limit", "1", "--image-size", "96"))
    assert_refused(
        run("evaluate", out, "--image-size", "64"), "is an export at 96 px; export the model at 64 px"
    )


def test_an_export_keeps_its_size(tmp_path: Path) -> None:
    export_model(tiny_sam(), tiny_processor(), tmp_path / "onnx")
    assert_refused(run("evaluate", tmp_path / "onnx", "--image-size", "96"), "image_size:", "export at 64 px")


def test_sizes_below_one_are_refused_before_anything_is_loaded() -> None:
    refused = run("evaluate", "--image-size", "0")
    assert refused.exit_code == 2
    assert "--image-size" in refused.stderr
