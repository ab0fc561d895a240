"""Generate the reference pages of the documentation site; a hook of MkDocs.

The command-line reference comes from the Typer application and the API reference from the sources, which mkdocstrings
reads without importing them. Neither imports torch, so the site builds in seconds.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "saqsam"
CLI_PAGE = "reference/cli.md"
API_FOLDER = "reference/api"
API_ENTRY = "reference/api/"
PRIVATE = ("cli",)
"""Packages that are not part of the Python API."""
INTERFACES = {
    "evaluation": ("compare", "subject", "registry", "task", "record_schema"),
    "export": ("formats",),
    "models": ("family", "structure", "registry", "parts"),
    "runtimes": ("registry", "loading"),
}
"""Modules of packages with exported names that the guides build on, beside those names."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace the navigation entry of the API reference with one entry per package."""
    pages = [
        f"{API_FOLDER}/index.md",
        *({f"saqsam.{name}": f"{API_FOLDER}/{name}.md"} for name in packages()),
    ]
    config.nav = _with_pages(config.nav, pages)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    pages = {CLI_PAGE: cli_page(), f"{API_FOLDER}/index.md": root_page()}
    pages |= {f"{API_FOLDER}/{name}.md": package_page(name) for name in packages()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def _with_pages(node: Any, pages: list[Any]) -> Any:
    """Return a navigation tree in which `API_ENTRY` is replaced by a list of pages."""
    if isinstance(node, list):
        return [_with_pages(item, pages) for item in node]
    if isinstance(node, dict):
        return {title: _with_pages(value, pages) for title, value in node.items()}
    return pages if node == API_ENTRY else node


def cli_page() -> str:
    """Render the reference of every command: usage, description, arguments and options."""
    if str(ROOT / "src") not in sys.path:
        sys.path.insert(0, str(ROOT / "src"))
    import typer

    from saqsam.cli.app import app

    group = typer.main.get_command(app)
    blocks = [
        "# Command line",
        "Every command of `saqsam`, generated from the program itself. "
        "[Conventions](cli-conventions.md) explains what all commands share: outputs, resuming, exit codes and logs.",
    ]
    for name, command in group.commands.items():
        blocks += [f"## saqsam {name}", *_paragraphs(command.help), f"```text\n{_usage(name, command)}\n```"]
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        if arguments:
            blocks.append(_table("argument", arguments))
        blocks.append(_table("option", options))
    return "\n\n".join(blocks) + "\n"


def _usage(name: str, command: Any) -> str:
    """Return the usage line of a command: arguments and required options spelled out."""
    words = ["saqsam", name]
    for parameter in command.params:
        shown = parameter.metavar or parameter.name.upper()
        if parameter.param_type_name == "argument":
            shown += "..." if parameter.nargs == -1 else ""
            words.append(shown if parameter.required else f"[{shown}]")
        elif parameter.required:
            words.append(f"{parameter.opts[0]} {shown}")
    return " ".join([*words, "[OPTIONS]"])


def _paragraphs(text: str | None) -> list[str]:
    """Return the paragraphs of a help text, each on one line."""
    return [" ".join(part.split()) for part in (text or "").split("\n\n")]


def _table(kind: str, parameters: list[Any]) -> str:
    """Render a Markdown table of arguments or options."""
    lines = [f"| {kind} | description | default |", "| --- | --- | --- |"]
    for parameter in parameters:
        names = [parameter.metavar] if kind == "argument" else list(parameter.opts)
        names = [
            f"`{name}`" if kind == "argument" or not parameter.metavar else f"`{name} {parameter.metavar}`"
            for name in names
        ]
        # Pipes in code do not end a cell; elsewhere they would.
        description = " ".join((parameter.help or "").split()).replace("|", "\\|")
        lines.append(f"| {', '.join(names)} | {description} | {_default(parameter)} |")
    return "\n".join(lines)


def _default(parameter: Any) -> str:
    """Return the default of a parameter as the help shows it."""
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.required:
        return "required"
    if parameter.default is None or parameter.default is False:
        return ""
    return f"`{parameter.default}`"


def packages() -> list[str]:
    """Return the names of the public packages, sorted."""
    folders = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    return [name for name in folders if name not in PRIVATE and not name.startswith("_")]


def root_page() -> str:
    """Render the page of the names that `import saqsam` offers."""
    names = [name for name in public_names(PACKAGE / "__init__.py") if not name.startswith("__")]
    blocks = [
        "# Python API",
        "The names that `import saqsam` offers. They are imported lazily: `import saqsam` alone imports no torch. "
        "Names that are not listed here or on the pages of the packages may change without notice.",
        *(f"::: saqsam.{name}" for name in names),
    ]
    return "\n\n".join(blocks) + "\n"


def package_page(name: str) -> str:
    """Render the page of a package: the names that it exports, or those of its modules if it exports none."""
    folder = PACKAGE / name
    names = public_names(folder / "__init__.py")
    title = f"# saqsam.{name}"
    introduction = _paragraphs(ast.get_docstring(_tree(folder / "__init__.py")))
    options = "    options:\n      show_root_full_path: true\n      show_if_no_docstring: false"
    if names:
        blocks = [title, *introduction, *(f"::: saqsam.{name}.{n}" for n in names)]
        blocks += [f"::: saqsam.{name}.{module}\n{options}" for module in INTERFACES.get(name, ())]
        return "\n\n".join(blocks) + "\n"
    modules = sorted(
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if path.stem != "__init__" and not path.stem.startswith("_")
    )
    return "\n\n".join([title, *introduction, *(f"::: {module}\n{options}" for module in modules)]) + "\n"


def public_names(path: Path) -> list[str]:
    """Return the entries of a module's `__all__`, read without importing it; empty if it has none."""
    for node in _tree(path).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def _tree(path: Path) -> ast.Module:
    """Parse a source file."""
    return ast.parse(path.read_text(encoding="utf-8"))
