"""A short run of the image fuzzer; `make fuzz` runs the long one."""

from pathlib import Path

import pytest

from fuzz.images import fuzz, originals
from saqsam.data.images import read_image_with_notes

FILES = originals(seed=1)


@pytest.mark.parametrize("kind", FILES)
def test_undamaged_files_are_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(FILES[kind])
    if kind == "no accepted format":
        with pytest.raises(ValueError, match="found another format"):
            read_image_with_notes(path)
        return
    image, notes = read_image_with_notes(path)
    assert image.shape in ((32, 48, 3), (48, 32, 3))
    assert image.std() > 5
    assert any("several" in note for note in notes) == any(
        word in kind for word in ("animated", "several", "pages", "GIF")
    )


def test_mutated_images_are_read_or_refused() -> None:
    tallies = fuzz(620, seed=1, files=FILES)
    for tally in tallies:
        assert tally.is_good, tally.failures
    assert sum(tally.outcomes["refused"] for tally in tallies) > 100
    assert sum(tally.outcomes["valid change"] for tally in tallies) > 50
