"""Imports point one way, and `import saqsam` stays lean."""

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "saqsam"


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, as dotted names."""
    package = ("saqsam", *path.relative_to(SOURCE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            found.add(".".join(filter(None, (base, node.module))))
    return {name for name in found if name.split(".")[0] == "saqsam"}


def test_leaf_folders_import_nothing_of_the_rest() -> None:
    allowed = {
        "quant": ("saqsam.quant",),
        "models": ("saqsam.quant", "saqsam.models", "saqsam.checkpoint"),
        "data": ("saqsam.data",),
    }
    for folder, prefixes in allowed.items():
        for path in (SOURCE / folder).rglob("*.py"):
            for name in imported(path):
                assert name.startswith(prefixes), f"{path.relative_to(SOURCE)} imports {name}"


def test_nothing_imports_the_command_line() -> None:
    for path in SOURCE.rglob("*.py"):
        if path.name not in ("cli.py", "__main__.py"):
            assert "saqsam.cli" not in imported(path), path


def test_import_is_lean() -> None:
    script = "import sys, saqsam; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torchvision", "matplotlib", "typer", "segment_anything"]
    done = subprocess.run([sys.executable, "-c", script, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
