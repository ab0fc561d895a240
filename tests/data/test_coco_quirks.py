"""COCO files written by other tools: every unambiguous form reads like the canonical one, with a note."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle_codec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saqsam.data.open import open_dataset
from support.coco_folder import (
    SIZES,
    annotation,
    assert_same_samples,
    make_coco,
    read_all,
    read_coco,
    rectangle,
    uncompressed,
)

Content = dict[str, Any]


def annotation_of(number: int, image_id: int, segmentation: Any, category: int, crowd: int) -> Content:
    size = SIZES[image_id]
    rle = (
        rle_codec.merge(rle_codec.frPyObjects(segmentation, *size))
        if isinstance(segmentation, list)
        else rle_codec.frPyObjects(segmentation, *size)
    )
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "segmentation": segmentation,
        "bbox": rle_codec.toBbox(rle).tolist(),
        "iscrowd": crowd,
    }


@st.composite
def rings(draw: st.DrawFn, size: tuple[int, int]) -> list[int]:
    """A triangle or a quadrilateral with some pixels inside."""
    x0, y0 = draw(st.integers(0, size[1] - 12)), draw(st.integers(0, size[0] - 12))
    width, height = draw(st.integers(6, 12)), draw(st.integers(6, 12))
    corners = [(x0, y0), (x0 + width, y0), (x0 + width, y0 + height), (x0, y0 + height)]
    return [number for corner in corners[: draw(st.sampled_from((3, 4)))] for number in corner]


@st.composite
def contents(draw: st.DrawFn) -> Content:
    """A canonical annotation file for the images of `make_coco`."""
    annotations = []
    for number in range(1, draw(st.integers(1, 5)) + 1):
        image_id = draw(st.sampled_from(sorted(SIZES)))
        size = SIZES[image_id]
        segmentation: Any = draw(st.lists(rings(size), min_size=1, max_size=3))
        if draw(st.booleans()):
            mask = np.zeros(size, dtype=bool)
            mask[draw(st.integers(0, size[0] - 1)) :, draw(st.integers(0, size[1] - 1)) :] = True
            segmentation = uncompressed(mask)
        category, crowd = draw(st.sampled_from((3, 9))), draw(st.integers(0, 1))
        annotations.append(annotation_of(number, image_id, segmentation, category, crowd))
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in SIZES.items()
        ],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
    }


def change_ids(content: Content, form: Callable[[int], Any]) -> None:
    for entry in (*content["images"], *content["annotations"], *content["categories"]):
        for key in ("id", "image_id", "category_id"):
            if key in entry:
                entry[key] = form(entry[key])


def change_images(content: Content, **forms: Callable[[Any], Any]) -> None:
    for image in content["images"]:
        image.update({key: form(image[key]) for key, form in forms.items()})


def change_polygons(content: Content, form: Callable[[list[int]], Any]) -> None:
    for entry in content["annotations"]:
        if isinstance(entry["segmentation"], list):
            entry["segmentation"] = [form(ring) for ring in entry["segmentation"]]


def change_each(content: Content, key: str, form: Callable[[Any], Any]) -> None:
    for entry in content["annotations"]:
        entry[key] = form(entry[key])


def pairs(ring: list[int]) -> list[list[int]]:
    return [list(corner) for corner in zip(ring[::2], ring[1::2], strict=True)]


def points(ring: list[int]) -> list[dict[str, int]]:
    return [{"x": x, "y": y} for x, y in pairs(ring)]


def flatten_single(content: Content, form: Callable[[list[int]], Any]) -> None:
    for entry in content["annotations"]:
        if isinstance(entry["segmentation"], list) and len(entry["segmentation"]) == 1:
            entry["segmentation"] = form(entry["segmentation"][0])


def add_parts(content: Content, *parts: Any) -> None:
    for entry in content["annotations"]:
        if isinstance(entry["segmentation"], list):
            entry["segmentation"] = [parts[0], *entry["segmentation"], *parts[1:]]


def float_runs(content: Content) -> None:
    for entry in content["annotations"]:
        if isinstance(entry["segmentation"], dict):
            runs = entry["segmentation"]
            runs["size"] = [str(runs["size"][0]), float(runs["size"][1])]
            runs["counts"] = [float(run) for run in runs["counts"]]


def drop(content: Content, key: str) -> None:
    for entry in content["annotations"]:
        del entry[key]


QUIRKS: dict[str, Callable[[Content], object]] = {
    "ids as text": lambda c: change_ids(c, str),
    "ids as floats": lambda c: change_ids(c, float),
    "ids as text of floats": lambda c: change_ids(c, lambda number: f" {number}.0"),
    "sizes as floats": lambda c: change_images(c, height=float, width=float),
    "sizes as text": lambda c: change_images(c, height=str, width=str),
    "sizes null": lambda c: change_images(c, height=lambda _: None, width=lambda _: None),
    "sizes absent": lambda c: [(image.pop("height"), image.pop("width")) for image in c["images"]],
    "rings of pairs": lambda c: change_polygons(c, pairs),
    "rings of points": lambda c: change_polygons(c, points),
    "one flat ring": lambda c: flatten_single(c, list),
    "one ring of pairs": lambda c: flatten_single(c, pairs),
    "one ring of points": lambda c: flatten_single(c, points),
    "coordinates as text": lambda c: change_polygons(c, lambda ring: [str(number) for number in ring]),
    "coordinates as floats": lambda c: change_polygons(c, lambda ring: [float(number) for number in ring]),
    "stray parts": lambda c: add_parts(c, [], [5, 5, 6, 6], [1, 1, 2, 2, 3, 3], [4, 4], [7, 7, 7, 7, 7, 7]),
    "damaged parts": lambda c: add_parts(
        c, [1, 2, 3, 4, 5, 6, 7], [0, 0, 1e9, 0, 0, 9], ["a"] * 6, None, [1, 2, 3, 4, 5, float("nan")]
    ),
    "run lengths as floats": float_runs,
    "box absent": lambda c: drop(c, "bbox"),
    "box null": lambda c: change_each(c, "bbox", lambda _: None),
    "box empty": lambda c: change_each(c, "bbox", lambda _: []),
    "box as text": lambda c: change_each(c, "bbox", lambda box: [f" {number:.3e}" for number in box]),
    "box as one text": lambda c: change_each(c, "bbox", str),
    "crowd flag as boolean": lambda c: change_each(c, "iscrowd", bool),
    "crowd flag as text": lambda c: change_each(c, "iscrowd", str),
    "crowd flag as float": lambda c: change_each(c, "iscrowd", float),
    "crowd flag as word": lambda c: change_each(c, "iscrowd", lambda flag: "True" if flag else "false"),
    "folder in the name": lambda c: change_images(c, file_name=lambda name: f"images/{name}"),
    "backslashes": lambda c: change_images(c, file_name=lambda name: f"data\\images\\{name}"),
    "leading dot": lambda c: change_images(c, file_name=lambda name: f"./{name}"),
    "path of another machine": lambda c: change_images(c, file_name=lambda name: f"/home/me/data/{name}"),
    "path of Windows": lambda c: change_images(c, file_name=lambda name: f"C:\\data\\{name}"),
    "folder above": lambda c: change_images(c, file_name=lambda name: f"../images/{name}"),
    "URL": lambda c: change_images(c, file_name=lambda name: f"https://host/x/{name}?token=1"),
    "suffix in capitals": lambda c: change_images(c, file_name=str.upper),
    "another type": lambda c: change_images(c, file_name=lambda name: name.replace(".png", ".JPG")),
    "no type": lambda c: change_images(c, file_name=lambda name: name.removesuffix(".png")),
}
ALSO_CANONICAL = {"leading dot", "coordinates as floats"}
"""Quirks that nobody needs to be told."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("quirks") / "pets")


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=contents(), names=st.lists(st.sampled_from(sorted(QUIRKS)), min_size=1, max_size=1))
def test_each_quirk_reads_as_the_canonical_file(folder: Path, content: Content, names: list[str]) -> None:
    expected, canonical = read_coco(content, folder)
    assert canonical.index_notes == {}
    assert all(sample.notes == {} and sample.skipped == {} for sample in expected)
    changed = copy.deepcopy(content)
    for name in names:
        QUIRKS[name](changed)
    samples, dataset = read_coco(changed, folder)
    assert_same_samples(samples, expected)
    alone = open_dataset(folder / "annotations.json")
    assert_same_samples(read_all(alone), expected)
    assert (alone.name, alone.index_notes) == (dataset.name, dataset.index_notes)  # type: ignore[attr-defined]
    if changed != content and not ALSO_CANONICAL.intersection(names):
        assert dataset.index_notes or any(sample.notes for sample in samples), names


@pytest.mark.parametrize("quirk", sorted(QUIRKS))
def test_quirks_of_the_same_objects(folder: Path, quirk: str) -> None:
    ring = [10, 5, 30, 5, 30, 25, 10, 25]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 40, "width": 60}],
        "annotations": [
            annotation_of(1, 1, [ring], 9, 0),
            annotation_of(2, 1, uncompressed(rectangle((40, 60), (5, 5, 9, 9))), 3, 1),
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
    }
    expected, _ = read_coco(content, folder)
    QUIRKS[quirk](content)
    samples, dataset = read_coco(content, folder)
    assert_same_samples(samples, expected)
    assert [(i.id, i.category_id, i.is_crowd, i.box) for i in samples[0].instances] == [
        (1, 9, False, (10, 5, 30, 25)),
        (2, 3, True, (5, 5, 9, 9)),
    ]
    is_noted = bool(dataset.index_notes or samples[0].notes)
    assert is_noted != (quirk in ALSO_CANONICAL)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(folder: Path, encoding: str) -> None:
    content = json.loads((make_coco(folder) / "annotations.json").read_text())
    expected, _ = read_coco(content, folder)
    samples, dataset = read_coco(content, folder, encoding=encoding)
    assert_same_samples(samples, expected)
    assert dataset.index_notes == {"file with a byte-order mark": 1}


def test_notes_are_counted_by_kind(tmp_path: Path) -> None:
    box = (10, 5, 30, 25)
    ring = [10, 5, 30, 5, 30, 25, 10, 25]
    objects = [
        annotation(1, 1, box, bbox=None),
        annotation(2, 1, box, bbox=[], category_id="3"),
        annotation(3, 1, box, bbox=["10", 5, 20, 20], iscrowd="0"),
        annotation(4, 1, box, segmentation=[ring, [1, 2, 3]], category_id=4),
        annotation(5, 1, box, segmentation=[ring, []], id="5"),
        annotation(6, 1, box, bbox=None, segmentation=[[1, 1]]),
    ]
    dataset = open_dataset(make_coco(tmp_path, objects))
    sample = dataset[0]
    assert sample.notes == {
        "box derived from segmentation": 2,  # not of what is left out
        "id written as text": 1,
        "number written as text": 1,
        "crowd flag not written as 0 or 1": 1,
        "damaged polygon part dropped": 1,
        "category id that the file does not list": 1,
        "polygon part without area dropped": 1,
    }
    assert sample.skipped == {"polygon without area": 1}
    assert [instance.category_id for instance in sample.instances] == [3, 3, 3, 4, 3]
    assert dataset.index_notes == {"id written as text": 1}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"category_id": 3.5}, "category id that is not an integer"),
        ({"category_id": True}, "category id that is not an integer"),
        ({"category_id": float("nan")}, "category id that is not an integer"),
        ({"category_id": "cat"}, "category id that is not an integer"),
        ({"category_id": 2**60}, "category id that is not an integer"),
        ({"category_id": None}, "missing category id"),
        ({"iscrowd": 2}, "crowd flag other than 0 or 1"),
        ({"iscrowd": "maybe"}, "crowd flag other than 0 or 1"),
        ({"iscrowd": []}, "crowd flag other than 0 or 1"),
        ({"bbox": [1, 2, 3]}, "damaged box"),
        ({"bbox": ["1", "2", "3", "x"]}, "damaged box"),
        ({"bbox": ["1_0", "2", "3", "4"]}, "damaged box"),
        ({"bbox": {"x": 1}}, "damaged box"),
        ({"bbox": "10 5 20"}, "damaged box"),
        ({"bbox": [1, 2, 3, True]}, "damaged box"),
        ({"bbox": [1, 2, -3, 4]}, "box without area"),
        ({"segmentation": [[]]}, "polygon without area"),
        ({"segmentation": [[1, 1, 2, 2], [3, 3, 4, 4, 5, 5]]}, "polygon without area"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "damaged mask"),
        ({"segmentation": "polygon"}, "damaged mask"),
        ({"segmentation": {"size": [40, 60], "counts": [1.5, 2398.5]}}, "damaged mask"),
        ({"segmentation": {"size": [60, 40], "counts": [1, 2399]}}, "mask of another size than the image"),
    ],
)
def test_ambiguous_objects_are_skipped(tmp_path: Path, changes: Content, reason: str) -> None:
    good = annotation(2, 1, (0, 0, 8, 8))
    sample = open_dataset(make_coco(tmp_path, [annotation(1, 1, (10, 5, 30, 25), **changes), good]))[0]
    assert [instance.id for instance in sample.instances] == [2]
    assert sample.skipped == {reason: 1}
    assert sample.notes == {}


@pytest.mark.parametrize("image_id", ["one", 1.5, True, None, float("nan"), [1], 2**70])
def test_annotations_of_unknown_images_are_counted(tmp_path: Path, image_id: Any) -> None:
    lost = annotation(1, 1, (10, 5, 30, 25)) | {"image_id": image_id}
    assert open_dataset(make_coco(tmp_path, [lost])).index_skipped == {"unknown image id": 1}  # type: ignore[attr-defined]


def test_files_with_one_category_or_none(tmp_path: Path) -> None:
    lone = annotation(1, 1, (10, 5, 30, 25))
    del lone["category_id"]
    make_coco(tmp_path, [lone], categories=[{"id": "7", "name": "cat"}])
    sample = open_dataset(tmp_path)[0]
    assert sample.instances[0].category_id == 7
    assert sample.notes == {"missing category id taken as the only category": 1}
    make_coco(tmp_path, [lone], categories=[])
    sample = open_dataset(tmp_path)[0]
    assert (sample.instances[0].category_id, sample.notes) == (1, {})


def test_one_id_for_two_categories_is_refused(tmp_path: Path) -> None:
    make_coco(tmp_path, categories=[{"id": 3, "name": "cat"}, {"id": "3", "name": "dog"}])
    with pytest.raises(ValueError, match="expected unique category ids, got 3 for 'cat' and 'dog'"):
        open_dataset(tmp_path)
    make_coco(tmp_path, categories=[{"id": 3, "name": "cat"}, {"id": 3.0, "name": "cat"}, {"id": 9}])
    assert open_dataset(tmp_path).category_names == {3: "cat", 9: "9"}  # type: ignore[attr-defined]
