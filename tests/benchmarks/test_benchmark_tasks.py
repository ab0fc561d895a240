"""The benchmark of all tasks: one row per metric, and nothing is measured twice."""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from saqsam.evaluation import PromptTask
from support.script_modules import scripts


@pytest.fixture(scope="module")
def tasks() -> Iterator[ModuleType]:
    with scripts("benchmarks", ["tasks"]) as found:
        yield found["tasks"]


@pytest.mark.slow
def test_rows_are_figures_and_are_measured_once(
    tasks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = tasks.Case("box", lambda *_: PromptTask("box"), {"scenes": 1})
    monkeypatch.setattr(tasks, "CASES", (case,))
    out = tmp_path / "tasks.csv"
    arguments = ["--methods", "float", "--out", str(out), "--data-root", str(tmp_path)]
    assert tasks.main(arguments) == 0
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figures = {row["metric"]: float(row["value"]) for row in rows}
    assert set(figures) == {"miou", "boundary_iou", "share_above_90", "instances"}
    assert 0.5 < figures["miou"] < 1
    assert {(row["case"], row["task"], row["data"], row["images"]) for row in rows} == {
        ("box", "prompt", "scenes", "1")
    }
    written = out.read_bytes()
    monkeypatch.setattr(tasks, "CASES", (dataclasses.replace(case, make=pytest.fail),))
    assert tasks.main(arguments) == 0
    assert out.read_bytes() == written


def test_every_task_has_a_case(tasks: ModuleType) -> None:
    made = {case.name for case in tasks.CASES}
    assert {"box", "point", "clicks", "instance", "oriented", "everything", "semantic"} == made


@pytest.mark.parametrize(
    "option",
    ["--limit 2", "--data scenes", "--prompt point", "--set equalized=true", "--seed 1", "--images 4"],
)
def test_options_that_rows_do_not_name_are_refused(tasks: ModuleType, option: str) -> None:
    with pytest.raises(SystemExit):
        tasks.main(option.split())


def test_wrong_options_end_at_once(
    tasks: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert tasks.main(["--bits", "w4", "--out", str(tmp_path / "t.csv")]) == 2
    assert "w4" in capsys.readouterr().err
