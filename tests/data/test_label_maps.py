"""Label maps: read from PNG files, looked up for an image, painted from objects, and simulated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saqsam.data.ade20k import AdeDataset
from saqsam.data.label_maps import (
    DAMAGED_MAP,
    MISSING_MAP,
    OTHER_SIZE_MAP,
    UNKNOWN_LABEL,
    FolderLabels,
    Unusable,
    label_classes,
    truth_labels,
)
from saqsam.data.label_png import IGNORE, read_label_map
from saqsam.data.open import open_dataset
from saqsam.data.rle import encode_mask
from saqsam.data.simulated_labels import SimulatedLabels
from saqsam.data.types import Instance, Sample
from support.ade_folder import ade_labels, make_ade
from support.coco_folder import SIZES, annotation, good_annotations, make_coco

VALUES = np.array([[0, 1, 150], [254, 255, 7]])


def save(path: Path, values: Any, dtype: Any = np.uint8) -> Path:
    Image.fromarray(np.asarray(values).astype(dtype)).save(path)
    return path


def found(labels: Any) -> np.ndarray:
    assert isinstance(labels, np.ndarray), labels
    return labels


def test_eight_and_sixteen_bits_and_palettes(tmp_path: Path) -> None:
    expected = np.where(VALUES == 255, IGNORE, VALUES)
    labels = read_label_map(save(tmp_path / "8.png", VALUES))
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, expected)
    wide = np.where(VALUES == 7, 65535, VALUES * 100)
    np.testing.assert_array_equal(read_label_map(save(tmp_path / "16.png", wide, np.uint16)), wide)
    np.testing.assert_array_equal(read_label_map(save(tmp_path / "255.png", VALUES, np.uint16)), VALUES)
    palette = Image.fromarray(VALUES.astype(np.uint8)).convert("L")
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette([17 * k % 256 for k in range(768)])
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "p.png"), expected)


def test_files_that_are_not_label_maps_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "rgb.png", np.zeros((2, 3, 3)))
    (tmp_path / "cut.png").write_bytes(save(tmp_path / "8.png", VALUES).read_bytes()[:50])
    for name, words in (
        ("rgb.png", "one channel of 8 or 16 bits, got mode RGB"),
        ("cut.png", "expected a readable image"),
        ("no.png", "found nothing"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: .*{words}"):
            read_label_map(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match="found a folder"):
        read_label_map(tmp_path / "folder.png")


def test_maps_are_found_by_path_or_stem(tmp_path: Path) -> None:
    dataset = open_dataset(make_coco(tmp_path / "coco", categories=[]))  # of any classes
    (tmp_path / "maps" / "town").mkdir(parents=True)
    maps = tmp_path / "maps"
    save(maps / "town" / "a.png", VALUES)
    save(maps / "b.png", VALUES + 1)
    labels = FolderLabels(maps, dataset)
    image, truth = np.zeros((2, 3, 3), dtype=np.uint8), np.zeros((2, 3), dtype=np.uint16)
    assert found(labels.find(Sample(1, "town/a.jpg", image), truth))[0, 1] == 1
    assert found(labels.find(Sample(2, "other/b.jpeg", image), truth))[0, 1] == 2
    assert labels.find(Sample(3, "a.jpg", image), truth) == Unusable(
        MISSING_MAP, "a.png: expected it as the map of a.jpg, found none"
    )
    assert labels.options() == FolderLabels(maps, dataset).options()
    before = labels.options()
    save(maps / "b.png", VALUES)
    assert FolderLabels(maps, dataset).options() != before


def test_unusable_maps_are_reported(tmp_path: Path) -> None:
    dataset = open_dataset(make_coco(tmp_path / "coco"))
    maps = tmp_path / "maps"
    maps.mkdir()
    sample = dataset[0]
    truth = truth_labels(sample)

    def found_for(values: Any, dtype: Any = np.uint8) -> Any:
        save(maps / "1.png", values, dtype)
        return FolderLabels(maps, dataset).find(sample, truth)

    good = np.full(SIZES[1], 9)
    good[0, 0] = 0
    good[0, 1] = 255
    assert found(found_for(good))[0, 1] == IGNORE
    assert found_for(good[:20]) == Unusable(OTHER_SIZE_MAP, "1.png: expected 40 x 60 pixels, got 20 x 60")
    bad = found_for(np.where(good == 9, 77, good))
    assert bad == Unusable(UNKNOWN_LABEL, "1.png: expected labels of the dataset, got 77")
    many = found_for(np.arange(2400).reshape(SIZES[1]), np.uint16)
    assert many.detail == "1.png: expected labels of the dataset, got 1, 2, 4, 5, 6, ..."
    bad = found_for(np.zeros((*SIZES[1], 3)))
    assert (bad.reason, "mode RGB" in bad.detail) == (DAMAGED_MAP, True)


def test_maps_of_ade20k_count_from_one(tmp_path: Path) -> None:
    dataset = AdeDataset(make_ade(tmp_path / "ade"))
    maps = tmp_path / "maps"
    maps.mkdir()
    labels = ade_labels("ADE_val_00000001")
    save(maps / "ADE_val_00000001.png", labels)
    sample = dataset[0]
    np.testing.assert_array_equal(
        found(FolderLabels(maps, dataset).find(sample, truth_labels(sample))), sample.labels
    )
    save(maps / "ADE_val_00000001.png", labels + 1)
    bad = FolderLabels(maps, dataset).find(sample, truth_labels(sample))
    assert isinstance(bad, Unusable)
    assert bad.detail.endswith("got 151")


def test_folders_without_maps(tmp_path: Path) -> None:
    scenes = open_dataset("scenes", limit=1)
    with pytest.raises(ValueError, match="found nothing"):
        FolderLabels(tmp_path / "no", scenes)
    with pytest.raises(ValueError, match=r"label maps \(.png\), found none"):
        FolderLabels(tmp_path, scenes)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="found a file"):
        FolderLabels(tmp_path / "file", scenes)


def test_classes_of_datasets(tmp_path: Path) -> None:
    assert label_classes(open_dataset(make_coco(tmp_path / "a"))) == {0, 3, 9}
    assert label_classes(open_dataset(make_coco(tmp_path / "b", categories=[]))) == frozenset()
    assert label_classes(open_dataset("scenes", limit=1)) == set(range(17))
    assert label_classes(open_dataset(make_ade(tmp_path / "c"))) == set(range(1, 151))


def test_truth_is_painted_large_to_small_and_crowds_have_no_label(tmp_path: Path) -> None:
    annotations = [
        annotation(1, 1, (12, 12, 18, 18), category_id=9),  # inside the next, though it comes first
        annotation(2, 1, (10, 10, 30, 30)),
        annotation(3, 1, (25, 20, 50, 35), iscrowd=1, category_id=9),
        annotation(4, 1, (0, 0, 4, 4)),
        annotation(5, 1, (0, 2, 4, 6), category_id=9),  # as large as the one before: below it
    ]
    labels = truth_labels(open_dataset(make_coco(tmp_path, annotations))[0])
    expected = np.zeros(SIZES[1], dtype=np.uint16)
    expected[20:35, 25:50] = IGNORE
    expected[10:30, 10:30] = 3
    expected[12:18, 12:18] = 9
    expected[2:6, 0:4] = 9
    expected[0:4, 0:4] = 3
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint16


@pytest.mark.parametrize("category", [0, -3, 65535])
def test_category_ids_that_cannot_be_labels_are_refused(category: int) -> None:
    mask = np.ones((4, 5), dtype=bool)
    one = Instance(1, encode_mask(mask), (0, 0, 5, 4), category)
    with pytest.raises(ValueError, match=rf"x\.png: expected category ids 1 to 65534 .*got {category}"):
        truth_labels(Sample(1, "x.png", np.zeros((4, 5, 3), dtype=np.uint8), (one,)))


def blocks() -> tuple[Sample, np.ndarray]:
    truth = np.zeros((120, 160), dtype=np.uint16)
    truth[20:80, 20:90] = 5
    truth[60:110, 100:150] = 8
    truth[:10] = IGNORE
    return Sample(4, "4.png", np.zeros((120, 160, 3), dtype=np.uint8)), truth


def test_simulated_maps_are_coarse_noisy_and_reproducible() -> None:
    sample, truth = blocks()
    labels = found(SimulatedLabels(3).find(sample, truth))
    np.testing.assert_array_equal(labels, found(SimulatedLabels(3).find(sample, truth)))
    assert (labels != found(SimulatedLabels(4).find(sample, truth))).any()
    other = Sample(5, "5.png", sample.image)
    assert (labels != found(SimulatedLabels(3).find(other, truth))).any()
    assert set(np.unique(labels).tolist()) == {0, 5, 8}
    cells = labels.reshape(30, 4, 40, 4)
    assert (cells == cells[:, :1, :, :1]).all()  # 40 cells of 4 pixels along the longer side
    valid = truth != IGNORE
    assert 0.8 < (labels == truth)[valid].mean() < 0.95
    assert SimulatedLabels(3).options() == {"labels": "simulated", "labels_seed": 3}


def test_simulated_maps_of_one_class_of_none_and_of_few_pixels() -> None:
    sample, truth = blocks()
    alone = np.where(truth == 5, truth, IGNORE)
    assert (found(SimulatedLabels().find(sample, alone)) == 5).all()
    assert (found(SimulatedLabels().find(sample, np.full_like(truth, IGNORE))) == IGNORE).all()
    tiny = np.array([[1, 2, 2]], dtype=np.uint16)
    assert found(SimulatedLabels().find(sample, tiny)).shape == (1, 3)
    with pytest.raises(ValueError, match="seed: expected at least 0, got -1"):
        SimulatedLabels(-1)


def test_simulated_maps_of_photographs_and_scenes(tmp_path: Path) -> None:
    for dataset in (open_dataset("scenes", limit=2), open_dataset(make_coco(tmp_path, good_annotations()))):
        for index in range(2):
            sample = dataset[index]
            truth = truth_labels(sample)
            labels = found(SimulatedLabels().find(sample, truth))
            assert labels.shape == truth.shape
            assert set(np.unique(labels)) <= set(np.unique(truth))


def test_maps_written_by_other_tools(tmp_path: Path) -> None:
    dataset = open_dataset(make_coco(tmp_path / "coco", categories=[]))
    maps = tmp_path / "maps"
    for folder in ("sub", ".ipynb_checkpoints", "__MACOSX"):
        (maps / folder).mkdir(parents=True)
        save(maps / folder / "b.png", VALUES)
    save(maps / "a.PNG", VALUES)
    save(maps / "C.png", VALUES)
    (maps / "._a.png").write_bytes(b"")
    labels = FolderLabels(maps, dataset)
    image, truth = np.zeros((2, 3, 3), dtype=np.uint8), np.zeros((2, 3), dtype=np.uint16)
    for number, name in enumerate(("a.jpg", "town/a.jpg", "sub/b.jpg", "c.jpg")):
        assert found(labels.find(Sample(number, name, image), truth))[0, 1] == 1
    for name in ("b.jpg", "d.jpg", "/etc/b.jpg", "../maps/sub/b.jpg"):
        unusable = labels.find(Sample(9, name, image), truth)
        assert isinstance(unusable, Unusable)
        assert unusable.reason == MISSING_MAP
    before = labels.options()
    (maps / "._b.png").write_bytes(b"1")
    assert FolderLabels(maps, dataset).options() == before
    for path in (maps / "a.PNG", maps / "C.png", maps / "sub" / "b.png"):
        path.rename(path.with_suffix(".npy"))
    with pytest.raises(ValueError, match=r"expected label maps \(\.png\), found none; found sub/, 2 x \.npy"):
        FolderLabels(maps, dataset)


def test_ignored_pixels_have_no_label() -> None:
    ignored = np.zeros((4, 6), dtype=bool)
    ignored[1:3, 1:5] = True
    one = np.zeros((4, 6), dtype=bool)
    one[2:, :2] = True
    instance = Instance(1, encode_mask(one), (0, 2, 2, 4), 1)
    sample = Sample(1, "a", np.zeros((4, 6, 3), dtype=np.uint8), (instance,), ignored=encode_mask(ignored))
    expected = np.where(one, 1, np.where(ignored, IGNORE, 0))
    np.testing.assert_array_equal(truth_labels(sample), expected)
