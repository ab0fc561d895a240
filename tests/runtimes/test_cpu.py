"""8-bit dot products are recognized by the flags that Linux lists."""

from pathlib import Path

import pytest

from saqsam.runtimes.cpu import has_dot_products


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_vnni sse\n", True),
        ("flags : fpu avx_vnni\n\nflags : fpu\n", True),
        ("flags : fpu avx2 avx512f\n", False),
        ("Features : fp asimd asimddp\n", False),
        ("", False),
    ],
)
def test_flags_of_the_first_processor_decide(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="ascii")
    assert has_dot_products(tmp_path / "cpuinfo") is expected


def test_without_the_file_none_are_assumed(tmp_path: Path) -> None:
    assert not has_dot_products(tmp_path / "missing")
