"""Command lines of the repository's scripts, as pages and docstrings show them."""

import re
import shlex
from collections.abc import Iterator

_ASSIGNMENT = re.compile(r'^(\w+)="([^"]*)"$')


def script_commands(text: str, folder: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the arguments of each `python FOLDER/NAME.py` in indented or fenced lines of a text.

    Shell variables that a page sets before are replaced. `...` stays as it is.
    """
    variables: dict[str, str] = {}
    joined = re.sub(r"\\\\?\n\s*", " ", text)
    for line in map(str.strip, joined.splitlines()):
        if assigned := _ASSIGNMENT.match(line):
            variables[assigned[1]] = assigned[2]
        found = re.match(rf"(?:timeout \d+ )?[\w./-]*python {folder}/(\w+)\.py(?: (.*))?$", line)
        if found:
            arguments = re.sub(r"\$(\w+)", lambda name: variables[name[1]], found[2] or "")
            yield found[1], shlex.split(arguments, comments=True)
