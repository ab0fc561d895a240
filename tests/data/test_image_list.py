"""A list of images as a dataset: every type of image, positions in messages, and the rules of files and arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saqsam.data.image_input import as_rgb
from saqsam.data.image_list import ImageList
from saqsam.data.images import read_image
from saqsam.data.types import Dataset
from support.coco_folder import picture

PHOTO = picture((20, 30))


def test_arrays_tensors_pil_images_and_paths_mix(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(path)
    images: list[Any] = [
        PHOTO,
        torch.from_numpy(PHOTO),
        Image.fromarray(PHOTO),
        path,
        str(path),
        PHOTO.tolist(),
    ]
    dataset = ImageList([*images, PHOTO / 255])
    assert isinstance(dataset, Dataset)
    assert (dataset.name, len(dataset)) == ("images", 7)
    samples = [dataset[index] for index in range(len(dataset))]
    for sample in samples:
        np.testing.assert_array_equal(sample.image, PHOTO)
        assert sample.image.dtype == np.uint8
        assert sample.instances == ()
    assert [sample.image_id for sample in samples] == [1, 2, 3, 4, 5, 6, 7]
    assert [sample.file_name for sample in samples[2:5]] == ["image_3", "photo.png", "photo.png"]
    assert dataset[-1].image_id == 7
    with pytest.raises(IndexError):
        dataset[7]


def test_a_path_may_start_at_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    np.testing.assert_array_equal(ImageList(["~/photo.png"])[0].image, PHOTO)


def test_limit_keeps_the_first() -> None:
    assert len(ImageList([PHOTO] * 3, limit=2)) == 2
    assert len(ImageList([PHOTO], limit=2)) == 1


def test_files_are_upright_and_pil_images_as_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(PHOTO).save(path, exif=exif)
    with Image.open(path) as image:
        from_file, from_pil = (sample.image for sample in ImageList([path, image]))
        np.testing.assert_array_equal(from_file, read_image(path))
        np.testing.assert_array_equal(from_pil, as_rgb(image)[0])
    assert (from_file.shape, from_pil.shape) == ((30, 20, 3), (20, 30, 3))


def test_assumptions_become_notes(tmp_path: Path) -> None:
    deep = PHOTO[:, :, 0].astype(np.uint16) * 16
    path = tmp_path / "pages.tif"
    Image.fromarray(PHOTO).save(path, save_all=True, append_images=[Image.fromarray(PHOTO)])
    dataset = ImageList([deep, path, PHOTO])
    assert dict(dataset[0].notes) == {"pixel values scaled as 12-bit data": 1}
    assert dict(dataset[1].notes) == {"first of several pages or frames read": 1}
    assert dict(dataset[2].notes) == {}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "image 2 of 2: expected an array, a tensor or a PIL image, got None"),
        (b"pixels", "image 2 of 2: expected pixels, got the path"),
        ({"image": PHOTO}, "image 2 of 2: expected an array, .* got dict"),
        (7, "image 2 of 2: expected an array, .* got int"),
        (np.zeros((3, 40, 50), np.uint8), "image 2 of 2: expected channels last"),
        (torch.zeros(1, 3, 40, 50), "image 2 of 2: expected one image"),
        (np.zeros((0, 4, 3), np.uint8), "image 2 of 2: expected at least one pixel"),
    ],
)
def test_objects_that_are_no_image_are_refused_at_once(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageList([PHOTO, image])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 4, 3), 255.0), r"image 2 of 2: expected floating point values in \[0, 1\]"),
        (np.zeros((4, 4), complex), "image 2 of 2: .* values of type complex128"),
        (np.zeros((1, 10_001), np.uint8), "image 2 of 2: .* ratio of at most 10000"),
        ([[1, 2], [3]], "image 2 of 2: expected an array of numbers"),
        ("absent.png", "absent.png: expected an image file, found nothing"),
    ],
)
def test_values_and_files_are_checked_on_access(image: Any, message: str) -> None:
    dataset = ImageList([PHOTO, image])
    np.testing.assert_array_equal(dataset[0].image, PHOTO)
    with pytest.raises(ValueError, match=message):
        dataset[1]
    with pytest.raises(ValueError, match=message):
        dataset[-1]


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one image, got an empty list"):
        ImageList([])
