"""The cost benchmark keeps the seconds of finished phases when a run is interrupted and resumed."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from support.script_modules import scripts


@pytest.fixture(scope="module")
def cost() -> Iterator[ModuleType]:
    with scripts("benchmarks", ["ptq_cost"]) as found:
        yield found["ptq_cost"]


def test_announcements_are_no_steps_and_count_in_the_phase(
    cost: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 2.0, 3.0, 5.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(times))
    phases = cost.Phases()
    for done in (0, 1, 2):
        phases("1/2 encoder stage 1", done, 2)
    assert phases.steps == {"1/2 encoder stage 1": [1.0, 2.0]}
    assert phases.finished == {"1/2 encoder stage 1": 5.0}


def test_a_resumed_run_keeps_the_seconds_of_what_it_does_not_run_again(
    cost: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 10.0, 30.0, 31.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(times))
    first = cost.Phases(tmp_path / "phases.json")
    first("calibrating", 1, 1)
    second = cost.Phases(tmp_path / "phases.json")
    second("packing weights", 1, 1)
    assert second.finished == {"calibrating": 10.0, "packing weights": 1.0}


def test_a_measured_run_leaves_nothing_to_resume(
    cost: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "CACHE", tmp_path)
    folder = cost.run_folder("sam-b-plus", "cpu")

    def measured(device: str) -> list[dict[str, object]]:
        folder.mkdir(parents=True)
        return [{"recipe": "r", "what": "total", "seconds": 1.0}]

    monkeypatch.setitem(cost.SUBJECTS, "sam-b-plus", measured)
    cost.measure(["sam-b-plus"], "cpu", tmp_path / "cost.csv")
    assert not folder.exists()
    assert len((tmp_path / "cost.csv").read_text().splitlines()) == 2


def test_runs_of_other_sources_are_not_resumed(cost: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cost.run_folder("sam-b-plus", "cpu")
    monkeypatch.setattr(cost, "sources_hash", lambda *_: "other")
    assert cost.run_folder("sam-b-plus", "cpu") != folder


def test_the_memory_of_earlier_children_does_not_count(cost: ModuleType) -> None:
    def peak(mib: int) -> float:
        return float(cost.run_measured([sys.executable, "-c", f"b'x' * ({mib} << 20)"])[1])

    large = peak(2048)
    assert large > 2
    assert peak(1) < large - 0.3
