"""Memory of processes, on Linux and macOS. Imports nothing that would add to it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path


def resident_mib(process: int | None = None) -> float:
    """Return the current resident memory of a process in MiB, by default of this one; 0 once it has ended."""
    process = os.getpid() if process is None else process
    if sys.platform == "darwin":
        done = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(process)], check=False, capture_output=True, text=True
        )
        return round(int(done.stdout or 0) / 1024, 1)
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    _, _, found = status.partition("VmRSS:")
    return round(int(found.split()[0]) / 1024, 1) if found else 0.0


def peak_gib() -> float:
    """Return the highest resident memory of this process in GiB."""
    if sys.platform == "darwin":
        return max_rss_gib(resource.getrusage(resource.RUSAGE_SELF))
    # `getrusage` would count that of the process that started it.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return round(int(status.split("VmHWM:")[1].split()[0]) / 2**20, 2)


def max_rss_gib(usage: resource.struct_rusage) -> float:
    """Return the highest resident memory in GiB, of which Linux counts KiB and macOS bytes."""
    return round(usage.ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20), 2)
