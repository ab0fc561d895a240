import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from saqsam.cli import reporting, terminal
from saqsam.cli.reporting import EventLog


def events_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_events_are_lines_with_their_time_and_are_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = EventLog(str(path), print)
    log.write("start", {"command": "quantize"})
    (event,) = events_of(path.read_text())
    assert list(event) == ["time", "event", "command"]
    assert abs(datetime.fromisoformat(str(event["time"])) - datetime.now(UTC)).total_seconds() < 60
    log.close()


def test_an_old_log_is_kept(tmp_path: Path) -> None:
    for number in range(2):
        log = EventLog(str(tmp_path / "log.jsonl"), print)
        log.write("start", {"note": f"run {number} \udcff\n"})
        log.close()
    events = events_of((tmp_path / "log.jsonl").read_text())
    assert [event["note"] for event in events] == ["run 0 \udcff\n", "run 1 \udcff\n"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_ends_the_log_with_one_message() -> None:
    complaints: list[str] = []
    log = EventLog("/dev/full", complaints.append)
    for _ in range(3):
        log.write("progress", {})
    log.close()
    assert complaints == ["--log-json /dev/full: No space left on device; the log ends here"]


def test_standard_error_takes_events_instead_of_messages(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting.reporting() as current:
        current.log = EventLog("-", print)
        terminal.warn("an odd image")
        terminal.inform("effort: quick")
        terminal.say("report: q/report.html")
        table = terminal.result_table("model", "mean IoU", right=1)
        table.add_row("float", "0.75")
        terminal.print_table(table)
    written = capsys.readouterr()
    assert [(e["event"], e.get("note", e.get("table"))) for e in events_of(written.err)] == [
        ("warning", "an odd image"),
        ("info", "effort: quick"),
        ("result", "report: q/report.html"),
        ("result", [["model", "mean IoU"], ["float", "0.75"]]),
    ]
    assert "report: q/report.html" in written.out
    assert "0.75" in written.out


def test_settings_end_with_the_command(tmp_path: Path) -> None:
    with reporting.reporting() as current:
        current.quiet = True
        current.log = EventLog(str(tmp_path / "log"), print)
    assert reporting.current().shows_progress
    assert reporting.current().log is None
    reporting.emit("result", note="nobody listens")
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize(
    ("processes", "rank", "is_first"), [("2", "1", False), ("2", "0", True), ("1", "1", True)]
)
def test_a_rank_counts_among_several_processes_alone(
    monkeypatch: pytest.MonkeyPatch, processes: str, rank: str, is_first: bool
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setenv("RANK", rank)
    assert reporting.Reporting().is_first == is_first
