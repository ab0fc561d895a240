"""The images of a bulk run and their parts: listed images, tar archives, Parquet files."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from saqsam.bulk.collections import Inputs
from saqsam.bulk.tar_images import IDS_PER_ARCHIVE
from saqsam.utils.atomic_write import png_bytes
from support.coco_folder import make_coco, picture

PNG = png_bytes(picture((12, 16)))


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def make_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for seed in range(count):
        Image.fromarray(picture((12, 16), seed)).save(folder / f"{seed}.png")
    return folder


def test_listed_images_are_cut_into_slices(tmp_path: Path) -> None:
    images = Inputs((str(make_images(tmp_path / "images", 5)),), images_per_file=2).open()
    assert len(images) == 3
    assert [[one.name for one in images.images(part)] for part in range(3)] == [
        ["0.png", "1.png"],
        ["2.png", "3.png"],
        ["4.png"],
    ]
    assert [one.image_id for part in range(3) for one in images.images(part)] == [1, 2, 3, 4, 5]
    assert not images.has_prompts


def test_an_annotation_file_brings_prompts(tmp_path: Path) -> None:
    images = Inputs((str(make_coco(tmp_path)),), images_per_file=1).open()
    assert (len(images), images.has_prompts) == (2, True)
    (one,) = images.images(1)
    assert (one.image_id, len(one.read()[2])) == (7, 1)


def test_the_digest_depends_on_images_and_parts(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", 3)
    first = Inputs((str(folder),), images_per_file=2).open().digest
    assert Inputs((str(folder / "*.png"),), images_per_file=2).open().digest == first
    assert Inputs((str(folder),), images_per_file=3).open().digest != first
    (folder / "2.png").rename(folder / "3.png")
    assert Inputs((str(folder),), images_per_file=2).open().digest != first


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")])
def test_a_tar_archive_is_a_part(tmp_path: Path, name: str, mode: str) -> None:
    prompts = [{"box": [1, 2, 9, 10], "category": "cat"}, {"points": [[3, 4]], "category": "dog"}]
    members = {
        "./one.png": PNG,
        "./one.json": json.dumps(prompts).encode(),
        "two.cls": b"7",
        "two.png": PNG,
        "._two.png": b"of macOS",
        "sub/one.json": json.dumps({"annotations": [{"bbox": [1, 2, 3, 4], "area": 9}]}).encode(),
        "sub/one.png": PNG,
    }
    path = make_tar(tmp_path / name, members, mode)
    other = make_tar(tmp_path / f"b{name}", {"x.png": PNG}, mode)
    images = Inputs((str(path), str(other))).open()
    assert (len(images), images.names) == (2, None)
    one, two, three = images.images(0)
    assert [source.name for source in (one, two, three)] == [
        f"{name}/one.png",
        f"{name}/two.png",
        f"{name}/sub/one.png",
    ]
    assert [source.image_id for source in (one, two, three)] == [1, 2, 3]
    assert [source.image_id for source in images.images(1)] == [IDS_PER_ARCHIVE + 1]
    pixels, _, found = one.read()
    np.testing.assert_array_equal(pixels, picture((12, 16)))
    assert [str(prompt) for prompt in found] == ["box 1,2,9,10", "point 3,4"]
    assert one.categories == {1: "cat", 2: "dog"}
    assert two.read()[2] == ()
    assert [str(prompt) for prompt in three.read()[2]] == ["box 1,2,4,6"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b"7", "expected a list of prompts"),
        (b'[{"box": [1, 2]}]', r"prompt 1: expected a box"),
        (b'[{"mask": "/etc/passwd"}]', "expected a box or points, got a mask"),
        (b'{"annotations": [{}]}', "expected a bbox"),
        (b'{"annotations": [{"bbox": [1, 2, 3, NaN]}]}', "expected a bbox"),
    ],
)
def test_bad_prompts_in_an_archive_are_the_fault_of_their_image_alone(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = make_tar(tmp_path / "a.tar", {"one.json": content, "one.png": PNG, "two.png": PNG})
    one, two = Inputs((str(path),)).open().images(0)
    with pytest.raises(ValueError, match=words):
        one.read()
    two.read()


@pytest.mark.parametrize("damage", [lambda whole: whole[:700], lambda whole: b"text" * 300])
def test_a_damaged_archive_is_named(tmp_path: Path, damage: Any) -> None:
    path = make_tar(tmp_path / "a.tar", {"one.png": PNG, "two.png": PNG * 5})
    path.write_bytes(damage(path.read_bytes()))
    images = Inputs((str(path),)).open()
    with pytest.raises(ValueError, match=r"a\.tar: damaged tar archive"):
        list(images.images(0))


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    folders = [str(make_images(tmp_path / name, 1)) for name in ("x", "y")]
    with pytest.raises(ValueError, match=r"different names, got 0\.png twice"):
        Inputs(tuple(folders)).open()


def test_two_archives_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        paths.append(str(make_tar(tmp_path / folder / "a.tar", {"one.png": PNG})))
    with pytest.raises(ValueError, match=r"different names, got a\.tar twice"):
        Inputs(tuple(paths)).open()


def write_table(path: Path, columns: dict[str, Any], rows_per_group: int = 2) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


def test_parquet_files_are_cut_where_row_groups_end(tmp_path: Path) -> None:
    images = [{"bytes": PNG, "path": f"{number}.png"} for number in range(5)]
    objects = [{"bbox": [[1.0, 2.0, 3.0, 4.0]] * number} for number in range(5)]
    write_table(tmp_path / "a.parquet", {"image": images, "objects": objects})
    write_table(tmp_path / "b.parquet", {"image": [PNG]})
    images = Inputs((str(tmp_path),), images_per_file=3).open()
    assert len(images) == 3
    named = [[(one.image_id, one.name) for one in images.images(part)] for part in range(3)]
    assert named == [
        [(number + 1, f"a.parquet/{number}.png") for number in range(4)],
        [(5, "a.parquet/4.png")],
        [(6, "b.parquet/6")],
    ]
    third = list(images.images(0))[2]
    pixels, _, prompts = third.read()
    np.testing.assert_array_equal(pixels, picture((12, 16)))
    assert [str(prompt) for prompt in prompts] == ["box 1,2,4,6"] * 2
    with pytest.raises(ValueError, match="expected the bytes of an image file, got NoneType"):
        next(
            Inputs((str(write_table(tmp_path / "c.parquet", {"image": pa.array([None], pa.binary())})),))
            .open()
            .images(0)
        ).read()


def test_parquet_files_without_images_are_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", {"text": ["x"]})
    with pytest.raises(ValueError, match=r"a\.parquet: expected a column image, found text"):
        Inputs((str(path),)).open()
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match=r"a\.parquet: expected a Parquet file"):
        Inputs((str(path),)).open()


def test_inputs_of_several_kinds_are_refused(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", 1)
    archive = make_tar(tmp_path / "a.tar", {"one.png": PNG})
    for names in (
        (str(folder), str(archive)),
        (str(archive), str(write_table(tmp_path / "a.parquet", {"image": [PNG]}))),
    ):
        with pytest.raises(ValueError, match="not several of these"):
            Inputs(names).open()
    with pytest.raises(ValueError, match=r"no image .*none\.tar"):
        Inputs((str(tmp_path / "none.tar"),)).open()
    with pytest.raises(ValueError, match="expected images from one annotation file"):
        Inputs((str(archive),), detections=tmp_path / "boxes.json").open()
