"""DOTA's folders: parsing, skipped entries, and malformed files."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from saqsam.data.detections import load_detections
from saqsam.data.dota import CATEGORIES, DotaDataset
from saqsam.data.open import open_dataset
from support.dota_folder import HEADER, make_dota

SQUARE = "10 10 30 10 30 30 10 30 plane 0"
DIAMOND = "32.0 12.0 52.0 32.0 32.0 52.0 12.0 32.0 harbor 1"


def test_images_and_objects_are_read(tmp_path: Path) -> None:
    make_dota(tmp_path / "val", {"P2": [SQUARE, "", DIAMOND], "P1": ["0 0 6 0 6 4 0 4 small-vehicle"]})
    dataset = open_dataset(tmp_path / "val")
    assert isinstance(dataset, DotaDataset)
    assert (dataset.name, len(dataset), dataset.image_ids) == ("val", 2, (1, 2))
    first, second = dataset[0], dataset[1]
    assert (first.file_name, second.file_name) == ("P1.png", "P2.png")
    assert first.image.shape == (64, 64, 3)
    (vehicle,), (plane, harbor) = first.instances, second.instances
    assert [one.id for one in (vehicle, plane, harbor)] == [1, 2, 3]
    assert [dataset.category_names[one.category_id] for one in (vehicle, plane, harbor)] == [
        *("small-vehicle", "plane", "harbor")
    ]
    assert plane.category_id == 1
    assert [one.is_difficult for one in (vehicle, plane, harbor)] == [False, False, True]
    assert plane.box == (10, 10, 30, 30)
    assert plane.corners == ((10, 10), (30, 10), (30, 30), (10, 30))
    assert plane.area == 400
    expected = np.zeros((64, 64), dtype=bool)
    expected[10:30, 10:30] = True
    np.testing.assert_array_equal(plane.mask(), expected)
    assert harbor.area == pytest.approx(800, rel=0.06)
    assert harbor.box == (12, 12, 52, 52)
    assert first.skipped == second.skipped == dataset.index_skipped == {}
    assert dataset.image_size(2) == (64, 64)


def test_ids_and_classes_do_not_depend_on_the_limit(tmp_path: Path) -> None:
    make_dota(tmp_path, {"a": None, "b": [SQUARE], "c": [SQUARE.replace("plane", "zebra"), DIAMOND]})
    whole, part = DotaDataset(tmp_path), DotaDataset(tmp_path, limit=1)
    assert (whole.image_ids, part.image_ids) == ((2, 3), (2,))
    assert whole.digest == part.digest
    assert whole.category_names == part.category_names
    assert list(whole.category_names.values()) == [*CATEGORIES, "zebra"]
    assert [one.id for one in whole[1].instances] == [2, 3]
    assert part.has_image(3)
    assert not part.has_image(4)
    (tmp_path / "labelTxt" / "c.txt").write_text(DIAMOND)
    assert DotaDataset(tmp_path).digest != whole.digest


def test_skipped_entries_are_counted(tmp_path: Path) -> None:
    lines = [
        SQUARE,
        "0 0 10 0 10 0 0 0 plane 0",  # a side of zero
        "5 5 5 5 5 5 5 5 plane 0",
        "64 0 80 0 80 10 64 10 plane 0",
        "-20 0 200 0 200 20 -20 20 plane 0",
        "3.1 3.1 3.2 3.1 3.2 3.2 3.1 3.2 plane 0",  # no pixel's center
    ]
    make_dota(tmp_path, {"a": lines, "b": None, "c": []})
    (tmp_path / "labelTxt" / "z.txt").write_text(SQUARE)
    dataset = DotaDataset(tmp_path)
    assert dataset.index_skipped == {"image without label file": 1, "label file without image": 1}
    assert [one.id for one in dataset[0].instances] == [1]
    assert dataset[0].skipped == {
        "quadrilateral without area": 2,
        "quadrilateral outside the image": 1,
        "quadrilateral with a corner more than an image size outside": 1,
        "empty mask": 1,
    }
    assert dataset[1].instances == ()  # an empty file says that there is nothing


def test_the_mask_of_crossed_corners_is_that_of_their_hull(tmp_path: Path) -> None:
    make_dota(tmp_path, {"a": ["10 10 30 30 30 10 10 30 plane 0", SQUARE]})
    crossed, square = DotaDataset(tmp_path)[0].instances
    assert crossed.rle == square.rle
    assert crossed.corners == ((10, 10), (30, 30), (30, 10), (10, 30))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("10 10 30 10 30 30 10 plane 0", r"a.txt:3: expected eight coordinates .*'plane'"),
        ("10 10 30 10 30 30 10 30", r"a.txt:3: expected x1 y1 .* got 8 words"),
        ("10 10 30 10 30 30 10 30 plane 0 1", r"a.txt:3: .* got 11 words"),
        ("10 10 30 10 30 x 10 30 plane 0", r"a.txt:3: expected eight coordinates .*'x'"),
        ("10 10 30 10 30 nan 10 30 plane 0", r"a.txt:3: expected finite coordinates"),
        ("10 10 30 10 30 30 10 30 plane yes", r"a.txt:3: expected difficult as 0 or 1, got 'yes'"),
        ("10 10 30 10 30 30 10 30 plane -1", r"a.txt:3: expected difficult as 0 or 1, got '-1'"),
        ("gsb:0.1", r"a.txt:3: expected x1 y1 .* got 1 words"),
    ],
)
def test_malformed_lines_are_refused(tmp_path: Path, line: str, message: str) -> None:
    make_dota(tmp_path, {"a": [line, SQUARE]})
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path)


def test_windows_text_and_binary_files(tmp_path: Path) -> None:
    make_dota(tmp_path, {"a": []})
    path = tmp_path / "labelTxt" / "a.txt"
    path.write_bytes("\r\n".join(["﻿" + HEADER[0], "gsd:null", SQUARE]).encode())
    assert len(DotaDataset(tmp_path)[0].instances) == 1
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a.txt: expected UTF-8 text"):
        DotaDataset(tmp_path)


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    make_dota(tmp_path / "a", {"a": None})
    with pytest.raises(ValueError, match="expected label files of images, found none for 1 images"):
        open_dataset(tmp_path / "a")
    (tmp_path / "b" / "labelTxt").mkdir(parents=True)
    with pytest.raises(ValueError, match="images: expected a folder of images, found nothing"):
        open_dataset(tmp_path / "b")
    make_dota(tmp_path / "c", {"a": [SQUARE]})
    Image.new("RGB", (8, 8)).save(tmp_path / "c" / "images" / "a.jpg")
    with pytest.raises(ValueError, match=r"expected one image of a name, got a.jpg and a.png"):
        open_dataset(tmp_path / "c")


def test_detections_of_a_detector(tmp_path: Path) -> None:
    make_dota(tmp_path, {"a": [SQUARE], "b": [DIAMOND]}, {"b": (64, 200)})
    entry = '{"image_id": %d, "category_id": %d, "bbox": [%d, 2, 5, 5], "score": 0.5}'
    entries = [entry % values for values in ((1, 1, 0), (1, 1, 64), (2, 18, 64), (3, 1, 0), (1, 19, 0))]
    (tmp_path / "found.json").write_text(f"[{', '.join(entries)}]")
    found = load_detections(tmp_path / "found.json", DotaDataset(tmp_path))
    assert {image_id: len(one.boxes) for image_id, one in found.by_image.items()} == {1: 1, 2: 1}
    assert found.skipped == {
        "box outside the image": 1,
        "unknown image id": 1,
        "unknown category id": 1,
    }


def one(folder: Path, content: bytes) -> DotaDataset:
    """A set of one image with a label file of this content."""
    make_dota(folder, {"a": []})
    (folder / "labelTxt" / "a.txt").write_bytes(content)
    return DotaDataset(folder)


NUMBERS = ("10", "10.0", "1e1", "10.", "+10", "010", "1.0E+1")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.lists(
        st.sampled_from(
            ["imagesource:GoogleEarth", "ImageSource: null", "GSD:0.1", "gsd : null", "gsd:", ""]
        ),
        max_size=4,
    ),
    separator=st.sampled_from([" ", "  ", "\t", ",", ", ", " \t"]),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    ten=st.sampled_from(NUMBERS),
    category=st.sampled_from(["large-vehicle", "Large-Vehicle", "large vehicle", "LARGE_VEHICLE"]),
    difficult=st.sampled_from(["0", "0.0", "1", "1.0", "2"]),
    trailing=st.sampled_from(["", " ", "\t"]),
)
def test_lines_written_by_other_tools(
    tmp_path: Path,
    header: list[str],
    separator: str,
    newline: str,
    mark: bytes,
    ten: str,
    category: str,
    difficult: str,
    trailing: str,
) -> None:
    line = separator.join([ten, ten, "30", ten, "30", "30", ten, "30", category, difficult]) + trailing
    dataset = one(tmp_path, mark + newline.join([*header, line, "", line]).encode())
    first, second = dataset[0].instances
    assert first.corners == second.corners == ((10, 10), (30, 10), (30, 30), (10, 30))
    assert first.area == 400
    assert dataset.category_names[first.category_id] == "large-vehicle"
    assert len(dataset.category_names) == len(CATEGORIES)
    assert first.is_difficult == (float(difficult) > 0)
    respelled = category != "large-vehicle"
    assert dataset.index_notes == ({"category name in another spelling": 2} if respelled else {})


def test_unknown_categories_of_several_words(tmp_path: Path) -> None:
    dataset = one(tmp_path, b"10 10 30 10 30 30 10 30 old oil rig 0\n10 10 30 10 30 30 10 30 Zebra\n")
    assert [dataset.category_names[one.category_id] for one in dataset[0].instances] == [
        "old oil rig",
        "Zebra",
    ]
    assert dataset.index_notes == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("10 10 30 10 30 30 10 30 plane 0 0.93", "got 11 words"),
        ("10 10 30 10 30 30 10 30 plane 0.93", r"expected difficult as 0 or 1, got '0\.93'"),
        ("10 10 30 10 30 30 10 30 plane nan", "expected difficult as 0 or 1, got 'nan'"),
        ("10 10 30 10 30 30 plane 0", "got 8 words"),
        ("P0003 0.93 10 10 30 10 30 30 10 30", "expected eight coordinates .*'P0003'"),
        ("1_0 10 30 10 30 30 10 30 plane 0", "expected eight coordinates .*'1_0'"),
        ("inf 10 30 10 30 30 10 30 plane 0", "expected finite coordinates"),
        ("10 10 30 10 30 30 10 30 " + "x" * 5000 + " y", "expected difficult as 0 or 1, got 'y'"),
        ("x" * 5000 + " 10 30 10 30 30 10 30 plane 0", "expected eight coordinates"),
    ],
)
def test_invalid_lines_are_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        one(tmp_path, f"gsd:1\n{line}\n".encode())
    assert "a.txt:2: " in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path: Path, encoding: str) -> None:
    for mark in ("", "\ufeff"):
        with pytest.raises(
            ValueError, match=r"a\.txt: expected UTF-8 text, got UTF-16 or .*; save it as UTF-8"
        ):
            one(tmp_path, (mark + SQUARE).encode(encoding))


@given(numbers=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=8, max_size=8))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_finite_corners_are_read_or_counted(tmp_path: Path, numbers: list[float]) -> None:
    sample = one(tmp_path, " ".join([*map(repr, numbers), "ship", "0"]).encode())[0]
    assert len(sample.instances) + sum(sample.skipped.values()) == 1


@given(
    lines=st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from([SQUARE.encode(), DIAMOND.encode(), b"gsd:1", b"10 10 30 10 30 30 10 30 x"]),
        ),
        max_size=4,
    )
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_or_refused_with_its_place(tmp_path: Path, lines: list[bytes]) -> None:
    message = ""
    try:
        dataset = one(tmp_path, b"\n".join(lines))
    except ValueError as error:
        message = str(error)
    if message:
        assert "a.txt" in message
        assert len(message.splitlines()) == 1
    else:
        assert len(dataset[0].instances) + sum(dataset[0].skipped.values()) <= len(lines)
