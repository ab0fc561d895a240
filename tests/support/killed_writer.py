"""Kill a writer between any two of its steps, and say what is on disk then.

`python killed_writer.py CASE FOLDER` forks a child for each line of code that the case executes in the modules that
write files, kills it there, and prints one JSON object per child: what was under the final name, what was left beside
it, and what was there after a second, undisturbed write.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from saqsam.utils import atomic_write as output
from saqsam.utils import locks, replace

FILES = {module.__file__ for module in (output, replace, locks)}


def write_file(folder: Path, content: str) -> None:
    output.write_atomic(folder / "out", content.encode() * 1000)


def write_folder(folder: Path, content: str) -> None:
    with output.atomic_folder(folder / "out") as partial:
        for name in ("a", "b"):
            (partial / name).write_text(content * 1000)


def write_folder_without_swap(folder: Path, content: str) -> None:
    replace._swap = lambda *_: False
    write_folder(folder, content)


CASES: dict[str, Callable[[Path, str], None]] = {
    "file": write_file,
    "folder": write_folder,
    "folder-without-swap": write_folder_without_swap,
}


def look(folder: Path) -> str:
    """Return `old`, `new`, `none` or `damaged`, of what is under the final name."""
    path = folder / "out"
    if not path.exists():
        return "none"
    parts = [path] if path.is_file() else [path / "a", path / "b"]
    contents = {part.read_text() if part.exists() else "" for part in parts}
    known = {"old" * 1000: "old", "new" * 1000: "new"}
    return known.get(contents.pop(), "damaged") if len(contents) == 1 else "damaged"


def killed_at(step: int, write: Callable[[Path, str], None], folder: Path) -> bool:
    """Write in a child that is killed at a step; return whether it got that far."""
    child = os.fork()
    if child == 0:
        left = step

        def count(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in FILES:
                return None
            if event == "line":
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return count

        sys.settrace(count)
        write(folder, "new")
        sys.settrace(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main() -> None:
    write, root = CASES[sys.argv[1]], Path(sys.argv[2])
    for has_old in (False, True):
        for step in range(1000):
            folder = root / f"{has_old}-{step}"
            folder.mkdir(parents=True)
            if has_old:
                write(folder, "old")
            was_killed = killed_at(step, write, folder)
            found, beside = look(folder), len(list(folder.iterdir())) - (folder / "out").exists()
            output.remove_stale(folder / "out")
            recovered = look(folder)
            write(folder, "new")
            names = sorted(path.name for path in folder.iterdir())
            print(
                json.dumps(
                    {
                        "old": has_old,
                        "killed": was_killed,
                        "found": found,
                        "beside": beside,
                        "recovered": recovered,
                        "then": look(folder),
                        "names": names,
                    }
                )
            )
            shutil.rmtree(folder)
            if not was_killed:
                break


if __name__ == "__main__":
    main()
