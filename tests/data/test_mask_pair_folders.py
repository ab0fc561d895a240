"""Names of folders of images and masks, and matching of masks to images."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from saqsam.data.images import ImageFolder
from saqsam.data.mask_pair_folders import MASK_ENDINGS, MASK_FOLDERS, find_pair_folders, mask_names
from saqsam.data.mask_pairs import MaskPairDataset, match_masks
from saqsam.data.open import open_dataset

MASK = np.zeros((8, 10), dtype=np.uint8)
MASK[2:6, 3:7] = 255


def make(root: Path, folder: str, *names: str) -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(MASK).save(root / folder / name)
    return root


def opened(root: Path) -> MaskPairDataset:
    dataset = open_dataset(root)
    assert isinstance(dataset, MaskPairDataset)
    return dataset


def files(dataset: MaskPairDataset) -> list[str]:
    return [dataset[index].file_name for index in range(len(dataset))]


@pytest.mark.parametrize(
    "masks", [*MASK_FOLDERS, "Masks", "Ground Truth", "ground-truth", "GroundTruth", "GT"]
)
def test_known_names(tmp_path: Path, masks: str) -> None:
    images = masks.replace("labels", "images") if masks.endswith(("Tr", "Ts", "Val")) else "images"
    make(tmp_path, images, "a.png")
    assert files(opened(make(tmp_path, masks, "a.png"))) == ["a.png"]


def test_voc_and_nnu_net(tmp_path: Path) -> None:
    make(tmp_path / "voc", "JPEGImages", "2007_000032.jpg")
    (tmp_path / "voc" / "Annotations").mkdir()
    (tmp_path / "voc" / "Annotations" / "2007_000032.xml").write_text("<annotation/>")
    assert len(opened(make(tmp_path / "voc", "SegmentationObject", "2007_000032.png"))) == 1

    make(tmp_path / "nnunet", "imagesTr", "case_1_0000.png", "case_1_0001.png", "case_2_0000.png")
    make(tmp_path / "nnunet", "labelsTr", "case_1.png", "case_2.png")
    make(tmp_path / "nnunet", "imagesTs", "case_3_0000.png")
    dataset = opened(tmp_path / "nnunet")
    assert files(dataset) == ["case_1_0000.png", "case_2_0000.png"]
    assert dataset.index_skipped == {"image without a mask file": 1}
    make(tmp_path / "nnunet", "labelsTs", "case_3.png")
    with pytest.raises(ValueError, match=r"got imagesTr/ \+ labelsTr/ and imagesTs/ \+ labelsTs/.*imagesTr$"):
        open_dataset(tmp_path / "nnunet")
    assert files(opened(tmp_path / "nnunet" / "imagesTs")) == ["case_3_0000.png"]


def test_folders_of_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        make(tmp_path, f"images/{split}", f"{split}.png")
        make(tmp_path, f"masks/{split}", f"{split}.png")
        dataset = opened(tmp_path / "images" / split)
        assert (dataset.name, files(dataset)) == (split, [f"{split}.png"])
    monkeypatch.chdir(tmp_path / "images" / "val")
    assert files(opened(Path())) == ["val.png"]
    with pytest.raises(ValueError, match=r"images: expected images .*, found none; found train/, val/$"):
        open_dataset(tmp_path)
    make(tmp_path, "gt/val", "val.png")  # which of the two?
    assert isinstance(open_dataset(tmp_path / "images" / "val"), ImageFolder)


def test_several_folders_of_masks(tmp_path: Path) -> None:
    """In DRIVE, `mask` is the field of view and `1st_manual` the truth."""
    make(tmp_path, "images", "21_training.tif")
    make(tmp_path, "mask", "21_training_mask.gif")
    make(tmp_path, "1st_manual", "21_training.gif")
    with pytest.raises(ValueError, match=r"expected one pair .*images/ \+ 1st_manual/ and images/ \+ mask/"):
        open_dataset(tmp_path)
    make(tmp_path / "usual", "images", "a.png")
    make(tmp_path / "usual", "labels", "a.png")
    assert find_pair_folders(make(tmp_path / "usual", "masks", "a.png")) == (
        tmp_path / "usual" / "images",
        tmp_path / "usual" / "masks",
    )


def test_unknown_folder_names_are_listed(tmp_path: Path) -> None:
    make(tmp_path, "images", "a.png")
    make(tmp_path, "outlines", "a.png")
    with pytest.raises(
        ValueError, match=r"folder of masks \(masks, .*labelsVal\); found images/, outlines/$"
    ):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"masks may also be in mask, labels, .*; found images/, outlines/$"):
        MaskPairDataset(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        MaskPairDataset(tmp_path / "nothing")
    make(tmp_path, ".", "b.png")
    assert isinstance(open_dataset(tmp_path), ImageFolder)


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        make(tmp_path, folder, "a.png")
        for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "._b.png", ".c.png"):
            (tmp_path / folder / name).write_bytes(b"not an image")
        make(tmp_path, f"{folder}/.ipynb_checkpoints", "a-checkpoint.png")
    make(tmp_path, "__MACOSX", "._a.png")
    dataset = opened(tmp_path)
    assert (files(dataset), dataset.index_skipped) == (["a.png"], {})
    make(tmp_path / "labels", "imgs", "a.png")
    make(tmp_path / "labels", ".masks", "a.png")
    assert files(opened(make(tmp_path / "labels", "gt", "a.png"))) == ["a.png"]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        *(("a.jpg", f"a{ending}.png") for ending in MASK_ENDINGS),
        *(
            ("a.JPG", "a.PNG"),
            ("a.tif", "a.gif"),
            ("a.png", "a.bmp"),
            ("A.jpg", "a.png"),
            ("a.jpg", "A_Mask.png"),
        ),
        *(("a.jpg", "a.jpg.png"), ("a.jpg", "a.jpg_mask.png"), ("a_0000.png", "a.png")),
    ],
)
def test_the_mask_of_an_image(image: str, mask: str) -> None:
    assert match_masks([Path(image)], [Path(mask)]) == [(Path(image), Path(mask))]


def test_names_in_another_case_are_counted(tmp_path: Path) -> None:
    make(tmp_path, "images", "A.PNG", "b.png")
    dataset = opened(make(tmp_path, "masks", "a.png", "b_mask.PNG"))
    assert files(dataset) == ["A.PNG", "b.png"]
    assert dataset.index_notes == {"mask matched by its name in another case": 1}


def test_equal_names_are_matched_first() -> None:
    images = [Path(name) for name in ("A.png", "a.png", "a_0000.png", "a_mask.png", "b.png")]
    masks = [Path(name) for name in ("a.png", "a_mask.png", "b_mask.png", "b_seg.png")]
    assert [(image.name, mask.name) for image, mask in match_masks(images, masks)] == [
        ("a.png", "a.png"),
        ("a_mask.png", "a_mask.png"),
        ("b.png", "b_mask.png"),
    ]


@given(
    stems=st.lists(st.sampled_from(["a", "b", "A", "a_mask", "a_0000", "b_gt"]), unique=True, min_size=1),
    others=st.lists(st.sampled_from(["a", "b", "A", "a_mask", "a_mask_mask", "b_gt", "c"]), unique=True),
)
def test_a_mask_belongs_to_one_image(stems: list[str], others: list[str]) -> None:
    images, masks = [Path(f"{stem}.jpg") for stem in stems], [Path(f"{stem}.png") for stem in others]
    pairs = match_masks(images, masks)
    assert len({mask for _, mask in pairs}) == len(pairs)
    for image, mask in pairs:
        assert mask.stem.lower() in map(str.lower, mask_names(image))
        assert mask.stem == image.stem or image.stem not in others
    matched = {image for image, _ in pairs}
    assert all(image in matched for image in images if image.stem in others)


def test_two_files_with_one_name_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "images", "a.png", "a.jpg")
    make(tmp_path, "masks", "a.png")
    with pytest.raises(ValueError, match=r"images: expected one image of a name, got a\.jpg and a\.png"):
        open_dataset(tmp_path)
    (tmp_path / "images" / "a.jpg").unlink()
    make(tmp_path, "masks", "a.bmp")
    with pytest.raises(ValueError, match=r"masks: expected one mask of a name, got a\.bmp and a\.png"):
        open_dataset(tmp_path)
