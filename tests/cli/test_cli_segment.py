"""`saqsam segment`: images and prompts of all kinds, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import saqsam
from saqsam.cli import app
from saqsam.cli.outputs import claim_output
from saqsam.data.images import read_image
from saqsam.segmentation.formats.registry import FORMATS
from saqsam.segmentation.writer import MARKER
from support.coco_folder import make_coco, picture
from support.command_line import assert_done, assert_refused, run

EVERYTHING = ("--points-per-side", "3", "--pred-iou", "0", "--stability", "0")


@pytest.mark.parametrize("name", [".", "folder", "folder/", "folder/..", "./", ""])
@pytest.mark.parametrize("prompt", [("--point", "3,4"), ("--everything",)])
def test_a_folder_without_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, prompt: tuple[str, ...]
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert_refused(run("segment", "sam-mini", name, *prompt), "expected images", "found none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_the_root_folder_is_no_output() -> None:
    with (
        pytest.raises(ValueError, match="cannot write /: "),
        claim_output(Path("/"), overwrite=True),
    ):
        pytest.fail("the root was claimed")


def test_a_tiff_of_several_pages_says_that_the_first_is_read(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    pages = [Image.fromarray(picture((20, 30), seed)) for seed in range(2)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    result = run("segment", packed, path, "--point", "3,4")
    assert_done(result)
    assert "first of several pages or frames read" in result.stderr


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        Image.fromarray(picture((40, 60), seed)).save(folder / name)
    return folder


def test_a_folder_of_images_becomes_one_coco_file(packed: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.json"
    prompts = ("--box", "5,5,30,30", "--points", "40,20;10,10,0", "--point", "1,1,0")
    result = run("segment", packed, photos, *prompts, "--out", out)
    assert_done(result)
    assert result.stdout.splitlines() == ["6 masks in 3 images", f"masks: {out}"]
    document = json.loads(out.read_text())
    assert [image["file_name"] for image in document["images"]] == ["a.png", "b.png", "c.png"]
    assert [one["prompt"] for one in document["annotations"][:2]] == [
        "box 5,5,30,30, point 1,1,0",
        "points 40,20;10,10,0;1,1,0",
    ]
    predictor = saqsam.Predictor(*saqsam.load(packed))
    predictor.set_image(read_image(photos / "b.png"))
    masks, ious, _ = predictor.predict([[40, 20], [10, 10], [1, 1]], [1, 0, 0], multimask_output=False)
    found = document["annotations"][3]
    assert found["image_id"] == 2
    assert found["area"] == masks[0].sum()
    assert found["predicted_iou"] == pytest.approx(float(ious[0]), abs=1e-6)
    assert_refused(run("segment", packed, photos, *prompts, "--out", out), "exists", "--overwrite")
    assert_done(run("segment", packed, photos, *prompts, "--out", out, "--overwrite"))


@pytest.mark.parametrize(
    ("form", "files"),
    [
        ("overlay", ["a.png", "b.png", "c.png"]),
        ("labels", ["a.png", "b.png", "c.png"]),
        ("masks", ["a/0001.png", "b/0001.png", "c/0001.png"]),
        ("npz", ["a.npz", "b.npz", "c.npz"]),
        ("labelme", ["a.json", "b.json", "c.json"]),
        ("yolo", ["a.txt", "b.txt", "c.txt", "classes.txt"]),
        ("geojson", ["a.geojson", "b.geojson", "c.geojson"]),
    ],
)
def test_other_formats_become_a_folder(
    packed: Path, photos: Path, tmp_path: Path, form: str, files: list[str]
) -> None:
    arguments = ("segment", packed, photos, "--box", "5,5,30,30", "--format", form, "--out")
    out = tmp_path / "out"
    assert_done(run(*arguments, out))
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert written == [MARKER, *files]
    assert_refused(run(*arguments, out), "exists")
    assert_done(run(*arguments, out, "--overwrite"))
    (out / "notes.doc").write_text("mine")
    assert_refused(run(*arguments, out, "--overwrite"), "holds notes.doc, which is not a mask")
    if not FORMATS[form].is_folder:
        assert_refused(run(*arguments, tmp_path / f"one{FORMATS[form].suffix}"), "a folder for 3 images")


def test_annotated_images_bring_their_prompts(packed: Path, tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco")
    out = tmp_path / "masks.json"
    assert_done(run("segment", packed, coco, "--out", out))
    document = json.loads(out.read_text())
    assert [(one["image_id"], one["category_id"]) for one in document["annotations"]] == [
        (1, 3),
        (1, 3),
        (7, 9),
    ]
    assert {one["id"]: one["name"] for one in document["categories"]} == {3: "cat", 9: "dog"}


@pytest.mark.parametrize("prompt", [("--box", "2,2,20,20"), ("--everything", *EVERYTHING)])
def test_other_prompts_replace_annotated_boxes(packed: Path, tmp_path: Path, prompt: tuple[str, ...]) -> None:
    coco = make_coco(tmp_path / "coco")
    out = tmp_path / "masks.json"
    assert_done(run("segment", packed, coco, *prompt, "--out", out))
    document = json.loads(out.read_text())
    assert document["categories"] == [{"id": 1, "name": "object"}]
    assert {one["category_id"] for one in document["annotations"]} == {1}
    if prompt[0] == "--box":
        assert [one["image_id"] for one in document["annotations"]] == [1, 7]
    assert_done(run("segment", packed, coco, *prompt, "--format", "yolo", "--out", tmp_path / "yolo"))


def test_ids_without_names_are_one_category(packed: Path, tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco")
    content = json.loads((coco / "annotations.json").read_text())
    del content["categories"]
    (coco / "annotations.json").write_text(json.dumps(content))
    assert_done(run("segment", packed, coco, "--format", "yolo", "--out", tmp_path / "yolo"))
    assert (tmp_path / "yolo" / "classes.txt").read_text() == "object\n"


def test_prompts_of_single_images(packed: Path, photos: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("image,category,x0,y0,x1,y1\nb.png,cat,1,2,30,20\n")
    out = tmp_path / "masks.json"
    result = run("segment", packed, photos, "--prompts", prompts, "--out", out)
    assert_done(result)
    assert "1 mask in 3 images (2 without prompts)" in result.stdout
    (found,) = json.loads(out.read_text())["annotations"]
    assert (found["image_id"], found["prompt"]) == (2, "box 1,2,30,20")


def test_a_bad_image_among_others_is_left_out(packed: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "b.png").write_text("no picture")
    Image.fromarray(picture((4, 4))).save(photos / "d.png")
    result = run("segment", packed, photos, "--box", "5,5,30,30", "--out", tmp_path / "masks.json")
    assert result.exit_code == 0
    assert "skipped b.png: " in result.stderr
    assert "skipped d.png: box: expected one that meets the 4 x 4 px image" in result.stderr
    assert "2 masks in 2 images (2 images skipped)" in result.stdout
    for path in photos.iterdir():
        path.write_text("no picture")
    out = tmp_path / "none.json"
    assert_refused(run("segment", packed, photos, "--box", "5,5,30,30", "--out", out), "none of 4 images")
    assert not out.exists()


def test_masks_as_prompts_and_tiles(packed: Path, tmp_path: Path) -> None:
    image, mask = tmp_path / "large.png", np.zeros((150, 200), np.uint8)
    Image.fromarray(picture((150, 200))).save(image)
    mask[30:60, 100:140] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "masks.npz"
    tiles = ("--tile", "64", "--overlap", "16")
    assert_done(run("segment", packed, image, "--mask", tmp_path / "mask.png", *tiles, "--out", out))
    with np.load(out) as arrays:
        (found,), (box,) = arrays["masks"], arrays["boxes"]
    assert found.shape == (150, 200)
    assert box[0] >= 84
    assert box[2] <= 164  # within the one tile that shows it
    result = run("segment", packed, image, "--everything", *EVERYTHING, *tiles, "--out", out, "--overwrite")
    assert_done(result)
    assert "masks from 3^2 points" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--point", "3,4,2"), "--point must look like x,y or x,y,0"),
        (("--points", "3,4;5"), "--points must look like x,y or x,y,0"),
        (("--points", "3,4,0;5,6,0"), "--points needs a foreground point"),
        (("--point", "3,4,0"), "--point x,y,0 is a background point"),
        (("--box", "1,2,30,30", "--prompts", "p.json"), "not both"),
        (("--prompts", "p.json", "--detections", "d.json"), "not both"),
        (("--everything", "--prompts", "p.json"), "--everything or prompts, not both"),
        (("--prompts", "none.json"), "none.json"),
        (("--detections", "none.json"), "expected images from one annotation file"),
        (("--mask", "none.png"), "none.png"),
        (("--box", "1,2,30,30", "--overlap", "8"), "--overlap needs --tile"),
        (("--box", "1,2,30,30", "--tile", "64", "--overlap", "64"), "overlap: expected 0 to 63"),
        (("--box", "1,2,30,30", "--format", "bmp"), "--format: expected overlay"),
        (("--box", "1,2,30,30"), "--out: needed for the masks of several images"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    packed: Path, photos: Path, arguments: tuple[str, ...], words: str
) -> None:
    assert_refused(run("segment", packed, photos, *arguments), words)
    assert sorted(path.name for path in photos.parent.iterdir()) == ["photos"]


def test_a_folder_with_the_pictures_is_not_replaced(packed: Path, photos: Path) -> None:
    result = run("segment", packed, photos, "--box", "5,5,30,30", "--out", photos, "--overwrite")
    assert_refused(result, "holds the images to segment")
    assert len(list(photos.iterdir())) == 3


def test_a_folder_of_other_pictures_is_not_replaced(packed: Path, photos: Path, tmp_path: Path) -> None:
    album = tmp_path / "album"
    album.mkdir()
    Image.fromarray(picture((40, 60))).save(album / "mine.png")
    result = run("segment", packed, photos, "--box", "5,5,30,30", "--out", album, "--overwrite")
    assert_refused(result, "holds files that saqsam segment did not write")
    assert [path.name for path in album.iterdir()] == ["mine.png"]


def test_standard_input_needs_a_place_for_its_masks(packed: Path, tmp_path: Path) -> None:
    image = Path(tmp_path / "a.png")
    Image.fromarray(picture((40, 60))).save(image)
    arguments = ["segment", str(packed), "-", "--point", "9,9"]
    runner = CliRunner()
    assert_refused(runner.invoke(app.app, arguments, input=image.read_bytes()), "--out: needed for the masks")
    out = tmp_path / "m.png"
    result = runner.invoke(app.app, [*arguments, "--out", str(out)], input=image.read_bytes())
    assert_done(result)
    assert read_image(out).shape == (40, 60, 3)
