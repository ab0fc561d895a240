"""`--quiet` and `--log-json`, with real commands."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from saqsam.cli.guard import guarded
from saqsam.cli.log_options import with_log_options
from saqsam.cli.terminal import say, warn
from support.command_line import assert_done, assert_refused, run


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def app_of(body: Any) -> typer.Typer:
    """A program of one command that does `body`."""

    def work() -> None:
        body()

    app = typer.Typer()
    app.command()(guarded(with_log_options(work)))
    return app


def test_quiet_leaves_results_alone(packed: Path) -> None:
    shown, quiet = (run("evaluate", packed, "--limit", "1", *more) for more in ((), ("--quiet",)))
    assert_done(quiet)
    assert shown.stderr.startswith("loading ")
    assert "evaluating on scenes: 1 image\nevaluating on scenes: 1 image in " in shown.stderr
    assert quiet.stderr == ""
    assert quiet.stdout == shown.stdout


def test_quiet_keeps_warnings_and_errors(tmp_path: Path) -> None:
    assert_refused(run("inspect", tmp_path / "none", "--quiet"), "no checkpoint folder")
    result = CliRunner().invoke(app_of(lambda: warn("an odd image")), ["--quiet"])
    assert result.stderr == "note: an odd image\n"


def test_a_log_tells_the_whole_command(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    result = run("evaluate", packed, "--limit", "2", "--log-json", path)
    assert_done(result)
    assert "evaluating on scenes" in result.stderr  # beside the log
    events = events_of(path.read_text())
    assert (events[0]["event"], events[0]["command"]) == ("start", "evaluate")
    assert (events[-1]["event"], events[-1]["exit_code"]) == ("end", 0)
    assert events[-1]["elapsed_s"] > 0
    assert [e["phase"] for e in events if e["event"] == "phase_start"] == [
        f"loading {packed}",
        "evaluating on scenes",
    ]
    (end,) = [e for e in events if e["event"] == "phase_end" and e["phase"] == "evaluating on scenes"]
    assert (end["done"], end["total"], end["unit"]) == (2, 2, "images")
    tables = [e["table"] for e in events if "table" in e]
    assert any(row[0] == "mean IoU" for row in tables[0])


def test_a_log_on_standard_error_leaves_nothing_else_there(packed: Path, tmp_path: Path) -> None:
    result = run("evaluate", packed, "--limit", "1", "--log-json", "-")
    assert_done(result)
    assert {"start", "phase_start", "phase_end", "result", "end"} <= {
        event["event"] for event in events_of(result.stderr)
    }
    assert "mean IoU" in result.stdout
    result = run("inspect", tmp_path / "none", "--log-json", "-")
    assert result.exit_code == 2
    assert [(e["event"], e.get("note")) for e in events_of(result.stderr)][1:] == [
        ("error", f"no checkpoint folder {tmp_path / 'none'}"),
        ("end", None),
    ]


def test_interruptions_and_defects_are_logged(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    for body, note, code in (
        (lambda: signal.raise_signal(signal.SIGTERM), "interrupted", 143),
        (fail, "RuntimeError('a defect')", 1),
    ):
        path = tmp_path / f"{code}.jsonl"
        result = CliRunner().invoke(app_of(body), ["--log-json", str(path)])
        assert result.exit_code == code
        _, error, end = events_of(path.read_text())
        assert (error["event"], error["note"]) == ("error", note)
        assert end["exit_code"] == code


def test_a_log_that_cannot_be_opened_is_refused_before_any_work(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "none" / "log.jsonl"
    assert_refused(run("inspect", packed, "--log-json", path), f"{path}: No such file or directory")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_costs_the_log_and_one_message() -> None:
    result = CliRunner().invoke(app_of(lambda: say("done")), ["--log-json", "/dev/full"])
    assert result.exit_code == 0
    assert result.stdout == "done\n"
    assert result.stderr == "note: --log-json /dev/full: No space left on device; the log ends here\n"


def test_further_processes_of_torchrun_keep_no_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    path = tmp_path / "log.jsonl"
    assert CliRunner().invoke(app_of(lambda: say("done")), ["--log-json", str(path)]).exit_code == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("bits", "line"), [("w8a8", "effort: quick (w8a8: "), ("w4a8", "effort: standard (")]
)
def test_the_effort_is_told_with_its_reason(
    bits: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise ValueError("far enough")

    monkeypatch.setattr("saqsam.cli.commands.quantize.check_target", stop)
    result = run("quantize", "sam-mini", "--out", tmp_path / "q", "--method", "saq-sam", "--bits", bits)
    assert result.stderr.startswith(line)
    given = run("quantize", "sam-mini", "--out", tmp_path / "q", "--bits", bits, "--effort", "quick")
    assert given.stderr == "error: far enough\n"
