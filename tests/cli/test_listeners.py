import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from saqsam.cli import progress, reporting, terminal
from saqsam.cli.forecast import Estimate, Forecast
from saqsam.cli.listeners import BarListener, EventListener, LineListener
from saqsam.cli.phases import Phases
from saqsam.ptq.unit_costs import UnitCost
from support.clock import Clock

UNITS = [UnitCost("1/2 a", 100, 10, 100), UnitCost("2/2 b", 100, 10, 100)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def run_phase(phases: Phases, clock: Clock, name: str, total: int, seconds: float, note: str = "") -> None:
    phases(name, 0, total)
    for done in range(1, total + 1):
        clock.wait(seconds)
        phases(name, done, total, note)


def test_lines_tell_steps_and_times_at_most_every_ten_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    phases = Phases([LineListener()])
    run_phase(phases, clock, "calibrating", 32, 0.1)
    run_phase(phases, clock, "1/9 encoder stage 1", 100, 0.25, "loss 0.123")
    assert capsys.readouterr().err.splitlines() == [
        "calibrating: 32 images",
        "calibrating: 32 images in 3.2 s",
        "1/9 encoder stage 1: 100 steps",
        "1/9 encoder stage 1: 40 of 100 steps, 10 s, 15 s left, loss 0.123",
        "1/9 encoder stage 1: 80 of 100 steps, 20 s, 5.0 s left, loss 0.123",
        "1/9 encoder stage 1: 100 steps in 25 s",
    ]


def test_a_long_first_step_is_announced(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    phases = Phases([LineListener()], "images")
    phases("evaluating", 3, 5)
    assert capsys.readouterr().err == "evaluating: 5 images, 3 of them finished before\n"
    clock.wait(600)
    phases("evaluating", 4, 5)
    assert capsys.readouterr().err == "evaluating: 4 of 5 images, 10 min, 10 min left\n"
    phases.end()
    assert capsys.readouterr().err == "evaluating: 4 of 5 images in 10 min\n"


def test_the_first_estimate_of_the_whole_is_printed_at_once(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    phases = Phases([LineListener()], forecast=Forecast(UNITS))
    for name in ("1/2 a", "2/2 b"):
        run_phase(phases, clock, name, 100, 0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "1/2 a: 100 steps",
        "1/2 a: 2 of 100 steps, 0.2 s, 9.8 s left, about 20 s left for 2 units (estimated)",
        "1/2 a: 100 steps in 10 s",
        "2/2 b: 100 steps",
        "2/2 b: 100 steps in 10 s",
    ]


def test_events_hold_the_same(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with reporting.reporting() as current:
        current.log = reporting.EventLog(str(path), print)
        phases = Phases([EventListener()], forecast=Forecast(UNITS))
        run_phase(phases, clock, "1/2 a", 4, 0.6, "loss 1")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        assert event.pop("time").endswith("Z")
    same = {"phase": "1/2 a", "total": 4, "unit": "steps"}
    left = events[1].pop("run_left_s")
    assert left > 1.2
    assert events == [
        {"event": "phase_start", **same, "done": 0, "elapsed_s": 0.0},
        # At most one a second.
        {"event": "progress", **same, "done": 2, "elapsed_s": 1.2, "left_s": 1.2, "note": "loss 1"},
        {
            **{"event": "progress", **same, "done": 4, "elapsed_s": 2.4, "left_s": 0.0, "note": "loss 1"},
            "run_left_s": events[2]["run_left_s"],
        },
        {"event": "phase_end", **same, "done": 4, "elapsed_s": 2.4, "note": "loss 1"},
    ]


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Make standard error a terminal of 100 columns, and return what is written to it."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, markup=False)
    for module in (terminal, progress):
        monkeypatch.setattr(module, "err", console)
    return written


def test_something_is_shown_from_the_first_moment_to_the_last() -> None:
    bars = terminal.Bars()
    phases = Phases([BarListener(bars, has_gaps=True)])
    assert [(task.description, task.total) for task in bars.tasks] == [("...", None)]
    phases("calibrating", 0, 2)
    assert [(t.description, t.completed, t.total) for t in bars.tasks] == [("calibrating", 0, 2)]
    phases("calibrating", 1, 2, "remark")
    assert [task.description for task in bars.tasks] == ["calibrating, remark"]
    phases("calibrating", 2, 2)
    assert [task.description for task in bars.tasks] == ["calibrating", "..."]
    phases("packing weights", 0, 9)
    phases("packing weights", 3, 9)
    phases.end()
    assert [t.description for t in bars.tasks] == ["calibrating", "packing weights", "..."]
    assert [t.finished for t in bars.tasks] == [True, True, False]


def test_bars_show_the_time_left_in_all(clock: Clock) -> None:
    bars = terminal.Bars()
    phases = Phases([BarListener(bars, has_gaps=False)], forecast=Forecast(UNITS))
    phases("1/2 a", 0, 100)
    assert not bars.tasks[0].fields.get("run_left")
    for done in (1, 2):
        clock.wait(1)
        phases("1/2 a", done, 100)
    text = bars.tasks[0].fields["run_left"]
    assert text == "(about 3 min left for 2 units)"
    assert str(terminal.RunLeftColumn().render(bars.tasks[0])) == text
    phases.end()
    assert bars.tasks[0].fields["run_left"] == ""


def test_a_terminal_shows_bars_and_spinners_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    written = on_terminal(monkeypatch)
    with progress.progress_phases("images") as phases:
        phases("scoring", 0, 1)
        phases("scoring", 1, 1)
    with progress.busy("drawing"):
        pass
    assert "scoring" in written.getvalue()
    assert "1/1" in written.getvalue()
    assert "drawing" in written.getvalue()
    assert "scoring: 1 image" not in written.getvalue()


def test_quiet_shows_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    written = on_terminal(monkeypatch)
    with reporting.reporting() as current:
        current.quiet = True
        with progress.progress_phases() as phases, progress.busy("drawing"), terminal.starting():
            phases("scoring", 0, 1)
        terminal.inform("effort: quick")
    assert written.getvalue() == ""


def test_an_estimate_counts_the_units_left() -> None:
    assert Estimate(65.0, 9).text() == "about 60 s left for 9 units"
