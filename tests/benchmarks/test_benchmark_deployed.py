"""The benchmark of deployed checkpoints: its options, and checkpoints that are cached by what makes them."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from support.script_modules import scripts


@pytest.fixture(scope="module")
def deployed() -> Iterator[ModuleType]:
    with scripts("benchmarks", ["deployed"]) as found:
        yield found["deployed"]


def test_data_that_is_not_there_is_one_line(
    deployed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deployed.main(["--data-root", str(tmp_path), "--out", str(tmp_path / "rows.csv")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "coco_val" in error


def test_a_checkpoint_of_other_sources_is_not_taken(
    deployed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = argparse.Namespace(cache=tmp_path, settings=[], data_root=tmp_path)
    monkeypatch.setattr(deployed, "sources_hash", lambda: "old")
    folder = tmp_path / "-".join(["mse", "w8a8", deployed.FloatModel("sam-mini", "cpu").hash, "old"])
    folder.mkdir()
    assert deployed.make_checkpoint("mse", "w8a8", options, None) == folder
    monkeypatch.setattr(deployed, "sources_hash", lambda: "new")
    with pytest.raises(ValueError, match="coco_train"):
        deployed.make_checkpoint("mse", "w8a8", options, None)
