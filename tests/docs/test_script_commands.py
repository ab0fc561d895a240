"""The commands that benchmarks and training document parse, and the tables of their pages name every script."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from support.docs_pages import ROOT
from support.script_commands import script_commands
from support.script_modules import scripts

BENCHMARKS, TRAINING = ROOT / "benchmarks", ROOT / "training"
WITHOUT_PARSER = {"latency_models", "other_tools", "plot", "hold_back"}
"""Scripts that others start, or that read arguments without a parser."""
TO_PTQ = {"methods", "bit_budget"}
"""Scripts that pass options on to `ptq.py`."""


def texts(folder: Path) -> Iterator[tuple[str, str]]:
    """Pages of a folder, and the docstrings of its scripts."""
    for page in folder.glob("*.md"):
        yield page.name, page.read_text(encoding="utf-8")
    for script in folder.glob("*.py"):
        yield script.name, script.read_text(encoding="utf-8").split('"""')[1]


def commands(folder: Path) -> list[tuple[str, str, list[str]]]:
    return [
        (where, name, arguments)
        for where, text in texts(folder)
        for name, arguments in script_commands(text, folder.name)
        if name not in WITHOUT_PARSER
    ]


def parse(modules: dict[str, ModuleType], name: str, arguments: list[str]) -> argparse.Namespace:
    if name in TO_PTQ:
        options, others = modules[name].parser().parse_known_args(arguments)
        modules["options"].parse_arguments(others)
        return options
    if hasattr(modules[name], "parse_arguments"):
        return modules[name].parse_arguments(arguments)
    return modules[name].parser().parse_args(arguments)


def expanded(arguments: list[str], before: list[str]) -> list[str]:
    """Arguments where `...` is the value of an option, or stands for those of the command before."""
    whole: list[str] = []
    for one in arguments:
        if one == "...":
            whole += ["value"] if whole and whole[-1].startswith("--") else before
        else:
            whole.append(one)
    return whole


@pytest.mark.parametrize(("folder", "count"), [(BENCHMARKS, 60), (TRAINING, 20)])
def test_commands_parse(folder: Path, count: int) -> None:
    documented = commands(folder)
    assert len(documented) > count
    wrong, before = [], []
    names = {name for _, name, _ in documented}
    with scripts(folder.name, sorted({*names, "options"} if TO_PTQ & names else names)) as modules:
        for where, name, arguments in documented:
            before = expanded(arguments, before)
            try:
                parse(modules, name, before)
            except SystemExit:
                wrong.append(f"{where}: {name}.py {' '.join(arguments)}")
    assert not wrong


def test_a_wrong_command_does_not_parse(capsys: pytest.CaptureFixture[str]) -> None:
    page = 'X="--limit 2"\n    python benchmarks/tasks.py $X \\\n        --bits w4a4  # fewer\n'
    ((name, arguments),) = script_commands(page, "benchmarks")
    assert (name, arguments) == ("tasks", ["--limit", "2", "--bits", "w4a4"])
    with scripts("benchmarks", ["tasks"]) as modules, pytest.raises(SystemExit):
        parse(modules, name, arguments)
    assert "--limit" in capsys.readouterr().err


@pytest.mark.parametrize("folder", [BENCHMARKS, TRAINING])
def test_every_script_is_in_the_table(folder: Path) -> None:
    table = (folder / "README.md").read_text(encoding="utf-8")
    assert not [script.name for script in folder.glob("*.py") if f"`{script.name}`" not in table]
