"""The command line tells what was skipped in data, and what was accepted although it was unusual."""

import json
from pathlib import Path

import pytest

from support.coco_folder import annotation, make_coco
from support.command_line import assert_done, assert_refused, run

BOX = (10, 5, 30, 25)


@pytest.fixture(scope="module")
def quirky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    objects = [
        annotation(1, 1, BOX, bbox=None),
        annotation(2, 7, BOX, bbox=None),
        annotation(3, 7, BOX, segmentation=[[1, 1]]),
        annotation(4, 1, BOX) | {"image_id": "one"},
    ]
    return make_coco(tmp_path_factory.mktemp("data") / "quirky", objects)


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    objects = [annotation(number, 1, BOX) | {"image_id": 99} for number in (1, 2)]
    return make_coco(tmp_path_factory.mktemp("data") / "lost", objects)


LINES = [
    "skipped: unknown image id: 1",
    "skipped: polygon without area: 1",
    "note: box derived from segmentation: 2",
]


def assert_told_once(stdout: str, prefix: str = "") -> None:
    lines = stdout.splitlines()
    for line in LINES:
        label, _, rest = line.partition(": ")
        assert lines.count(f"{label}: {prefix}{rest}") == 1


def test_evaluate_and_compare(tiny: Path, quirky: Path, tmp_path: Path) -> None:
    result = run("evaluate", tiny, "--data", quirky, "--json", tmp_path / "scores.json")
    assert_done(result)
    assert_told_once(result.stdout)
    assert json.loads((tmp_path / "scores.json").read_text())["notes"] == {"box derived from segmentation": 2}
    result = run("compare", tiny, tiny, "--data", quirky, "--json", tmp_path / "compared.json")
    assert_done(result)
    assert_told_once(result.stdout)
    assert json.loads((tmp_path / "compared.json").read_text())["notes"] == {
        "box derived from segmentation": 2
    }


def test_quantize_tells_of_calibration_and_check(tiny: Path, quirky: Path, tmp_path: Path) -> None:
    arguments = ("--method", "min-max", "--bits", "w8a8", "--images", "2")
    result = run(
        "quantize", tiny, "--out", tmp_path / "out", *arguments, "--calibration", quirky, "--check", quirky
    )
    assert_done(result)
    assert_told_once(result.stdout)
    assert_told_once(result.stdout, "calibration: ")
    log = json.loads((tmp_path / "out" / "quantization.json").read_text())
    assert log["skipped"] == {"unknown image id": 1, "polygon without area": 1}
    assert log["notes"] == {"box derived from segmentation": 2}


def test_quantize_refuses_annotations_that_are_all_unusable(tiny: Path, lost: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("quantize", tiny, "--out", out, "--calibration", lost, "--images", "2", "--check", "none")
    assert_refused(result, "none of its annotations can be used", "unknown image id (2)")
    assert not out.exists()


def test_evaluate_refuses_with_the_reasons(tiny: Path, lost: Path) -> None:
    assert_refused(run("evaluate", tiny, "--data", lost), "found none in 2 images", "unknown image id (2)")


def test_report(packed: Path, quirky: Path, tmp_path: Path) -> None:
    result = run("report", packed, "--data", quirky, "--out", tmp_path / "report.html")
    assert_done(result)
    assert_told_once(result.stdout)
