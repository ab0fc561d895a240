"""The cost benchmark keeps the seconds of finished phases when a run is interrupted and resumed."""

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
