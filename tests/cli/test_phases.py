import pytest

from saqsam.cli.phases import Phase, Phases
from support.clock import Clock


class Recorder:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int]] = []

    def started(self, phase: Phase) -> None:
        self.calls.append(("started", phase.name, phase.done))

    def advanced(self, phase: Phase) -> None:
        self.calls.append(("advanced", phase.name, phase.done))

    def ended(self, phase: Phase) -> None:
        self.calls.append(("ended", phase.name, phase.done))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_phase_is_announced_and_ends_with_its_last_step() -> None:
    recorder = Recorder()
    phases = Phases([recorder])
    for done in range(3):
        phases("calibrating", done, 2)
    phases.end()
    assert recorder.calls == [
        ("started", "calibrating", 0),
        ("advanced", "calibrating", 1),
        ("advanced", "calibrating", 2),
        ("ended", "calibrating", 2),
    ]


def test_a_phase_that_stops_early_ends_when_the_next_one_starts() -> None:
    recorder = Recorder()
    phases = Phases([recorder])
    phases("1/2 neck", 0, 100)
    phases("1/2 neck", 40, 100)
    phases("2/2 final attention", 0, 100)
    phases.end()
    assert [call for call in recorder.calls if call[0] == "ended"] == [
        ("ended", "1/2 neck", 40),
        ("ended", "2/2 final attention", 0),
    ]


@pytest.mark.parametrize("total", [0, 5])
def test_a_phase_without_work_left_ends_at_once(total: int) -> None:
    recorder = Recorder()
    Phases([recorder])("evaluating", total, total)
    assert recorder.calls == [("started", "evaluating", total), ("ended", "evaluating", total)]


def test_the_same_phase_may_run_again() -> None:
    recorder = Recorder()
    phases = Phases([recorder])
    for _ in range(2):
        phases("calibrating", 0, 1)
        phases("calibrating", 1, 1)
    assert [name for name, _, _ in recorder.calls] == ["started", "advanced", "ended"] * 2


def test_work_before_the_first_step_does_not_make_the_others_seem_slow(clock: Clock) -> None:
    phase = Phase("1/9 encoder stage 1", "steps", 0, 100)
    assert phase.left() is None
    clock.wait(60)  # capturing
    phase.advance(1, 100, "")
    assert phase.left() == pytest.approx(60 * 99)  # nothing better is known
    assert phase.seconds_per_step() is None
    clock.wait(2)
    phase.advance(2, 100, "")
    assert phase.left() == pytest.approx(2 * 98)
    assert phase.seconds_per_step() == pytest.approx(2)
    assert phase.elapsed() == pytest.approx(62)


def test_images_that_an_earlier_run_scored_do_not_make_the_others_seem_fast(clock: Clock) -> None:
    phase = Phase("evaluating", "images", 90, 100)
    clock.wait(5)
    phase.advance(91, 100, "")
    assert phase.left() == pytest.approx(5 * 9)


def test_the_unit_of_one_step_is_in_the_singular() -> None:
    assert Phase("x", "images", 0, 1).total_text() == "1 image"
    assert Phase("x", "images", 0, 2).total_text() == "2 images"
