"""Rows of masks: what is written comes back, and equal results give equal bytes."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saqsam.bulk.table import ROWS_PER_GROUP, SCHEMA, Failure, Result, read_part, write_part
from saqsam.data.rle import encode_mask
from saqsam.segmentation.objects import SegmentedImage, SegmentedObject
from saqsam.utils.errors import CheckpointError
from support.coco_folder import rectangle

SIZE = (12, 16)


def results(images: int = 3) -> list[Result]:
    found: list[Result] = []
    for number in range(1, images + 1):
        objects = tuple(
            SegmentedObject(
                encode_mask(rectangle(SIZE, (1, 2, 3 + place, 9))),
                0.1 + place / 9,
                0.7,
                "box 1,2,3,4",
                3,
                score,
            )
            for place, score in enumerate((None, 0.25))
        )
        found.append(SegmentedImage(number, f"{number}.png", SIZE, objects, None, {3: "cat"}))
    found.append(SegmentedImage(98, "empty.png", SIZE, (), None, {}))
    found.append(Failure(99, "bad.png", "expected an image"))
    return found


def test_results_come_back(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    write_part(path, results(), "0123456789ab")
    assert list(read_part(path)) == results()
    table = pq.read_table(path)
    assert table.num_rows == 3 * 2 + 1 + 1
    first = table.to_pylist()[1]
    assert (first["bbox"], first["area"], first["checkpoint"]) == ([1, 2, 3, 7], 21, "0123456789ab")
    assert [image.objects for image in read_part(path, masks=False) if isinstance(image, SegmentedImage)] == [
        ()
    ] * 4


def test_equal_results_give_equal_bytes_in_groups_of_rows(tmp_path: Path) -> None:
    many = results(ROWS_PER_GROUP // 2 + 5)
    for name in ("a", "b"):
        write_part(tmp_path / name, many, "0123456789ab")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pq.ParquetFile(tmp_path / "a").num_row_groups == 2
    assert list(read_part(tmp_path / "a")) == many


def test_nothing_appears_if_the_results_end_with_an_error(tmp_path: Path) -> None:
    def broken() -> Iterator[Result]:
        yield from results()
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        write_part(tmp_path / "part.parquet", broken(), "0123456789ab")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        write_part(tmp_path / "part.parquet", results(), "0123456789ab")
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    write_part(path, results(), "0123456789ab")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"part\.parquet: damaged Parquet file"):
        list(read_part(path))
    pq.write_table(pa.table({"image_id": [1]}), path)
    with pytest.raises(CheckpointError, match=r"part\.parquet: expected the columns of saqsam segment"):
        list(read_part(path))
    assert "counts" in SCHEMA.names
