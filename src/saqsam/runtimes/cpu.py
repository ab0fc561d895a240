"""Capabilities of the processor, for settings of runtimes."""

from __future__ import annotations

import functools
from pathlib import Path

_DOT_PRODUCTS = {"avx512_vnni", "avx_vnni"}
"""Flags of Linux for 8-bit dot products with 32-bit sums on x86."""


@functools.cache
def has_dot_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the processor is known to multiply and add 8-bit integers without saturating; x86 on Linux alone.

    Args:
        cpuinfo: File in which Linux lists the flags of the processors.
    """
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    lines = (line.partition(":") for line in text.splitlines())
    flags = next((value.split() for name, _, value in lines if name.strip() == "flags"), [])
    return not _DOT_PRODUCTS.isdisjoint(flags)
