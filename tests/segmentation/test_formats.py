"""Masks come back from every format as they were, through the readers of other projects where they are installed."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle_codec
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from saqsam.data.coco import CocoDataset
from saqsam.data.label_png import read_label_map
from saqsam.data.rle import decode_mask, encode_mask, segmentation_to_rle
from saqsam.segmentation.formats.registry import FORMATS, Context, format_of
from saqsam.segmentation.formats.yolo import class_names
from saqsam.segmentation.objects import SegmentedImage, SegmentedObject
from saqsam.segmentation.writer import CLASSES, MaskWriter, output_stems
from support.coco_folder import picture

SIZE = (60, 90)
CATEGORIES = {3: "cat", 9: "dog"}


def masks() -> list[NDArray[np.bool_]]:
    """A disc, a ring, two parts, and nothing."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    away = np.hypot(rows - 30, columns - 60)
    two = np.zeros(SIZE, dtype=bool)
    two[2:12, 3:20] = two[20:30, 10:14] = True
    return [np.hypot(rows - 40, columns - 20) < 12, (away < 25) & (away > 9), two, np.zeros(SIZE, dtype=bool)]


def segmented(name: str = "photo.jpg", image_id: int = 5, path: Path | None = None) -> SegmentedImage:
    objects = tuple(
        SegmentedObject(
            encode_mask(mask), 0.9 - number / 10, 0.8, f"point {number},1", 9 if number % 2 else 3
        )
        for number, mask in enumerate(masks())
    )
    return SegmentedImage(image_id, name, SIZE, objects, path, CATEGORIES)


def files(form: str, *, tolerance: float = 0.0, image: SegmentedImage | None = None) -> dict[str, bytes]:
    context = Context(picture(SIZE), "../photo.jpg", tolerance)
    return dict(FORMATS[form].make_files(segmented() if image is None else image, context))


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 1.0


def without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_fill_holes

    return np.asarray(binary_fill_holes(mask))


@pytest.mark.parametrize(
    ("form", "tolerance"), [("coco", 0.0), ("coco-polygons", 0.0), ("coco-polygons", 1.0)]
)
def test_coco_files_are_read_by_pycocotools_and_by_saqsam(
    tmp_path: Path, form: str, tolerance: float, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    names = ["photo.jpg", "deep/other.png"]
    writer = MaskWriter(
        FORMATS[form], tmp_path / "annotations.json", names, is_folder=False, tolerance=tolerance
    )
    for number, name in enumerate(names):
        writer.add(segmented(name, image_id=5 + number), picture(SIZE))
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(SIZE)).save(tmp_path / "images" / name)
    writer.finish()
    coco = COCO(tmp_path / "annotations.json")
    assert coco.getImgIds() == [5, 6]
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == CATEGORIES
    expected = [without_holes(mask) for mask in masks()] if "polygons" in form else masks()
    for image_id in (5, 6):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
        assert len(annotations) == 4
        for one, mask, original in zip(annotations, expected, masks(), strict=True):
            if one["area"]:
                assert iou(decode_mask(segmentation_to_rle(coco.annToRLE(one), SIZE)), mask) > (
                    0.9 if tolerance else 0.9999
                )
            x, y, width, height = map(int, one["bbox"])
            assert one["area"] == original.sum() == original[y : y + height, x : x + width].sum()
        assert [one["predicted_iou"] for one in annotations] == pytest.approx([0.9, 0.8, 0.7, 0.6])
    results = [{**one} for one in coco.dataset["annotations"] if one["area"]]
    assert len(coco.loadRes(results).getAnnIds()) == 6
    sample = CocoDataset(tmp_path / "images", tmp_path / "annotations.json")[0]
    assert [one.category_id for one in sample.instances] == [3, 9, 3]
    capfd.readouterr()  # pycocotools prints


def test_label_maps_number_the_objects_with_small_ones_on_top(tmp_path: Path) -> None:
    content = files("labels")[".png"]
    labels = np.array(Image.open(io.BytesIO(content)))
    disc, ring, two, _ = masks()
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(labels == 3, two)
    np.testing.assert_array_equal(labels == 1, disc & ~two)
    np.testing.assert_array_equal(labels == 2, ring & ~disc & ~two)
    (tmp_path / "labels.png").write_bytes(content)
    np.testing.assert_array_equal(read_label_map(tmp_path / "labels.png"), labels)
    many = SegmentedImage(1, "a.png", SIZE, segmented().objects[:1] * 300)
    deep = Image.open(io.BytesIO(files("labels", image=many)[".png"]))
    assert np.array(deep).max() == 300


def test_mask_pictures_and_arrays_hold_the_masks() -> None:
    pictures = files("masks")
    assert list(pictures) == ["/0001.png", "/0002.png", "/0003.png", "/0004.png"]
    with np.load(io.BytesIO(files("npz")[".npz"]), allow_pickle=False) as arrays:
        assert arrays["masks"].dtype == bool
        for content, mask, array in zip(pictures.values(), masks(), arrays["masks"], strict=True):
            np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(content))) == 255, mask)
            np.testing.assert_array_equal(array, mask)
        assert arrays["boxes"].tolist()[2] == [3, 2, 20, 30]
        assert arrays["prompts"].tolist()[1] == "point 1,1"
        assert arrays["category_ids"].tolist() == [3, 9, 3, 9]
    empty = SegmentedImage(1, "a.png", SIZE, ())
    with np.load(io.BytesIO(files("npz", image=empty)[".npz"])) as arrays:
        assert arrays["masks"].shape == (0, *SIZE)


def test_the_overlay_colors_the_masks_alone() -> None:
    drawn = np.array(Image.open(io.BytesIO(files("overlay")[".png"])))
    changed = (drawn != picture(SIZE)).any(2)
    union = np.logical_or.reduce(masks())
    assert changed[union].mean() > 0.99
    assert (changed & ~union).sum() < 0.5 * union.sum()  # outlines are a pixel wide, and smooth


def fill(polygons: list[Any]) -> NDArray[np.bool_]:
    """Fill polygons at four times the resolution, so that corners of pixels are places on the raster."""
    scale = 4
    canvas = Image.new("1", (SIZE[1] * scale, SIZE[0] * scale))
    for polygon in polygons:
        ImageDraw.Draw(canvas).polygon([(x * scale, y * scale) for x, y in polygon], fill=1)
    return np.array(canvas)[scale // 2 :: scale, scale // 2 :: scale]


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_labelme_files_hold_the_outlines_of_all_parts(tolerance: float) -> None:
    document = json.loads(files("labelme", tolerance=tolerance)[".json"])
    assert (document["imageHeight"], document["imageWidth"]) == SIZE
    assert document["imagePath"] == "../photo.jpg"
    labels = [(shape["label"], shape["group_id"]) for shape in document["shapes"]]
    assert labels == [("cat", None), ("dog", None), ("cat", 3), ("cat", 3)]
    found = [fill([s["points"]]) for s in document["shapes"][:2]]
    found.append(fill([s["points"] for s in document["shapes"][2:]]))
    for mask, expected in zip(found, masks(), strict=False):
        assert iou(mask, without_holes(expected)) > (0.93 if tolerance else 0.999)


@pytest.mark.filterwarnings("ignore")  # of labelme's own
def test_labelme_itself_reads_the_file(tmp_path: Path) -> None:
    label_file = pytest.importorskip("labelme._label_file", reason="labelme is not installed")
    image = tmp_path / "photo.jpg"
    Image.fromarray(picture(SIZE)).save(image)
    writer = MaskWriter(
        FORMATS["labelme"], tmp_path / "photo.json", ["photo.jpg"], is_folder=False, tolerance=1.0
    )
    writer.add(segmented(path=image), picture(SIZE))
    writer.finish()
    read = label_file.read_label_file(str(tmp_path / "photo.json"))
    assert [shape["label"] for shape in read.shapes] == ["cat", "dog", "cat", "cat"]


def read_yolo(text: bytes) -> list[tuple[int, NDArray[np.float64]]]:
    """Read the text as its documentation describes it: class, then x y in shares of the image."""
    rows = [line.split() for line in text.decode().splitlines()]
    return [(int(row[0]), np.array(row[1:], dtype=float).reshape(-1, 2) * (SIZE[1], SIZE[0])) for row in rows]


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_yolo_text_holds_one_polygon_an_object(tolerance: float) -> None:
    found = read_yolo(files("yolo", tolerance=tolerance)[".txt"])
    assert [number for number, _ in found] == [0, 1, 0]  # nothing for the empty mask
    for (_, polygon), expected in zip(found, masks(), strict=False):
        assert polygon.min() >= 0
        assert iou(fill([polygon]), without_holes(expected)) > (0.9 if tolerance else 0.97)
    assert class_names(segmented()) == b"cat\ndog\n"


def test_geojson_of_an_image_without_a_place_is_in_pixels() -> None:
    document = json.loads(files("geojson")[".geojson"])
    assert document["frame"] == "pixels"
    kinds = [feature["geometry"] and feature["geometry"]["type"] for feature in document["features"]]
    assert kinds == ["Polygon", "Polygon", "MultiPolygon", None]
    outer, hole = document["features"][1]["geometry"]["coordinates"]
    assert outer[0] == outer[-1]
    ring = fill([outer]) & ~fill([hole])
    assert iou(ring, masks()[1]) > 0.99
    assert document["features"][1]["properties"]["category"] == "dog"


@pytest.mark.filterwarnings("ignore")  # of rasterio's own
def test_geojson_of_a_georeferenced_tiff_is_in_degrees(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    from rasterio.transform import from_origin
    from rasterio.warp import transform

    path = tmp_path / "place.tif"
    origin = from_origin(500_000, 5_000_000, 2.0, 2.0)
    with rasterio.open(
        path, "w", driver="GTiff", height=SIZE[0], width=SIZE[1], count=3, dtype="uint8", crs="EPSG:32633",
        transform=origin,
    ) as file:  # fmt: skip
        file.write(picture(SIZE).transpose(2, 0, 1))
    document = json.loads(files("geojson", image=segmented("place.tif", path=path))[".geojson"])
    assert document["frame"] == "longitude, latitude"
    coordinates = document["features"][2]["geometry"]["coordinates"]
    ring = np.array(coordinates[0][0])
    x, y = transform("EPSG:4326", "EPSG:32633", *ring.T)
    corners = np.stack([(np.array(x) - 500_000) / 2, (5_000_000 - np.array(y)) / 2], 1)
    assert corners.min(0) == pytest.approx([3, 2], abs=1e-3)
    assert corners.max(0) == pytest.approx([20, 12], abs=1e-3)
    turned = np.roll(ring, -1, axis=0)
    assert np.sum(ring[:, 0] * turned[:, 1] - turned[:, 0] * ring[:, 1]) > 0  # counterclockwise


def test_files_are_named_by_their_images(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "deep/b.tif", "c.d.png"]
    assert output_stems(names) == {
        "a.jpg": "a.jpg",
        "a.png": "a.png",
        "deep/b.tif": "deep/b",
        "c.d.png": "c.d",
    }
    with pytest.raises(ValueError, match=r"different names, got a\.jpg twice"):
        output_stems(["a.jpg", "b.jpg", "a.jpg"])
    writer = MaskWriter(FORMATS["yolo"], tmp_path / "out", names, is_folder=True, tolerance=1.0)
    for name in names:
        writer.add(segmented(name), picture(SIZE))
    writer.finish()
    written = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.txt")
    )
    assert written == ["a.jpg.txt", "a.png.txt", "c.d.txt", CLASSES, "deep/b.txt"]


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        (None, None, "overlay"),
        ("a.png", None, "overlay"),
        ("a.json", None, "coco"),
        ("a.npz", None, "npz"),
        ("a.txt", None, "yolo"),
        ("a.geojson", None, "geojson"),
        ("folder", None, "overlay"),
        ("a.json", "labelme", "labelme"),
        ("a.png", "labels", "labels"),
        ("v1.5", "labels", "labels"),
        ("folder", "coco", "coco"),
    ],
)
def test_the_format_follows_from_the_name(path: str | None, name: str | None, expected: str) -> None:
    assert format_of(None if path is None else Path(path), name).name == expected


@pytest.mark.parametrize(
    ("path", "name", "words"),
    [
        ("a.jpg", None, "--out: expected a name that ends in .png, .json"),
        ("a.png", "coco", "--out: expected a name that ends in .json for coco"),
        (None, "jpeg", "--format: expected overlay, coco"),
    ],
)
def test_formats_that_do_not_fit_are_refused(path: str | None, name: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        format_of(None if path is None else Path(path), name)


def test_too_many_objects_for_a_label_map_are_refused() -> None:
    one = segmented().objects[0]
    many = SegmentedImage(1, "a.png", SIZE, (one,) * 65_536)
    with pytest.raises(ValueError, match="at most 65,535 objects, got 65,536"):
        files("labels", image=many)


def test_the_box_and_area_come_from_the_run_lengths() -> None:
    one = segmented().objects[2]
    assert one.box == (3, 2, 20, 30)
    assert one.area == int(rle_codec.area(one.rle)) == masks()[2].sum()


def test_yolo_text_has_no_class_for_an_unlisted_category() -> None:
    image = replace(segmented(), categories={3: "cat"})
    with pytest.raises(ValueError, match=r"photo\.jpg: category 9 of an object is not among the categories"):
        files("yolo", image=image)
