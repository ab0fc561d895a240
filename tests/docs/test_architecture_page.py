"""The architecture page shows the folders, layers and imports that the sources have."""

import re

import pytest

import test_architecture as architecture
from support import docs_pages

PAGE = docs_pages.ROOT / "docs" / "explanation" / "architecture.md"
ALLOWED_UPWARD = ("models", "checkpoint")
"""Import that the page explains instead of drawing."""


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def folders() -> list[str]:
    return [folder for layer in architecture.LAYERS for folder in layer]


def imports_of_folders() -> dict[str, set[str]]:
    imports: dict[str, set[str]] = {folder: set() for folder in folders()}
    for name in set(architecture.MODULES) - architecture.ROOT_MODULES:
        for other in architecture.at_any_time(name) - architecture.ROOT_MODULES:
            pair = (name.split(".")[1], other.split(".")[1])
            if pair[0] != pair[1] and pair != ALLOWED_UPWARD:
                imports[pair[0]].add(pair[1])
    return imports


def reachable(folder: str, imports: dict[str, set[str]]) -> set[str]:
    return set().union(*({other} | reachable(other, imports) for other in imports[folder]))


def test_the_tree_lists_every_folder_once(page: str) -> None:
    tree = page.partition("```text\nsrc/saqsam/\n")[2].partition("```")[0]
    assert sorted(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)) == sorted(folders())


def test_the_layers_are_those_of_the_test(page: str) -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)
    assert {int(number): re.findall(r"`(\w+)`", cell) for number, cell in rows} == {
        number: list(layer) for number, layer in enumerate(architecture.LAYERS, 1)
    }


def test_the_graph_is_drawn_from_the_imports(page: str) -> None:
    imports = imports_of_folders()
    expected = {
        (folder, other)
        for folder, others in imports.items()
        for other in others
        if not any(other in reachable(between, imports) for between in others - {other})
    }
    drawn = re.findall(r"^  (\w+) --> (\w+)$", page, re.MULTILINE)
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == expected, "\n".join(f"  {a} --> {b}" for a, b in sorted(expected))
