"""What the documentation shows works: Python blocks run, command lines parse, and names, files and links exist."""

import importlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

import saqsam
from saqsam.checkpoint import save_checkpoint
from saqsam.cli.app import app
from saqsam.export import export_model
from saqsam.recipes import presets
from saqsam.recipes.deployment import deployable
from saqsam.recipes.specs import Calibration
from support import docs_pages
from support.tiny_quantized import quantize_tiny, quantized_tiny, tiny_recipe
from support.tiny_sam import tiny_processor

GENERATED = {"docs/reference/cli.md", "docs/reference/api"}
FOREIGN_OPTIONS = {"--nproc-per-node", "--help"}
"""Options that pages mention of other programs."""


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return str(page.relative_to(docs_pages.ROOT))


def python_pages() -> list[Path]:
    return [
        page
        for page in docs_pages.PAGES
        if any(block.language == "python" for block in docs_pages.blocks(text_of(page)))
    ]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that pages refer to, made of the tiny SAM."""
    folder = tmp_path_factory.mktemp("workplace")
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg")
    (folder / "my_photos").mkdir()
    for number in range(32):
        Image.fromarray(np.roll(pixels[:60, :80], number, axis=1)).save(
            folder / "my_photos" / f"{number}.png"
        )
    save_checkpoint(quantized_tiny("mse"), tiny_processor(), folder / "sam-w4")
    deployed = quantize_tiny(deployable(tiny_recipe("mse", "w8a8")))
    save_checkpoint(deployed, tiny_processor(), folder / "sam-w8")
    for format in ("onnx", "openvino"):
        export_model(deployed, tiny_processor(), folder / f"sam-w8-{format}", format=format)
    return folder


@pytest.fixture
def tiny_models(
    workplace: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Make pages work on the tiny SAM and with a few learning steps; return the names that blocks may use."""
    load = saqsam.load

    def load_tiny(model: str | Path, *arguments: Any, **options: Any) -> Any:
        return load(tiny if model in ("sam-mini", "facebook/sam-vit-base") else model, *arguments, **options)

    recipe_for = saqsam.recipe_for

    def quick_recipe(*arguments: Any, **options: Any) -> saqsam.Recipe:
        return replace(recipe_for(*arguments, **options), calibration=Calibration(images=2, prompts=4))

    monkeypatch.setattr(saqsam, "load", load_tiny)
    monkeypatch.setattr(saqsam, "recipe_for", quick_recipe)
    for effort, settings in presets.EFFORTS.items():
        monkeypatch.setitem(presets.EFFORTS, effort, {**settings, "steps": 1, "final_steps": 1})
    for path in workplace.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return {"image": np.asarray(Image.open("photo.jpg"))}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", python_pages(), ids=name_of)
def test_python_blocks_run(page: Path, tiny_models: dict[str, Any]) -> None:
    namespace = dict(tiny_models)
    for block in docs_pages.blocks(text_of(page)):
        if block.language != "python":
            continue
        # Tracebacks then show the line of the page.
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        if block.runs:
            if re.search(r'\.save\w*\("sam-w4"', block.text) and Path("sam-w4").is_symlink():
                Path("sam-w4").unlink()  # this page writes what others read
            exec(code, namespace)


def test_a_marked_block_is_only_compiled() -> None:
    page = "<!-- compiled only: needs a GPU -->\n```python\n1 / 0\n```\n\n```python\n1\n```\n"
    assert [block.runs for block in docs_pages.blocks(page)] == [False, True]


def parse(arguments: list[str]) -> None:
    command = typer.main.get_command(app).commands[arguments[0]]  # type: ignore[attr-defined]
    command.make_context(arguments[0], list(arguments[1:]))


def test_command_lines_parse() -> None:
    wrong, count = [], 0
    for page in docs_pages.PAGES:
        for arguments in docs_pages.command_lines(text_of(page)):
            count += 1
            try:
                parse(arguments)
            except Exception as error:
                wrong.append(f"{name_of(page)}: saqsam {' '.join(arguments)}: {error!r}")
    assert not wrong
    assert count > 50


@pytest.mark.parametrize(
    "line", ["evaluate sam-w4 --dta scenes", "export sam-w8", "quantise sam-mini --out x"]
)
def test_a_wrong_command_line_does_not_parse(line: str) -> None:
    (arguments,) = docs_pages.command_lines(f"```\nsaqsam {line}\n```\n")
    with pytest.raises(Exception, match=r"--dta|out_dir|quantise"):
        parse(arguments)


def test_options_that_prose_mentions_exist() -> None:
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    known = {name for command in commands for parameter in command.params for name in parameter.opts}
    for page in docs_pages.PAGES:
        if "benchmarks/" not in text_of(page) or page.name == "README.md":
            unknown = docs_pages.option_names(text_of(page)) - known - FOREIGN_OPTIONS
            assert not unknown, f"{name_of(page)}: {sorted(unknown)}"


def resolve(name: str) -> object:
    """Return what a dotted name means: the longest prefix that is a module, and attributes of it."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


def test_names_that_pages_mention_exist() -> None:
    names: dict[str, str] = {}
    for page in docs_pages.PAGES:
        names |= {name: name_of(page) for name in docs_pages.dotted_names(text_of(page))}
    assert len(names) > 30
    wrong = []
    for name, page_name in sorted(names.items()):
        try:
            resolve(name)
        except AttributeError as error:
            wrong.append(f"{page_name}: {name}: {error}")
    assert not wrong


@pytest.mark.slow
def test_packages_are_reached_from_the_root() -> None:
    # In a fresh process: nothing but `import saqsam` has been imported.
    code = """
import saqsam
saqsam.export.export_model
saqsam.runtimes.load_runtime
saqsam.evaluation.compare.compare
import saqsam.evaluation as e
assert callable(saqsam.evaluate) and saqsam.evaluate is e.evaluate
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_files_that_pages_mention_exist() -> None:
    wrong = [
        f"{name_of(page)}: {path}"
        for page in docs_pages.PAGES
        for path in sorted(docs_pages.repository_paths(text_of(page)))
        if not (docs_pages.ROOT / path).exists() and path not in GENERATED
    ]
    assert not wrong


def test_links_lead_somewhere() -> None:
    wrong = []
    for page in docs_pages.PAGES:
        for target in sorted(docs_pages.links(text_of(page))):
            path = (page.parent / target).resolve()
            name, folder = (str(one.relative_to(docs_pages.ROOT)) for one in (path, path.parent))
            if not path.exists() and not {name, folder} & GENERATED:
                wrong.append(f"{name_of(page)}: {target}")
    assert not wrong


def test_the_citation_has_the_version_of_the_package() -> None:
    assert f"version: {saqsam.__version__}\n" in text_of(docs_pages.ROOT / "CITATION.cff")
