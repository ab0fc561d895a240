"""The pages of the documentation, taken apart for tests: Python blocks, command lines, names and paths."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = tuple(
    sorted(
        path
        for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "examples" / "README.md")
        if path.name != "CHANGELOG.md"
    )
)

_FENCE = re.compile(r"^([ ]*)```(\w*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_COMPILED_ONLY = re.compile(r"<!-- compiled only: .+? -->\s*\Z")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        language: The word after the fence; empty for none.
        text: The code, without common indentation.
        line: Line of the page where the code starts.
        runs: Whether the block is executed; false after `<!-- compiled only: REASON -->`.
    """

    language: str
    text: str
    line: int
    runs: bool


def blocks(page: str) -> Iterator[Block]:
    """Yield the code blocks of a page in order."""
    for fence in _FENCE.finditer(page):
        before = page[: fence.start()]
        yield Block(
            language=fence[2],
            text=textwrap.dedent(fence[3]),
            line=before.count("\n") + 2,
            runs=_COMPILED_ONLY.search(before) is None,
        )


def command_lines(page: str) -> Iterator[list[str]]:
    """Yield the arguments of each `saqsam` command in blocks and in inline code, without the word `saqsam`."""
    lines = [
        line.strip()
        for block in blocks(page)
        if block.language != "python"
        for line in block.text.splitlines()
    ]
    prose = _FENCE.sub("", _COMMENT.sub("", page))
    lines += re.findall(r"^    (saqsam .+)$", prose, re.MULTILINE)
    lines += re.findall(r"`(saqsam [a-z]+ [^`]*--[^`]*)`", prose)
    for line in lines:
        if line.startswith("torchrun "):
            line = line[line.index("saqsam ") :] if " -m saqsam " in line else ""
        if line.startswith("saqsam "):
            yield shlex.split(line, comments=True)[1:]


def option_names(page: str) -> set[str]:
    """Return the long options that prose mentions in inline code, such as `--data`."""
    return set(re.findall(r"`(--[a-z][a-z-]+)", _FENCE.sub("", page)))


def dotted_names(page: str) -> set[str]:
    """Return the names below `saqsam` that a page mentions, such as `saqsam.evaluation.compare`."""
    return set(re.findall(r"(?<![\w./-])saqsam(?:\.[A-Za-z_]\w*)+", page))


def repository_paths(page: str) -> set[str]:
    """Return the files and folders of the repository that a page mentions in inline code or links."""
    folders = "benchmarks|docs|examples|src|tests|training"
    return set(re.findall(rf"(?<![\w./-])(?:{folders})/[\w./-]*\w", page))


def links(page: str) -> set[str]:
    """Return the relative link targets of a page, without anchors."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page))
    return {target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)}
