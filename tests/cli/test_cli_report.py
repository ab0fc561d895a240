"""`saqsam report`, and the short report that `saqsam quantize` leaves."""

import json
import shutil
from pathlib import Path

import pytest

import saqsam
from support.coco_folder import make_coco
from support.command_line import assert_done, assert_refused, run
from support.report_page import Page
from support.tiny_sam import tiny_processor, tiny_sam


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the float model and a checkpoint of it."""
    folder = tmp_path_factory.mktemp("made")
    tiny_sam().save_pretrained(folder / "tiny")
    tiny_processor().save_pretrained(folder / "tiny")
    arguments = ("--images", "2", "--check-images", "2", "--method", "saq-sam", "--steps", "2")
    result = run("quantize", folder / "tiny", "--out", folder / "q", *arguments)
    assert_done(result)
    assert f"report: {folder / 'q' / 'report.html'}" in result.stdout.splitlines()
    return folder


def sections(path: Path) -> list[str | None]:
    return [section["id"] for section in Page(path.read_text(encoding="utf-8")).of("section")]


@pytest.mark.slow
def test_quantize_leaves_a_short_report(made: Path, tmp_path: Path) -> None:
    page = made / "q" / "report.html"
    assert sections(page) == ["how", "size", "accuracy", "gallery", "clipping", "learning", "about"]
    assert "tiny, saq-sam-w4a4" in Page(page.read_text()).text
    assert page.stat().st_size < 300_000
    saqsam.load(made / "q")  # which it is no part of
    arguments = ("--images", "2", "--check", "none", "--method", "min-max")
    assert_done(run("quantize", made / "tiny", "--out", tmp_path / "q", *arguments))
    assert sections(tmp_path / "q" / "report.html") == ["how", "size", "about"]


@pytest.mark.slow
def test_a_full_report_in_its_three_forms(made: Path, tmp_path: Path) -> None:
    common = ("report", made / "q", "--limit", "2", "--sensitivity-images", "1")
    result = run(*common, "--out", tmp_path / "r.html")
    assert_done(result)
    assert result.stdout.splitlines()[-1] == f"report: {tmp_path / 'r.html'}"
    assert sections(tmp_path / "r.html") == [
        *("how", "size", "accuracy", "gallery", "sensitivity", "clipping", "learning", "activations", "about")
    ]
    assert "left out" not in result.stdout
    assert_done(run(*common, "--sensitivity", "layers", "--format", "json", "--out", tmp_path / "r"))
    content = json.loads((tmp_path / "r").read_text())
    data = saqsam.open_dataset("scenes", limit=2)
    for model, folder in (("quantized", "q"), ("float", "tiny")):
        scored = saqsam.evaluate(*saqsam.load(made / folder), data)
        assert content["accuracy"][model]["miou"] == scored.metrics["prompt"]["miou"]
    groups = [group["name"] for group in content["sensitivity"]["groups"]]
    assert "vision_encoder.layers.0.attn.qkv" in groups
    assert content["distributions"]
    assert len(content["focus"]) == 3
    assert_done(run(*common, "--sensitivity", "none", "--out", tmp_path / "r.md"))
    text = (tmp_path / "r.md").read_text()
    assert "Not in this report: Sensitivity: it was not requested" in text
    assert "## Activations" in text


def test_without_the_float_model_a_report_says_what_it_lacks(
    made: Path, tmp_path: Path, labeled: Path
) -> None:
    shutil.copytree(made / "q", tmp_path / "q")
    log = json.loads((tmp_path / "q" / "quantization.json").read_text())
    log["source"]["model"] = str(tmp_path / "moved")
    (tmp_path / "q" / "quantization.json").write_text(json.dumps(log))
    common = ("report", tmp_path / "q", "--data", labeled, "--out", tmp_path / "r.html", "--overwrite")
    result = run(*common)
    assert_done(result)
    assert "left out: Sensitivity: the float model" in result.stdout
    assert "--float MODEL" in result.stdout
    assert sections(tmp_path / "r.html") == ["how", "size", "accuracy", "clipping", "learning", "about"]
    assert str(tmp_path) not in (tmp_path / "r.html").read_text()  # it may be sent on
    assert "note: " in result.stderr

    (tmp_path / "q" / "quantization.json").unlink()
    result = run(*common)
    assert_done(result)
    assert "does not name the float model" in result.stdout
    assert sections(tmp_path / "r.html") == ["how", "size", "accuracy", "about"]
    arguments = ("--float", made / "tiny", "--calibration", "scenes", "--sensitivity-images", "1")
    assert_done(run(*common, *arguments))
    assert "sensitivity" in sections(tmp_path / "r.html")


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("data") / "coco")


def test_another_float_model_is_refused(made: Path, tmp_path: Path) -> None:
    tiny_sam(seed=4).save_pretrained(tmp_path / "other")
    tiny_processor().save_pretrained(tmp_path / "other")
    common = ("report", made / "q", "--limit", "1", "--out", tmp_path / "r.html")
    assert_refused(run(*common, "--float", tmp_path / "other"), "not those of this float model")
    assert_refused(run(*common, "--float", made / "q"), "expected a float model")
    assert not (tmp_path / "r.html").exists()


def test_wrong_use(made: Path, tmp_path: Path) -> None:
    assert_refused(run("report", made / "q", "--out", tmp_path / "r.pdf"), ".html, .md or .json")
    assert_refused(run("report", made / "q", "--out", tmp_path / "r", "--format", "pdf"), "--format", "pdf")
    assert_refused(
        run("report", made / "q", "--out", tmp_path / "r.md", "--sensitivity", "all"), "--sensitivity", "all"
    )
    label = ("--ignore-label", "white")
    assert_refused(run("report", made / "q", "--out", tmp_path / "r.md", *label), "--ignore-label", "white")
    assert_refused(run("report", tmp_path / "nothing", "--out", tmp_path / "r.md"), "no checkpoint folder")
    assert_refused(run("report", made / "tiny", "--out", tmp_path / "r.md"), "is float")
    assert_refused(run("report", made / "q", "--out", tmp_path), "expected a name that ends in")
    assert not list(tmp_path.iterdir())
