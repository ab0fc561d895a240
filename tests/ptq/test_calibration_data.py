"""Calibration data by name, and how it differs from the data for evaluation."""

from pathlib import Path

import numpy as np
import pytest

from saqsam.cli.inputs import open_calibration as open_for_command
from saqsam.data.open import open_dataset
from saqsam.ptq.calibration_data import open_calibration
from saqsam.recipes.specs import Calibration
from support.tiny_quantized import tiny_data


def test_scenes_are_others_than_those_for_evaluation_and_the_same_as_on_the_command_line() -> None:
    scenes = open_calibration("scenes", Calibration(images=120, seed=3))
    on_command_line = open_for_command("scenes", 120, 3)
    assert len(scenes) == len(on_command_line) == 120
    assert np.array_equal(scenes[0].image, on_command_line[0].image)
    assert not np.array_equal(scenes[0].image, open_dataset("scenes", limit=1, seed=3)[0].image)


def test_datasets_pass_through_and_other_things_are_refused(tmp_path: Path) -> None:
    data = tiny_data()
    assert open_calibration(data, Calibration()) is data
    with pytest.raises(ValueError, match="no such folder"):
        open_calibration(tmp_path / "nowhere", Calibration())
    with pytest.raises(ValueError, match="data: expected"):
        open_calibration(1, Calibration())  # type: ignore[arg-type]
