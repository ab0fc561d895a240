"""The command line, for tests: running it, and what it must look like when it is done or refuses."""

from pathlib import Path

from typer.testing import CliRunner, Result

from saqsam.cli import app


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app.app, [str(argument) for argument in arguments], prog_name="saqsam")


def assert_done(result: Result) -> None:
    assert result.exit_code == 0, result.stderr
    assert "error" not in result.stderr


def assert_refused(result: Result, *words: str) -> None:
    """Exit code 2, and one line on standard error that holds `words`."""
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[-1]
