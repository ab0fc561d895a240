"""Photos whose EXIF rotation matters: annotated as stored or as shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saqsam.data.images import read_image
from saqsam.data.open import open_dataset
from saqsam.data.orientation import TRANSPOSED, apply_orientation, read_orientation, undo_orientation
from saqsam.data.types import Sample
from support.coco_folder import compressed, picture, rectangle


def rotated_photo(
    folder: Path, segmentations: list[Any], size: tuple[int, int], orientation: int = 6
) -> Sample:
    """A photo stored as 60 x 90 pixels, of the stated (height, width)."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture((60, 90))).save(folder / "images" / "p.png", exif=exif)
    content = {
        "images": [{"id": 1, "file_name": "p.png", "height": size[0], "width": size[1]}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "segmentation": s}
            for i, s in enumerate(segmentations, start=1)
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    return open_dataset(folder)[0]


RING = [10, 10, 50, 10, 50, 40, 10, 40]
WIDE = [60, 10, 85, 10, 85, 40, 60, 40]  # within 60 x 90 alone
TALL = [10, 60, 40, 60, 40, 85, 10, 85]  # within 90 x 60 alone


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_size_before_rotation_is_that_of_the_stored_image(tmp_path: Path, orientation: int) -> None:
    stored = compressed(rectangle((60, 90), (60, 10, 85, 40)))
    sample = rotated_photo(tmp_path, [[RING], [WIDE], stored], (60, 90), orientation)
    np.testing.assert_array_equal(sample.image, picture((60, 90)))
    assert [instance.box for instance in sample.instances] == [
        (10, 10, 50, 40),
        (60, 10, 85, 40),
        (60, 10, 85, 40),
    ]
    ((note, count),) = sample.notes.items() - {("box derived from segmentation", 3)}
    assert "EXIF rotation" in note
    assert count == 1


def test_objects_on_the_upright_image_keep_it_upright(tmp_path: Path) -> None:
    upright = compressed(rectangle((90, 60), (10, 60, 40, 85)))
    sample = rotated_photo(tmp_path, [[RING], [TALL], upright], (60, 90))
    np.testing.assert_array_equal(sample.image, np.rot90(picture((60, 90)), -1))
    assert [instance.box for instance in sample.instances][1:] == [(10, 60, 40, 85)] * 2
    assert not sample.skipped


def test_a_size_after_rotation_needs_no_note(tmp_path: Path) -> None:
    sample = rotated_photo(tmp_path, [[RING], [TALL]], (90, 60))
    assert (len(sample.instances), sample.notes) == (2, {"box derived from segmentation": 2})


@pytest.mark.parametrize(
    "block", [b"Exif\0\0damaged", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09"]
)
def test_a_damaged_exif_block_rotates_nothing(tmp_path: Path, block: bytes) -> None:
    rotated_photo(tmp_path, [], (60, 90))
    Image.fromarray(picture((60, 90))).save(tmp_path / "images" / "p.jpg", exif=block)
    assert read_orientation(tmp_path / "images" / "p.jpg") == 1


def test_another_size_is_refused_with_any_rotation(tmp_path: Path) -> None:
    sample = rotated_photo(tmp_path, [[RING]], (45, 90))
    assert (sample.instances, sample.skipped) == ((), {"mask of another size than the image": 1})


@pytest.mark.parametrize("orientation", TRANSPOSED)
def test_orientations_are_applied_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "p.png", exif=exif)
    upright = read_image(tmp_path / "p.png")
    assert read_orientation(tmp_path / "p.png") == orientation
    assert np.array_equal(apply_orientation(stored, orientation), upright)
    assert np.array_equal(undo_orientation(upright, orientation), stored)
