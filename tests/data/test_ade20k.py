"""ADE20K's layout, on small generated files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saqsam.data.ade20k import AdeDataset
from saqsam.data.label_png import IGNORE
from saqsam.data.open import open_dataset
from support.ade_folder import SIZES, ade_labels, make_ade


def test_images_labels_and_names(tmp_path: Path) -> None:
    dataset = AdeDataset(make_ade(tmp_path))
    assert (dataset.name, len(dataset)) == ("ade20k_validation", 3)
    assert dataset.index_skipped == {"missing annotation": 1}
    assert AdeDataset(tmp_path, limit=3).index_skipped == {}
    assert dataset.category_names[150] == "thing 150, thing"
    for index, (stem, size) in enumerate(SIZES.items()):
        sample = dataset[index]
        assert (sample.image_id, sample.file_name) == (index + 1, f"{stem}.jpg")
        assert sample.image.shape == (*size, 3)
        assert sample.labels is not None
        assert sample.labels.dtype == np.uint16
        expected = ade_labels(stem).astype(np.uint16)
        expected[expected == 0] = IGNORE
        np.testing.assert_array_equal(sample.labels, expected)
        assert (sample.instances, sample.skipped) == ((), {})
    with pytest.raises(IndexError):
        dataset[3]


def test_the_root_and_an_image_folder_open_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_ade(tmp_path / "ade")
    make_ade(tmp_path / "ade", "training", names=False)
    for spec, name in (
        (tmp_path / "ade", "ade20k_validation"),
        (tmp_path / "ade" / "images" / "validation", "ade20k_validation"),
        (tmp_path / "ade" / "images" / "training", "ade20k_training"),
    ):
        dataset = open_dataset(spec, limit=2)
        assert isinstance(dataset, AdeDataset)
        assert (dataset.name, len(dataset)) == (name, 2)
    monkeypatch.chdir(tmp_path / "ade" / "images" / "training")
    assert open_dataset(".").name == "ade20k_training"


def test_the_digest_depends_on_the_label_maps(tmp_path: Path) -> None:
    first, same = AdeDataset(make_ade(tmp_path / "a")), AdeDataset(make_ade(tmp_path / "b", names=False))
    assert first.digest == same.digest != AdeDataset(tmp_path / "a", limit=2).digest
    assert same.category_names == {}
    labels = ade_labels("ADE_val_00000003")
    labels[5, 5] = 7
    Image.fromarray(labels).save(tmp_path / "b" / "annotations" / "validation" / "ADE_val_00000003.png")
    assert AdeDataset(tmp_path / "b").digest != first.digest


def test_unusable_annotations_are_counted(tmp_path: Path) -> None:
    folder = make_ade(tmp_path) / "annotations" / "validation"
    wrong = ade_labels("ADE_val_00000001")
    wrong[3, 3] = 151
    Image.fromarray(wrong).save(folder / "ADE_val_00000001.png")
    Image.fromarray(ade_labels("ADE_val_00000002")[:-1]).save(folder / "ADE_val_00000002.png")
    (folder / "ADE_val_00000003.png").write_bytes(b"\x89PNG")
    dataset = AdeDataset(tmp_path)
    reasons = [
        "annotation with values above 150",
        "annotation of another size than the image",
        "damaged annotation",
    ]
    for index, reason in enumerate(reasons):
        sample = dataset[index]
        assert sample.skipped == {reason: 1}
        assert sample.labels is not None
        assert (sample.labels == IGNORE).all()


def test_other_folders_are_refused(tmp_path: Path) -> None:
    make_ade(tmp_path / "ade")
    with pytest.raises(ValueError, match=r"test: expected the folder of ADE20K's label maps"):
        AdeDataset(tmp_path / "ade", "test")
    (tmp_path / "ade" / "annotations" / "other").mkdir()
    with pytest.raises(ValueError, match="expected a folder of images"):
        AdeDataset(tmp_path / "ade", "other")
    (tmp_path / "ade" / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n")
    with pytest.raises(ValueError, match="each of 150 classes, got 1"):
        AdeDataset(tmp_path / "ade")
    for file in (tmp_path / "ade" / "annotations" / "validation").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"ADE_val_00000001\.png, found none of 4"):
        AdeDataset(tmp_path / "ade")
    (tmp_path / "half" / "images" / "validation").mkdir(parents=True)
    with pytest.raises(ValueError, match="expected the folder of ADE20K's label maps, found none"):
        open_dataset(tmp_path / "half")


def test_files_written_by_other_tools(tmp_path: Path) -> None:
    root = make_ade(tmp_path)
    images, annotations = root / "images" / "validation", root / "annotations" / "validation"
    (images / "ADE_val_00000001.jpg").rename(images / "ADE_val_00000001.JPG")
    (annotations / "ADE_val_00000001.png").rename(annotations / "ADE_val_00000001.PNG")
    labels = Image.fromarray(ade_labels("ADE_val_00000002"))
    palette = Image.frombytes("P", labels.size, labels.tobytes())
    palette.putpalette([17 * k % 256 for k in range(768)])
    palette.save(annotations / "ADE_val_00000002.png")
    for folder in (images, annotations):
        (folder / ".ipynb_checkpoints").mkdir()
        for name in ("._ADE_val_00000004.png", ".DS_Store", "Thumbs.db"):
            (folder / name).write_bytes(b"")
    table = (root / "objectInfo150.txt").read_text()
    (root / "objectInfo150.txt").write_bytes(b"\xef\xbb\xbf" + table.replace("\n", "\r\n").encode())
    dataset = AdeDataset(root)
    assert (len(dataset), dataset.index_skipped) == (3, {"missing annotation": 1})
    assert (dataset.category_names[1], dataset.category_names[150]) == ("thing 1, thing", "thing 150, thing")
    for index, stem in enumerate(("ADE_val_00000001", "ADE_val_00000002")):
        found = dataset[index].labels
        assert found is not None
        np.testing.assert_array_equal(found == 1, ade_labels(stem) == 1)


def test_annotations_in_colors_are_counted(tmp_path: Path) -> None:
    root = make_ade(tmp_path)
    colors = Image.fromarray(np.dstack([ade_labels("ADE_val_00000001")] * 3))
    colors.save(root / "annotations" / "validation" / "ADE_val_00000001.png")
    dataset = AdeDataset(root)
    assert dataset[0].skipped == {"annotation in colors or other values than 8 or 16 bits": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_names_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    root = make_ade(tmp_path)
    table = (root / "objectInfo150.txt").read_text().replace("thing 7,", "caf\u00e9,")
    (root / "objectInfo150.txt").write_bytes(table.encode(encoding))
    with pytest.raises(ValueError, match=r"objectInfo150\.txt: expected UTF-8 text"):
        AdeDataset(root)
    (root / "objectInfo150.txt").write_text(table.replace("\n7\t", "\n\u00b2\t"))
    with pytest.raises(ValueError, match="each of 150 classes, got 149"):
        AdeDataset(root)


def test_two_images_with_one_name_are_refused(tmp_path: Path) -> None:
    root = make_ade(tmp_path)
    Image.new("RGB", (8, 8)).save(root / "images" / "validation" / "ADE_val_00000001.png")
    with pytest.raises(ValueError, match=r"expected one image of a name, got ADE_val_00000001\.jpg and"):
        AdeDataset(root)
