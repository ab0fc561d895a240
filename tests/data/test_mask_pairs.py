"""Folders of images and masks: matching, interpretation of masks, and skipped files by reason."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from saqsam.data.mask_pairs import MaskPairDataset, read_mask
from saqsam.data.open import open_dataset
from saqsam.evaluation.run import fill_box_iou
from support.coco_folder import picture, rectangle

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


def test_ids_do_not_depend_on_the_limit(tmp_path: Path) -> None:
    dataset = open_dataset(make_pairs(tmp_path), limit=1)
    assert [sample.file_name for sample in (dataset[0],)] == ["case1.jpg"]
    assert len(dataset) == 1
    with pytest.raises(IndexError):
        dataset[1]


def test_files_without_a_counterpart_are_counted(tmp_path: Path) -> None:
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


def test_label_maps_and_photographs_are_refused(tmp_path: Path) -> None:
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


def save_masks(root: Path, *masks: np.ndarray) -> Path:
    """A set of one image a mask, named a, b, ..."""
    for number, mask in enumerate(masks):
        for folder, content in (("images", picture(mask.shape, number)), ("masks", mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(root / folder / f"{chr(97 + number)}.png")
    return root


def labels(**boxes: tuple[int, int, int, int]) -> np.ndarray:
    """HW uint8: later boxes lie on earlier ones; `v255=(...)` has the value 255."""
    values = np.zeros(SIZE, dtype=np.uint8)
    for name, box in boxes.items():
        values[rectangle(SIZE, box)] = int(name[1:])
    return values


BORDERED = labels(v255=(8, 3, 32, 27), v1=BOX)
THIN = labels(v255=(8, 3, 32, 27), v1=(10, 5, 30, 7))


def test_ignored_pixels_are_neither_object_nor_background(tmp_path: Path) -> None:
    dataset = MaskPairDataset(save_masks(tmp_path, BORDERED, THIN, labels(v1=BOX)))
    first, second, third = (dataset[index] for index in range(3))
    for sample, values in ((first, BORDERED), (second, THIN)):
        (instance,) = sample.instances
        np.testing.assert_array_equal(instance.mask(), values == 1)
        np.testing.assert_array_equal(sample.counted(), values != 255)
        assert sample.notes == {"mask with pixels of the ignore label 255": 1}
    assert first.instances[0].box == BOX
    assert (third.counted(), third.notes) == (None, {})
    # The box of the object, filled, is right wherever pixels count.
    assert fill_box_iou(dataset) == 1.0


def test_an_explicit_ignore_label(tmp_path: Path) -> None:
    root = save_masks(tmp_path, labels(v255=BOX, v128=(10, 5, 30, 8)), labels(v255=BOX))
    with pytest.raises(ValueError, match=r"a\.png: .*got 3 different ones"):
        open_dataset(root)
    dataset = open_dataset(root, ignore_label=128)
    assert [dataset[k].instances[0].area for k in range(2)] == [20 * 17, 20 * 20]
    assert dataset[0].notes == {"mask with pixels of the ignore label 128": 1}
    assert dataset.digest != MaskPairDataset(root, ignore_label=255).digest  # type: ignore[attr-defined]
    for wrong in ("255", -1, 65536, True, 1.0):
        with pytest.raises(ValueError, match="ignore_label: expected 'auto', None or 0 to 65535, got"):
            open_dataset(root, ignore_label=wrong)  # type: ignore[arg-type]


def test_values_that_change_from_file_to_file(tmp_path: Path) -> None:
    """255 may be the object of one file or the ignore label of the other: only the user can tell."""
    root = save_masks(tmp_path / "mixed", BORDERED, labels(v255=BOX))
    with pytest.raises(
        ValueError, match=r"b\.png: expected objects of value 1 as in a\.png, got 255; .*None"
    ):
        open_dataset(root)
    dataset = open_dataset(root, ignore_label=255)
    assert (dataset[1].instances, dataset[1].skipped) == ((), {"empty mask": 1})
    root = save_masks(tmp_path / "sources", labels(v1=BOX), labels(v255=BOX))
    with pytest.raises(ValueError, match="expected objects of value 1"):
        open_dataset(root)
    dataset = open_dataset(root, ignore_label=None)
    assert dataset[0].instances[0].rle == dataset[1].instances[0].rle
    root = save_masks(tmp_path / "classes", labels(v1=BOX), labels(v2=BOX))
    for label in ("auto", None, 255):
        with pytest.raises(ValueError, match=r"b\.png: expected objects of value 1 as in a\.png, got 2"):
            open_dataset(root, ignore_label=label)  # type: ignore[arg-type]


def test_files_outside_the_sample_are_checked_on_access(tmp_path: Path) -> None:
    masks = [labels(v1=BOX)] * 41
    masks[4] = labels(v2=BOX)  # between those that are looked at
    masks[8] = BORDERED
    for number, mask in enumerate(masks):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(mask).save(tmp_path / folder / f"{number:02}.png")
    dataset = open_dataset(tmp_path)
    assert [dataset[k].instances[0].area for k in (0, 8, 40)] == [400] * 3
    with pytest.raises(ValueError, match=r"04\.png: expected objects of value 1 as in 00\.png, got 2"):
        dataset[4]


def test_unclear_masks_are_interpreted_like_the_others(tmp_path: Path) -> None:
    stray = labels(v255=BOX)
    stray[0, 0] = stray[39, 59] = 1  # what a JPEG leaves behind
    dataset = open_dataset(save_masks(tmp_path / "white", stray, labels(v255=BOX)))
    assert (dataset[0].instances[0].area, dataset[0].ignored) == (400, None)
    dataset = open_dataset(save_masks(tmp_path / "ignore", THIN, BORDERED))
    assert dataset[0].instances[0].area == 40
    dataset = open_dataset(save_masks(tmp_path / "unclear", stray))
    with pytest.raises(ValueError, match="either marks the object"):
        dataset[0]


def test_damaged_masks_are_counted(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    (tmp_path / "masks" / "case1.png").write_bytes(b"\x89PNG")
    dataset = open_dataset(tmp_path)
    assert (dataset[0].skipped, dataset[0].instances) == ({"damaged mask": 1}, ())
    assert len(dataset[1].instances) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_of_rotated_photographs(tmp_path: Path, orientation: int) -> None:
    """Annotation tools save the mask as the photo is stored or as it is shown."""
    stored = rectangle(SIZE, BOX)
    stored[30:36, 40:56] = True
    for folder in ("stored", "shown"):
        for name in ("images", "masks"):
            (tmp_path / folder / name).mkdir(parents=True)
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo = Image.fromarray(stored)
        photo.convert("RGB").save(tmp_path / folder / "images" / "a.png", exif=exif)
        photo.convert("L").save(tmp_path / folder / "masks" / "a.png")
        if folder == "shown":
            with Image.open(tmp_path / folder / "images" / "a.png") as image:
                ImageOps.exif_transpose(image).convert("L").save(tmp_path / folder / "masks" / "a.png")
    note = {"mask assumed to match the upright image, whose EXIF orientation keeps its size": 1}
    shown = open_dataset(tmp_path / "shown")[0]
    np.testing.assert_array_equal(shown.instances[0].mask(), shown.image[..., 0] > 0)
    assert shown.notes == (note if 1 < orientation < 5 else {})
    sample = open_dataset(tmp_path / "stored")[0]
    if orientation < 5:  # the sizes do not tell
        np.testing.assert_array_equal(sample.instances[0].mask(), stored)
        assert sample.notes == shown.notes
    else:
        np.testing.assert_array_equal(sample.instances[0].mask(), sample.image[..., 0] > 0)
        assert sample.notes == {"mask rotated by the EXIF orientation of its image": 1}


def test_mask_pairs_can_be_evaluated(tmp_path: Path) -> None:
    assert fill_box_iou(open_dataset(make_pairs(tmp_path))) == 1.0
