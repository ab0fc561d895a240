"""The command line in several processes with the environment that torchrun gives them, one thread each."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def start(processes: int, *arguments: str | Path, code: str | None = None) -> list["subprocess.Popen[str]"]:
    """Start `saqsam` with the same arguments in each process, or Python with some code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *(["-m", "saqsam"] if code is None else ["-c", code]), *map(str, arguments)]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def finish(running: list["subprocess.Popen[str]"], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Wait for all processes and return exit code, standard output and standard error of each."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(running, outputs, strict=True)]


def torchrun(processes: int, *arguments: str | Path, code: str | None = None) -> list[tuple[int, str, str]]:
    """Start processes and wait for them; arguments and results are those of `start` and `finish`."""
    return finish(start(processes, *arguments, code=code))
