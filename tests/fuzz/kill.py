"""Kill, terminate and starve commands at random points, and check their outputs: `python -m fuzz.kill --points 20`.

After each fault the output must be absent or whole, or the old one under --overwrite, with nothing beside it but the
documented `.unfinished` folder; then the same command must end with the bytes of an undisturbed run. Commands run in
forks of this process, which has imported all that they need, because that takes longer than they do.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.figure  # noqa: F401
import numpy as np
import torch
from PIL import Image

from saqsam.checkpoint import save_checkpoint
from saqsam.cli import app
from saqsam.recipes.deployment import deployable
from support.tiny_quantized import quantize_tiny, quantized_tiny, tiny_recipe
from support.tiny_sam import tiny_processor, tiny_sam

ABSENT, OLD, WHOLE = "absent", "old", "whole"
FAULTS = ("SIGKILL", "SIGKILL, --overwrite", "SIGTERM", "disk full", "read-only", "two at once")
MOUNT_MIB = 8


class Wrong(Exception):
    """A command left something that it must not leave."""


@dataclass(frozen=True)
class Command:
    """A command under test.

    Attributes:
        name: Display name.
        arguments: Everything but the output, whose option comes last.
        output: Name of the file or folder.
        logs: Folder for what it prints.
    """

    name: str
    arguments: tuple[str, ...]
    output: str
    logs: Path


@dataclass
class Row:
    """What happened to one command under one fault.

    Attributes:
        command: Its name.
        fault: One of `FAULTS`.
        found: Number of runs by what was under the final name after the fault.
        equal: Number of runs after which the same command ended with the bytes of an undisturbed run.
        wrong: One line for each run that broke a promise.
        skipped: Why the fault could not be produced here; empty if it could.
    """

    command: str
    fault: str
    found: Counter[str] = field(default_factory=Counter)
    equal: int = 0
    wrong: list[str] = field(default_factory=list)
    skipped: str = ""


def make_commands(folder: Path) -> list[Command]:
    """Write tiny models and a picture, and return the commands that use them."""
    tiny_sam().save_pretrained(folder / "tiny")
    tiny_processor().save_pretrained(folder / "tiny")
    save_checkpoint(quantized_tiny(), tiny_processor(), folder / "packed")
    deployed = quantize_tiny(deployable(tiny_recipe(bits="w8a8")))
    save_checkpoint(deployed, tiny_processor(), folder / "deployed")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    tiny, packed, deploy, photo = (str(folder / n) for n in ("tiny", "packed", "deployed", "photo.png"))
    logs = folder / "logs"
    logs.mkdir()
    learn = ("--method", "saq-sam", "--bits", "w3a4", "--steps", "3", "--set", "reconstruction.final_steps=1")
    return [
        Command(
            "quantize", ("quantize", tiny, "--images", "2", "--check", "none", *learn, "--out"), "q", logs
        ),
        Command("export", ("export", deploy, "--out"), "e", logs),
        Command("evaluate --json", ("evaluate", packed, "--limit", "4", "--json"), "a.json", logs),
        Command(
            "report", ("report", packed, "--limit", "2", "--sensitivity", "none", "--out"), "r.html", logs
        ),
        Command("segment", ("segment", packed, photo, "--box", "5,5,60,50", "--out"), "m.png", logs),
    ]


@dataclass
class Process:
    """A command in a fork of this process."""

    pid: int
    log: Path

    def wait(self) -> int:
        """Return the exit code, negative for a signal, as `subprocess` does."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def lines(self) -> list[str]:
        """Return what the command printed."""
        return self.log.read_text(encoding="utf-8").splitlines()


def start(command: Command, folder: Path, *more: str) -> Process:
    """Start a command that writes into a folder."""
    handle, log = tempfile.mkstemp(dir=command.logs)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        sys.stdout = sys.stderr = os.fdopen(handle, "w")  # not those of a test runner
        code = 1
        try:
            app.app([*command.arguments, str(folder / command.output), *more], prog_name="saqsam")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(handle)
    return Process(pid, Path(log))


def content(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of all files of a folder by their path within it."""
    if path.is_dir():
        return {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}
    return {"": path.read_bytes()} if path.exists() else {}


class Trial:
    """One command in a folder of its own, with the bytes that it must write."""

    def __init__(
        self, command: Command, folder: Path, expected: dict[str, bytes], old: dict[str, bytes]
    ) -> None:
        self.command, self.folder, self._expected, self._old = command, folder, expected, old
        self.path = folder / command.output
        self._more = ("--overwrite",) if old else ()

    def start(self) -> Process:
        """Start the command."""
        return start(self.command, self.folder, *self._more)

    def found(self) -> str:
        """Return what is under the final name, after checking that nothing else is beside it."""
        beside = {path.name for path in self.folder.iterdir()} - {
            self.path.name,
            f"{self.path.name}.unfinished",
        }
        if beside:
            raise Wrong(f"left {sorted(beside)}")
        state = content(self.path)
        if not state and not self.path.exists():
            return ABSENT
        if state == self._expected:
            return WHOLE
        if self._old and state == self._old:
            return OLD
        names = sorted(n for n in {*state, *self._expected} if state.get(n) != self._expected.get(n))
        raise Wrong(f"output is neither absent nor whole: {names[:3]}")

    def resume(self, found: str) -> None:
        """Run the same command again, which must end with the expected bytes and leave nothing else."""
        process = self.start()
        code = process.wait()
        if found == WHOLE and not self._more:
            if code != 2 or "exists; choose another name" not in process.lines()[-1]:
                raise Wrong(f"a whole output was not kept: exit code {code}: {process.lines()[-1:]}")
            # Killed after the output was in place and before the last steps were removed.
            shutil.rmtree(f"{self.path}.unfinished", ignore_errors=True)
        elif code != 0:
            raise Wrong(f"the same command ended with {code}: {process.lines()[-1:]}")
        if self.found() != WHOLE or [path.name for path in self.folder.iterdir()] != [self.path.name]:
            raise Wrong(f"resumed to something else: {[path.name for path in self.folder.iterdir()]}")


class Bench:
    """Runs faults against commands, each in a new folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._random = folder, random.Random(seed)
        self._number = 0

    def measure(self, command: Command) -> tuple[dict[str, bytes], dict[str, bytes], float]:
        """Return the bytes that two undisturbed runs both write, those of an older output, and seconds."""
        seconds, contents = [], []
        for _ in range(2):
            folder = self._new_folder()
            begin = time.perf_counter()
            process = start(command, folder)
            if process.wait() != 0:
                raise Wrong(f"{command.name} fails undisturbed: {process.lines()[-1:]}")
            seconds.append(time.perf_counter() - begin)
            contents.append(content(folder / command.output))
        different = sorted(
            n for n in {*contents[0], *contents[1]} if contents[0].get(n) != contents[1].get(n)
        )
        if different:
            raise Wrong(f"{command.name}: two undisturbed runs differ in {different}")
        return contents[0], self._old(command), max(seconds)

    def _old(self, command: Command) -> dict[str, bytes]:
        """Return the bytes of an older output: of another recipe for folders, anything for files."""
        if "." in command.output:
            return {"": b"an older output"}
        folder = self._new_folder()
        other = ("--bits", "w4a4") if command.name == "quantize" else ("--single-mask",)
        if start(command, folder, *other).wait() != 0:
            raise Wrong(f"{command.name} {other} fails undisturbed")
        return content(folder / command.output)

    def _new_folder(self) -> Path:
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        return folder

    def signal(
        self, command: Command, number: signal.Signals, points: int, *, overwrite: bool = False
    ) -> Row:
        """Send a signal at random points of a run."""
        row = Row(command.name, f"{number.name}{', --overwrite' if overwrite else ''}")
        expected, old, seconds = self._measured(command)
        for _ in range(points):
            trial = Trial(command, self._new_folder(), expected, old if overwrite else {})
            if overwrite:
                _write(trial.path, old)
            at = self._random.uniform(0, seconds)
            with _recorded(row, f"after {at:.2f} of {seconds:.2f} s"):
                process = trial.start()
                time.sleep(at)
                os.kill(process.pid, number)
                self._check_end(process, process.wait(), number)
                found = trial.found()
                row.found[found] += 1
                trial.resume(found)
                row.equal += 1
        return row

    def _check_end(self, process: Process, code: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 0)
            raise Wrong("left a process behind")
        if number == signal.SIGTERM and code not in (0, 143, -number):
            raise Wrong(f"exit code {code} after SIGTERM: {process.lines()[-3:]}")
        if code == 143:
            last = process.lines()[-1]
            if not last.startswith("interrupted") or any("Traceback" in line for line in process.lines()):
                raise Wrong(f"expected one line after SIGTERM, found {last!r}")

    def disk_full(self, command: Command, points: int) -> Row:
        """Run on a file system with random room left, which is less than the output needs."""
        row = Row(command.name, "disk full")
        expected, _, _ = self._measured(command)
        size = sum(4096 * -(-len(part) // 4096) for part in expected.values())
        for _ in range(points):
            with _mounted(row) as mount:
                if mount is None:
                    return row
                folder, filler = mount / "outputs", mount / "filler"
                folder.mkdir()
                trial = Trial(command, folder, expected, {})
                room = self._random.randrange(0, size, 4096)
                with _recorded(row, f"{room} bytes left"):
                    _fill(filler, room)
                    process = trial.start()
                    code, last = process.wait(), process.lines()[-1]
                    filler.unlink()
                    if code != 2 or os.strerror(errno.ENOSPC) not in last or command.output not in last:
                        raise Wrong(f"exit code {code}: {last!r}")
                    found = trial.found()
                    row.found[found] += 1
                    trial.resume(found)
                    row.equal += 1
        return row

    def read_only(self, command: Command) -> Row:
        """Run on a read-only file system."""
        row = Row(command.name, "read-only")
        expected, _, _ = self._measured(command)
        with _mounted(row) as mount:
            if mount is None:
                return row
            trial = Trial(command, mount, expected, {})
            with _recorded(row, "read-only"):
                subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
                process = trial.start()
                code, last = process.wait(), process.lines()[-1]
                if code != 2 or not last.startswith(f"error: cannot write {trial.path}"):
                    raise Wrong(f"exit code {code}: {last!r}")
                row.found[trial.found()] += 1
                subprocess.run(["mount", "-o", "remount,rw", mount], check=True)
                trial.resume(ABSENT)
                row.equal += 1
        return row

    def two_at_once(self, command: Command) -> Row:
        """Start a run while another one writes the same output."""
        row = Row(command.name, "two at once")
        expected, _, _ = self._measured(command)
        trial = Trial(command, self._new_folder(), expected, {})
        with _recorded(row, "two at once"):
            first = trial.start()
            lock = Path(f"{trial.path}.unfinished", "lock")
            while not lock.exists() or not lock.read_text():
                time.sleep(0.005)
            os.kill(first.pid, signal.SIGSTOP)  # so that it cannot end before the other has looked
            second = trial.start()
            code, last = second.wait(), second.lines()[-1]
            os.kill(first.pid, signal.SIGCONT)
            if code != 2 or f"is being written by process {first.pid}" not in last:
                raise Wrong(f"the second run ended with {code}: {last!r}")
            if first.wait() != 0:
                raise Wrong(f"the first run failed: {first.lines()[-1:]}")
            found = trial.found()
            row.found[found] += 1
            trial.resume(found)
            row.equal += 1
        return row

    def _measured(self, command: Command) -> tuple[dict[str, bytes], dict[str, bytes], float]:
        known = self.__dict__.setdefault("_known", {})
        if command.name not in known:
            known[command.name] = self.measure(command)
        measured: tuple[dict[str, bytes], dict[str, bytes], float] = known[command.name]
        return measured


@contextmanager
def _recorded(row: Row, where: str) -> Iterator[None]:
    try:
        yield
    except Wrong as error:
        row.wrong.append(f"{where}: {error}")


@contextmanager
def _mounted(row: Row) -> Iterator[Path | None]:
    """Mount a small tmpfs while the block runs; without the right to do so, note why in the row."""
    folder = Path(tempfile.mkdtemp())
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={MOUNT_MIB}m", "tmpfs", folder],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError as error:
        done = subprocess.CompletedProcess([], 1, "", str(error))
    if done.returncode != 0:
        row.skipped = f"cannot mount a tmpfs here: {done.stderr.strip()}"
        folder.rmdir()
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def _fill(path: Path, room: int) -> None:
    """Fill a file system up to some room."""
    with path.open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        file.truncate(max(0, file.tell() - room))


def _write(path: Path, parts: dict[str, bytes]) -> None:
    for name, part in parts.items():
        file = path / name if name else path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(part)


def fuzz(points: int, seed: int = 0, only: Sequence[str] | None = None) -> list[Row]:
    """Run every fault against every command.

    Call it in a fresh process: the commands run in forks, and OpenMP hangs in forks of a process that has computed with
    several threads.

    Args:
        points: Number of SIGKILLs per command; SIGTERM and full disks get a quarter.
        seed: Draws the points.
        only: Names of the commands to run; None runs all.
    """
    torch.set_num_threads(1)
    rows = []
    few = max(1, points // 4)
    with tempfile.TemporaryDirectory(prefix="saqsam-kill-") as name:
        models, runs = Path(name, "models"), Path(name, "runs")
        models.mkdir()
        runs.mkdir()
        bench = Bench(runs, seed)
        for command in make_commands(models):
            if only is not None and command.name not in only:
                continue
            faults: dict[str, Callable[[Command], Row]] = {
                "SIGKILL": lambda one: bench.signal(one, signal.SIGKILL, points),
                "SIGKILL, --overwrite": lambda one: bench.signal(one, signal.SIGKILL, points, overwrite=True),
                "SIGTERM": lambda one: bench.signal(one, signal.SIGTERM, few),
                "disk full": lambda one: bench.disk_full(one, few),
                "read-only": bench.read_only,
                "two at once": bench.two_at_once,
            }
            rows += [faults[fault](command) for fault in FAULTS]
    return rows


def report(rows: Sequence[Row]) -> int:
    """Print the table and every broken promise; return the exit code."""
    columns = (ABSENT, OLD, WHOLE)
    print(
        f"{'command':<18}{'fault':<22}{'runs':>6}"
        + "".join(f"{c:>8}" for c in columns)
        + f"{'resumed equal':>15}"
    )
    for row in rows:
        counts = "".join(f"{row.found[name]:>8}" for name in columns)
        runs = row.found.total()
        print(f"{row.command:<18}{row.fault:<22}{runs:>6}{counts}{row.equal:>15}  {row.skipped}")
    wrong = [f"{row.command}, {row.fault}: {line}" for row in rows for line in row.wrong]
    print(*wrong, sep="\n")
    return int(bool(wrong))


def main(argv: Sequence[str] | None = None) -> int:
    """Run all faults and print the table; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=20, help="SIGKILLs per command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", metavar="COMMAND", help="such as 'evaluate --json' segment")
    options = parser.parse_args(argv)
    return report(fuzz(options.points, options.seed, options.only))


if __name__ == "__main__":
    sys.exit(main())
