"""The generated reference pages hold every command, option and public name."""

import types
from collections.abc import Iterator

import pytest
import typer

import saqsam
from saqsam.cli.app import app
from support.script_modules import scripts


@pytest.fixture(scope="module")
def reference() -> Iterator[types.ModuleType]:
    with scripts("docs", ["build_reference"]) as modules:
        yield modules["build_reference"]


def test_the_cli_page_lists_every_option_with_its_default(reference: types.ModuleType) -> None:
    page = reference.cli_page()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        section = page.partition(f"## saqsam {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            shown = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
            assert f"| `{shown}" in section, f"{name} {shown}"
    assert "| `--seed N` | " in page
    assert page.partition("| `--seed N` | ")[2].partition("\n")[0].endswith("| `0` |")
    assert "saqsam quantize [MODEL] --out DIR [OPTIONS]" in page


def test_the_root_page_has_every_public_name(reference: types.ModuleType) -> None:
    page = reference.root_page()
    for name in saqsam.__all__:
        assert (f"::: saqsam.{name}\n" in page) == (not name.startswith("__")), name


def test_every_package_but_the_command_line_has_a_page(reference: types.ModuleType) -> None:
    names = reference.packages()
    assert {"data", "evaluation", "models", "ptq"} <= set(names)
    assert "cli" not in names
    for name in names:
        assert "\n::: saqsam." in reference.package_page(name), name


def test_interfaces_that_the_guides_build_on_are_listed(reference: types.ModuleType) -> None:
    assert "::: saqsam.models.family\n" in reference.package_page("models")
    for package, modules in reference.INTERFACES.items():
        assert reference.public_names(reference.PACKAGE / package / "__init__.py")
        for module in modules:
            assert (reference.PACKAGE / package / f"{module}.py").is_file()
            assert f"\n::: saqsam.{package}.{module}\n" in reference.package_page(package)


def test_the_navigation_entry_of_the_api_becomes_one_page_per_package(reference: types.ModuleType) -> None:
    nav = [{"Reference": [{"Python API": "reference/api/"}]}, {"Home": "index.md"}]
    pages = ["reference/api/index.md"]
    assert reference._with_pages(nav, pages) == [{"Reference": [{"Python API": pages}]}, {"Home": "index.md"}]
