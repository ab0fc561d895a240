"""Folders of images and masks: which belong together, what a mask is, and what is left out and counted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coco_folder import picture, rectangle
from saqsam.data.datasets import open_dataset
from saqsam.data.mask_pairs import MaskPairDataset, read_mask
from saqsam.evaluate.run import fill_box_iou

SIZE = (40, 60)
BOX = (10, 5, 30, 25)


def make_pairs(root: Path, images: str = "images", masks: str = "masks", ending: str = ".png") -> Path:
    """Two images with masks of a rectangle each."""
    (root / images).mkdir(parents=True)
    (root / masks).mkdir()
    for number in (1, 2):
        Image.fromarray(picture(SIZE, number)).save(root / images / f"case{number}.jpg")
        mask = rectangle(SIZE, BOX).astype(np.uint8) * 255
        Image.fromarray(mask).save(root / masks / f"case{number}{ending}")
    return root


@pytest.mark.parametrize(
    ("images", "masks", "ending"),
    [
        ("images", "masks", ".png"),
        ("images", "masks", ".jpg"),  # Kvasir-SEG
        ("Original", "Ground Truth", ".tif"),  # CVC-ClinicDB
        ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth", "_segmentation.png"),
    ],
)
def test_layouts_of_medical_sets(tmp_path: Path, images: str, masks: str, ending: str) -> None:
    dataset = open_dataset(make_pairs(tmp_path / "polyps", images, masks, ending))
    assert (dataset.name, len(dataset)) == ("polyps", 2)
    second = dataset[1]
    assert (second.image_id, second.file_name, second.image.shape) == (2, "case2.jpg", (*SIZE, 3))
    (instance,) = second.instances
    assert (instance.id, instance.category_id, instance.is_crowd) == (2, 1, False)
    assert instance.box == BOX
    np.testing.assert_array_equal(instance.mask(), rectangle(SIZE, BOX))


def test_limit_and_the_same_ids(tmp_path: Path) -> None:
    dataset = open_dataset(make_pairs(tmp_path), limit=1)
    assert [sample.file_name for sample in (dataset[0],)] == ["case1.jpg"]
    assert len(dataset) == 1
    with pytest.raises(IndexError):
        dataset[1]


def test_what_has_no_counterpart_is_counted(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    Image.fromarray(picture(SIZE)).save(tmp_path / "images" / "alone.png")
    for name in ("one.png", "other.png"):
        Image.fromarray(picture(SIZE)).save(tmp_path / "masks" / name)
    dataset = MaskPairDataset(tmp_path)
    assert [dataset[i].file_name for i in range(len(dataset))] == ["case1.jpg", "case2.jpg"]
    assert dataset.index_skipped == {"image without a mask file": 1, "mask file without an image": 2}


def test_empty_masks_and_other_sizes_are_counted(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    Image.fromarray(np.zeros(SIZE, dtype=np.uint8)).save(tmp_path / "masks" / "case1.png")
    Image.fromarray(np.full((4, 4), 255, dtype=np.uint8)).save(tmp_path / "masks" / "case2.png")
    dataset = open_dataset(tmp_path)
    samples = [dataset[0], dataset[1]]
    assert [sample.instances for sample in samples] == [(), ()]
    assert samples[0].skipped == {"empty mask": 1}
    assert samples[1].skipped == {"mask of another size than the image": 1}


def test_no_pair_at_all(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        path.rename(path.with_name(f"label-of-{path.name}"))
    with pytest.raises(ValueError, match=r"expected masks named as the images.*case1\.png, found label-of-"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="expected folders images/ and masks/, found none"):
        MaskPairDataset(tmp_path / "masks")


@pytest.mark.parametrize("white", [1, 255])
def test_masks_of_two_values(tmp_path: Path, white: int) -> None:
    mask = rectangle(SIZE, BOX)
    Image.fromarray(mask.astype(np.uint8) * white).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)


def test_masks_of_one_bit_sixteen_bits_palettes_and_channels(tmp_path: Path) -> None:
    mask = rectangle(SIZE, BOX)
    palette = Image.fromarray(mask.astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    red = np.zeros((*SIZE, 3), dtype=np.uint8)
    red[mask, 0] = 255
    for image in (
        Image.fromarray(mask),
        Image.fromarray(mask.astype(np.uint16)),
        palette,
        Image.fromarray(red),
        Image.fromarray(np.dstack([red, np.full(SIZE, 255, np.uint8)])),
    ):
        image.save(tmp_path / "m.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)


def test_maps_of_labels_and_photographs_are_no_masks(tmp_path: Path) -> None:
    labels = rectangle(SIZE, BOX).astype(np.uint8)
    labels[0, 0] = 2
    for values, message in ((labels, "got 3 different ones up to 2"), (picture(SIZE)[..., 0], "got 2")):
        Image.fromarray(values).save(tmp_path / "m.png")
        with pytest.raises(ValueError, match=rf"m\.png: expected a mask of two values, {message}"):
            read_mask(tmp_path / "m.png")


def test_soft_edges_belong_to_a_mask(tmp_path: Path) -> None:
    values = rectangle(SIZE, BOX).astype(np.uint8) * 255
    values[5, 10:30], values[24, 10:30] = 100, 200
    Image.fromarray(values).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), values >= 128)


def test_they_are_scored(tmp_path: Path) -> None:
    assert fill_box_iou(open_dataset(make_pairs(tmp_path))) == 1.0
