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
    *("torchvision", "segment_anything", "typer", "rich", "saqsam.cli", "matplotlib"),
    *("onnx", "onnxruntime", "openvino", "executorch"),
)


PRINT_MODULES = "import json, sys; json.dump(sorted(sys.modules), sys.stdout)"


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


LAYERS = (
    ("quant", "utils"),
    ("data", "models"),
    ("recipes",),
    ("convert",),
    ("checkpoint", "inference"),
    ("analysis", "evaluation", "export", "ptq"),
    ("allocation", "runtimes", "viz"),
    ("report", "segmentation", "verification"),
    ("bulk", "serve"),
    ("cli",),
)
"""Folders from the lowest up: a module imports from its own folder and from lower layers."""
ROOT_MODULES = {"saqsam", "saqsam.__main__", "saqsam._version"}


def layer_of(name: str) -> int:
    folder = name.split(".")[1]
    return next(number for number, folders in enumerate(LAYERS) if folder in folders)


def test_the_walk_finds_what_is_known_to_be_there() -> None:
    assert "saqsam.quant.packing" in at_import("saqsam.quant.layers")
    assert "saqsam.checkpoint" in at_any_time("saqsam.models.loading") - at_import("saqsam.models.loading")
    assert "saqsam.convert.plan" in at_import("saqsam.convert.prepare")
    for name in MODULES:
        assert at_any_time(name) <= set(MODULES), f"{name} imports what is not there"


def test_the_root_holds_the_public_api_alone() -> None:
    folders = {folder for layer in LAYERS for folder in layer}
    assert {name for name in MODULES if name.count(".") == 1} == {
        *(f"saqsam.{folder}" for folder in folders),
        *(ROOT_MODULES - {"saqsam"}),
    }


def test_imports_point_down() -> None:
    upward = []
    for name in sorted(set(MODULES) - ROOT_MODULES):
        for other in sorted(at_any_time(name) - ROOT_MODULES):
            same_folder = name.split(".")[1] == other.split(".")[1]
            # A folder may turn out to hold a packed checkpoint: only then is that imported.
            loads_packed = name == "saqsam.models.loading" and other == "saqsam.checkpoint"
            if not (same_folder or layer_of(other) < layer_of(name) or loads_packed):
                upward.append(f"{name} imports {other}")
    assert not upward


def test_quant_knows_no_model() -> None:
    for name in inside("saqsam.quant"):
        assert all(is_within(other, "saqsam.quant") for other in at_any_time(name)), name
        assert "transformers" not in MODULES[name].read_text(encoding="utf-8").replace("transformers'", ""), (
            name
        )


def test_only_the_command_line_imports_its_libraries() -> None:
    for name in set(MODULES) - set(inside("saqsam.cli")) - {"saqsam.__main__"}:
        assert not re.search(r"^\s*(import|from) (typer|rich)\b", MODULES[name].read_text("utf-8"), re.M), (
            name
        )


def test_nobody_inside_imports_the_public_api() -> None:
    for name in MODULES:
        assert "saqsam" not in at_any_time(name) or name.startswith("saqsam.cli"), name


def test_imports_have_no_cycle() -> None:
    # A package stands for its own file; the modules inside refer to each other directly.
    graphlib.TopologicalSorter({name: at_import(name) for name in MODULES}).prepare()


def test_modules_say_what_they_are_for() -> None:
    for name in MODULES:
        assert ast.get_docstring(tree_of(name)), f"{name} has no docstring"


def modules_after(statements: str) -> list[str]:
    """Names of the modules that a new process has imported after some statements; it must print nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:saqsam", "-c", f"{statements}\n{PRINT_MODULES}"],
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_importing_saqsam_imports_no_torch() -> None:
    modules = modules_after("import saqsam")
    assert not [name for name in modules if is_within(name, "torch", "transformers", "numpy", *NOT_AT_IMPORT)]


@pytest.mark.slow
def test_the_library_imports_nothing_it_may_not_need() -> None:
    modules = modules_after("import saqsam; saqsam.quantize; saqsam.evaluate; saqsam.load")
    assert "saqsam.checkpoint" in modules
    assert not [name for name in modules if is_within(name, *NOT_AT_IMPORT)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "statements",
    ["import saqsam; from transformers import SamModel", "from transformers import SamModel; import saqsam"],
)
def test_checkpoints_are_known_to_transformers(statements: str) -> None:
    check = (
        "from transformers.quantizers.auto import AutoQuantizationConfig as auto; from saqsam import CheckpointError\n"
        "try: auto.from_dict({'quant_method': 'saqsam'})\n"
        "except CheckpointError: import saqsam.checkpoint.hf_quantizer"
    )
    assert "saqsam.checkpoint.config" in modules_after(f"{statements}\n{check}")


FIRST_IMPORTS = (
    *("saqsam.load", "saqsam.recipe_for", "saqsam.Predictor", "saqsam.evaluate", "saqsam.export_model"),
    "import saqsam.checkpoint.config",
    "from saqsam.models import load",
    "from saqsam.models.registry import family_of",
    "from saqsam.checkpoint import load_checkpoint",
    "from saqsam.convert.plan import plan_quantization",
)
FORKS = """
import os, sys
import torch  # once for all
for statement in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        import saqsam
        exec(statement)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(statement)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_any_part_can_be_imported_first() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    command = [sys.executable, "-c", FORKS, *FIRST_IMPORTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_the_public_api_is_what_it_says() -> None:
    assert len(set(saqsam.__all__)) == len(saqsam.__all__)
    for name in saqsam.__all__:
        assert getattr(saqsam, name) is not None
