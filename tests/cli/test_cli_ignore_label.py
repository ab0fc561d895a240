"""`--ignore-label` of evaluate, compare and quantize."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saqsam.cli.inputs import open_labeled
from saqsam.report.log import read_log
from support.command_line import assert_done, assert_refused, run


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """One image with a mask of 0 and 128 in a frame of 255."""
    values = np.zeros((40, 60), dtype=np.uint8)
    values[8:32, 8:52] = 255
    values[10:30, 10:50] = 128
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(values).save(tmp_path / folder / "a.png")
    return tmp_path


def test_values(pairs: Path) -> None:
    sample = open_labeled(str(pairs), "--data", None, "255")[0]
    assert [instance.area for instance in sample.instances] == [20 * 40]
    for text in ("auto", "none", "7"):
        with pytest.raises(ValueError, match=r"expected a mask of two values, got 3 .*--ignore-label"):
            open_labeled(str(pairs), "--data", None, text)
    for text in ("", "-1", "1.5", "None", "²", "9" * 5000):
        with pytest.raises(ValueError, match=r"(--ignore-label|ignore_label): expected"):
            open_labeled(str(pairs), "--data", None, text)


@pytest.mark.parametrize("command", [("evaluate", "sam-mini"), ("compare", "sam-mini", "sam-mini")])
def test_it_reaches_the_data(pairs: Path, command: tuple[str, ...]) -> None:
    result = run(*command, "--data", str(pairs), "--ignore-label", "many")
    assert_refused(result, "--ignore-label: expected auto, none or a value from 0 to 65535, got 'many'")


def test_quantize_calibrates_on_masks_with_an_ignore_label(pairs: Path, tiny: Path, tmp_path: Path) -> None:
    command = ("quantize", tiny, "--out", tmp_path / "q", "--method", "min-max", "--check", "none")
    options = ("--calibration", pairs, "--images", "1")
    assert_refused(run(*command, *options), "--ignore-label")
    result = run(*command, *options, "--ignore-label", "255")
    assert_done(result)
    assert "calibrated on 1 image " in result.stdout
    assert read_log(tmp_path / "q").source.ignore_label == "255"  # type: ignore[union-attr]
