"""Imports point one way, and importing the package stays cheap. Read from the syntax trees."""

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import saqsam

ROOT = Path(saqsam.__file__).parent
# Third parties that the library does without, or that only the command line, the plots and exports need.
NOT_AT_IMPORT = (
    *("torchvision", "segment_anything", "typer", "rich", "saqsam_cli", "matplotlib"),
    *("onnx", "onnxruntime", "openvino", "executorch"),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(name: str, tree: ast.AST) -> Iterator[str]:
    """Modules of saqsam that the import statements within `tree`, of the module `name`, refer to."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            # `from package import module` imports the module; `from module import name` the module alone.
            candidates = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names
            ]
        else:
            continue
        yield from (candidate for candidate in candidates if candidate.split(".")[0] == "saqsam")


def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def at_import(name: str) -> set[str]:
    """What a module imports of saqsam when it is imported: not what its functions import when called."""
    tree = tree_of(name)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [ast.Pass()]
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return set(imported(name, tree)) - {name}


def at_any_time(name: str) -> set[str]:
    return set(imported(name, tree_of(name))) - {name}


def inside(package: str) -> list[str]:
    return [name for name in MODULES if name == package or name.startswith(package + ".")]


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_the_walk_finds_what_is_known_to_be_there() -> None:
    assert "saqsam.quant.packing" in at_import("saqsam.quant.layers")  # a relative import
    assert "saqsam.checkpoint" in at_any_time("saqsam.models.loading") - at_import("saqsam.models.loading")
    assert "saqsam.prepare" in at_import("saqsam.quantize")
    for name in MODULES:
        assert at_any_time(name) <= set(MODULES), f"{name} imports what is not there"


@pytest.mark.parametrize("name", inside("saqsam.utils"))
def test_utils_are_a_leaf(name: str) -> None:
    assert all(is_within(other, "saqsam.utils") for other in at_any_time(name))


@pytest.mark.parametrize("name", inside("saqsam.quant"))
def test_quant_is_a_leaf(name: str) -> None:
    assert all(is_within(other, "saqsam.quant") for other in at_any_time(name))
    assert "transformers" not in MODULES[name].read_text(encoding="utf-8").replace("transformers'", "")


@pytest.mark.parametrize("name", inside("saqsam.models"))
def test_models_know_of_quant_alone(name: str) -> None:
    assert all(is_within(other, "saqsam.models", "saqsam.quant", "saqsam.utils") for other in at_import(name))
    # A folder may turn out to hold a packed checkpoint: only then is that imported.
    allowed = ("saqsam.models", "saqsam.quant", "saqsam.utils", "saqsam.checkpoint")
    assert all(is_within(other, *allowed) for other in at_any_time(name))


@pytest.mark.parametrize("name", inside("saqsam.data"))
def test_data_knows_of_no_model(name: str) -> None:
    assert all(is_within(other, "saqsam.data", "saqsam.utils") for other in at_any_time(name))


@pytest.mark.parametrize("name", ["saqsam.recipe", "saqsam.presets", "saqsam.prepare", "saqsam.checkpoint"])
def test_recipes_and_checkpoints_know_of_no_data(name: str) -> None:
    assert not any(is_within(other, "saqsam.data", "saqsam.evaluate") for other in at_any_time(name))


@pytest.mark.parametrize("name", [name for name in MODULES if name != "saqsam.__main__"])
def test_the_library_knows_nothing_of_the_command_line(name: str) -> None:
    source = MODULES[name].read_text(encoding="utf-8")
    assert not re.search(r"\b(saqsam_cli|typer|rich)\b", source)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "saqsam.__main__"])
def test_nobody_inside_imports_the_public_api(name: str) -> None:
    assert "saqsam" not in at_any_time(name)


def test_imports_have_no_cycle() -> None:
    # A package stands for its own file; the modules inside refer to each other directly.
    graphlib.TopologicalSorter({name: at_import(name) for name in MODULES}).prepare()


def test_modules_say_what_they_are_for() -> None:
    for name in MODULES:
        assert ast.get_docstring(tree_of(name)), f"{name} has no docstring"


def test_importing_saqsam_imports_nothing_it_may_not_need() -> None:
    script = "import json, sys, saqsam; json.dump(sorted(sys.modules), sys.stdout)"
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:saqsam", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    modules = json.loads(done.stdout)
    assert "saqsam.checkpoint" in modules  # which registers the format with transformers
    assert not [name for name in modules if is_within(name, *NOT_AT_IMPORT)]
    assert not done.stderr


def test_the_public_api_is_what_it_says() -> None:
    assert len(set(saqsam.__all__)) == len(saqsam.__all__)
    for name in saqsam.__all__:
        assert getattr(saqsam, name) is not None
