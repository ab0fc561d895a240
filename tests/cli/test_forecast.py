import pytest

from saqsam.cli.forecast import Estimate, Forecast
from saqsam.ptq.unit_costs import UnitCost
from support.clock import Clock

UNITS = [
    UnitCost("1/3 a", steps=10, step=100, capture=1000),
    UnitCost("2/3 b", steps=20, step=50, capture=2000),
    UnitCost("3/3 c", steps=10, step=200, capture=1000),
]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_later_units_take_their_share_of_measured_time(clock: Clock) -> None:
    forecast = Forecast(UNITS)
    forecast.begin("1/3 a")
    clock.wait(10)  # capturing, 0.01 s per unit of cost
    assert forecast.update("1/3 a", 1, None) is None
    clock.wait(4 * 1.0)
    estimate = forecast.update("1/3 a", 4, 1.0)  # learning, as fast
    assert estimate is not None
    assert estimate.seconds == pytest.approx(6 * 1.0 + (20 + 20 * 0.5) + (10 + 10 * 2.0))
    assert estimate.text() == "about 70 s left for 3 units"


def test_estimates_follow_what_is_measured(clock: Clock) -> None:
    forecast = Forecast(UNITS)
    forecast.begin("1/3 a")
    clock.wait(10 + 10 * 1.0)
    forecast.update("1/3 a", 10, 1.0)
    forecast.begin("2/3 b")
    clock.wait(20 + 10 * 1.5)  # steps take three times as long as forecast
    estimate = forecast.update("2/3 b", 10, 1.5)
    assert estimate is not None
    speed = (10 * 1.0 + 10 * 1.5) / (10 * 100 + 10 * 50)
    assert estimate == Estimate(pytest.approx(10 * 1.5 + 10 + 10 * 200 * speed), 2)


def test_units_of_an_earlier_run_are_neither_measured_nor_left(clock: Clock) -> None:
    forecast = Forecast(UNITS)
    clock.wait(100)  # restoring
    forecast.begin("2/3 b")
    clock.wait(20 + 2 * 0.5)
    estimate = forecast.update("2/3 b", 2, 0.5)
    assert estimate == Estimate(pytest.approx(18 * 0.5 + 10 + 10 * 2.0), 2)


def test_there_is_no_estimate_for_other_phases_and_for_the_last_unit(clock: Clock) -> None:
    forecast = Forecast(UNITS)
    forecast.begin("calibrating")
    assert forecast.update("calibrating", 5, 1.0) is None
    forecast.begin("3/3 c")
    clock.wait(5)
    assert forecast.update("3/3 c", 5, 1.0) is None
