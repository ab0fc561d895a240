"""The allocator setting: freed tensors are reused without page faults."""

import subprocess
import sys

import pytest

PROBE = """
import resource, sys
import torch
from saqsam.utils.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range(60):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    first, second, third = (torch.ones(2**20) for _ in range(3))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    return int(subprocess.check_output([sys.executable, "-c", PROBE, mode], text=True))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has the setting")
def test_freed_tensors_are_reused_without_page_faults() -> None:
    pages = 50 * 3 * 2**22 // 4096
    assert page_faults("keep") < pages / 10
