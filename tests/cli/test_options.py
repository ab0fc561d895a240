"""The command line's choices, help and checks come from the registries, without importing torch."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from saqsam.cli import options
from saqsam.cli.app import COMMANDS, create_app
from saqsam.cli.option_groups import TaskOptions, expand_groups, option_name
from saqsam.data.open import SCENES
from saqsam.evaluation.registry import TASKS, task_options
from saqsam.export.formats import FORMATS
from saqsam.recipes.catalog import AUTO_EFFORT, EFFORTS
from saqsam.recipes.methods import METHODS
from saqsam.runtimes.registry import RUNTIMES
from support.command_line import assert_refused, run
from support.toy_task import ENTRY


def help_of(command: str, app: typer.Typer | None = None) -> str:
    result = CliRunner().invoke(app or create_app(), [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("evaluate", [*TASKS, *map(option_name, task_options()), *RUNTIMES]),
        ("compare", [*TASKS, *map(option_name, task_options())]),
        ("quantize", [*METHODS, *EFFORTS, AUTO_EFFORT, *FORMATS]),
        ("export", [*FORMATS, *RUNTIMES]),
        ("report", ["--ignore-label", "--prompt", "html", "md", "json"]),
    ],
)
def test_help_lists_the_registries(command: str, names: list[str]) -> None:
    text = help_of(command)
    assert not [name for name in names if name not in text]


def test_a_new_task_is_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Path
) -> None:
    assert_refused(run("evaluate", "--task", "brightness"), "--task: expected one of prompt,", "'brightness'")
    monkeypatch.setitem(TASKS, ENTRY.name, ENTRY)
    app = create_app()
    text = help_of("evaluate", app)
    assert "brightness (mean brightness)" in text
    assert "--factor" in text
    arguments = ["evaluate", str(tiny), "--task", "brightness", "--factor", "2", "--limit", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert "brightness: factor 2.0" in result.stdout
    assert "mean brightness" in result.stdout
    result = CliRunner().invoke(app, ["evaluate", "--factor", "2"])
    assert "--factor: an option of task brightness, which does not run" in result.stderr


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    from support.tiny_sam import tiny_processor, tiny_sam

    tiny_sam().save_pretrained(tmp_path / "tiny")
    tiny_processor().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_options_of_tasks_that_do_not_run_are_refused_before_anything_is_loaded() -> None:
    assert_refused(run("evaluate", "--tile", "512"), "--tile: an option of task oriented, which does not run")
    assert_refused(run("evaluate", "--task", "instance"), "task instance needs --detections (FILE|simulated)")
    assert_refused(run("evaluate", "--prompt", "scribble"), "--prompt: expected box, point or clicks")
    assert_refused(run("report", ".", "--out", "r.md", "--prompt", "x"), "--prompt: expected box")


def test_weight_only_bits_of_another_method_are_refused(tmp_path: Path) -> None:
    result = run("quantize", "--out", tmp_path / "q", "--bits", "w4")
    assert_refused(result, "expected bits wXaY, such as w4a8, got 'w4'", "add --method weight-only")


def test_help_names_the_models_that_a_command_takes() -> None:
    for command in ("quantize", "export", "evaluate"):
        text = " ".join(help_of(command).split())
        assert ("Packed checkpoint, " in text) == (command != "quantize")
        assert ("exported folder, " in text) == (command == "evaluate")


def test_help_of_segment_names_no_tasks() -> None:
    assert "task" not in help_of("segment")
    assert "(tasks everything, semantic)" in help_of("evaluate")


def test_groups_become_single_options() -> None:
    def command(
        path: Annotated[str, typer.Argument()], *, choices: options.ReportOptions, tasks: TaskOptions
    ) -> None:
        seen.append((path, choices, tasks.values))

    seen: list[object] = []
    expanded = expand_groups(command)
    names = list(inspect.signature(expanded).parameters)
    assert names[0] == "path"
    assert "choices" not in names
    assert {"data", "ignore_label", *task_options()} <= set(names)
    values = {p.name: p.default for p in inspect.signature(expanded).parameters.values() if p.name != "path"}
    expanded(path="a", **{**values, "tile": 64, "limit": 3})
    assert seen == [("a", options.ReportOptions(limit=3), {"tile": 64})]


def test_one_name_means_one_thing_in_all_commands() -> None:
    """Options of one name have one placeholder, and options of one Python name one name."""
    metavars: dict[str, set[str | None]] = {}
    flags: dict[str, set[tuple[str, ...]]] = {}
    for command in COMMANDS:
        for parameter in inspect.signature(expand_groups(command)).parameters.values():
            (declared,) = parameter.annotation.__metadata__
            metavars.setdefault(parameter.name, set()).add(declared.metavar)
            flags.setdefault(parameter.name, set()).add(declared.param_decls or ())
    shared = {"format", "detections"}  # of files and of reports; simulated ones too where models are scored
    assert {name for name, seen in metavars.items() if len(seen) > 1} <= shared
    assert {name for name, seen in flags.items() if len(seen) > 1} <= {"detections"}


@pytest.mark.parametrize("command", [command.__name__ for command in COMMANDS])
def test_every_command_takes_the_options_of_logs(command: str) -> None:
    text = help_of(command)
    assert "--quiet" in text
    assert "--log-json" in text


def test_the_default_dataset_is_the_library_s() -> None:
    assert options.SCENES == SCENES


LEAN = "import sys; from saqsam.cli.app import app; assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"


def test_declaring_the_commands_imports_no_torch() -> None:
    subprocess.run([sys.executable, "-c", LEAN], check=True, timeout=60)
