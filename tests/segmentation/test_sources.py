"""Images by all names that a command line can give them."""

import functools
import http.server
import io
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from saqsam.segmentation import sources
from saqsam.segmentation.sources import find_sources
from support.coco_folder import make_coco, picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("b.png", "a.png", "deep/c.png", "deep/d.jpg")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture((6, 8), seed)).save(path)
    return tmp_path / "photos"


def names(*given: object) -> list[str]:
    return [source.name for source in find_sources([str(one) for one in given])]


def test_files_folders_and_patterns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(folder / "b.png") == ["b.png"]
    assert names(folder) == ["a.png", "b.png"]
    assert names(folder / "deep" / "d.jpg", folder) == ["d.jpg", "a.png", "b.png"]
    assert names(folder / "*.png") == ["a.png", "b.png"]
    assert names(folder / "**" / "*.png") == ["a.png", "b.png", "deep/c.png"]
    assert names(folder / "*" / "?.jpg") == ["deep/d.jpg"]
    monkeypatch.chdir(folder)
    assert names("*.png") == ["a.png", "b.png"]
    assert names("deep/*") == ["c.png", "d.jpg"]
    (first, *_) = find_sources([str(folder)])
    np.testing.assert_array_equal(first.read()[0], picture((6, 8), 1))
    assert (first.image_id, first.path) == (1, folder / "a.png")


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    Image.fromarray(picture((6, 8))).save(tmp_path / "a[1].png")
    assert names(tmp_path / "a[1].png") == ["a[1].png"]


def test_masks_that_were_written_beside_images_are_no_images(folder: Path) -> None:
    for name in ("a.masks.png", "other.masks.png"):
        Image.fromarray(picture((6, 8))).save(folder / name)
    assert names(folder) == ["a.png", "b.png", "other.masks.png"]
    assert names(folder / "a.masks.png") == ["a.masks.png"]


def test_a_list_names_images_relative_to_itself(folder: Path) -> None:
    path = folder.parent / "list.txt"
    path.write_text(
        f"photos/b.png\n\n# a comment\nphotos/deep/c.png\n{folder}/a.png\n../{folder.parent.name}/photos/a.png"
    )
    found = find_sources([str(path)])
    assert [source.name for source in found] == ["photos/b.png", "photos/deep/c.png", "a.png", "a.png"]
    assert all(source.read()[0].shape == (6, 8, 3) for source in found)


def test_annotated_boxes_are_prompts(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco")
    for given in (coco, coco / "annotations.json"):
        found = find_sources([str(given)])
        assert [source.image_id for source in found] == [1, 7]
        assert all(source.has_prompts for source in found)
        prompts = found[0].read()[2]
        assert [(one.box, one.category_id) for one in prompts] == [((10, 5, 30, 25), 3), ((0, 0, 8, 8), 3)]
        assert found[0].categories == {3: "cat", 9: "dog"}


def test_detections_are_prompts_with_their_scores(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco")
    results = tmp_path / "results.json"
    boxes = [{"image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 20], "score": 0.5}]
    results.write_text(json.dumps(boxes))
    first, second = find_sources([str(coco)], results)
    assert first.read()[2] == ()
    (prompt,) = second.read()[2]
    assert (prompt.box, prompt.category_id, prompt.score) == ((1, 2, 11, 22), 9, 0.5)


def test_scenes_bring_their_boxes() -> None:
    found = find_sources(["scenes"])
    assert len(found) == 100
    assert found[0].read()[2]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    buffer = io.BytesIO()
    Image.fromarray(picture((6, 8))).save(buffer, "PNG")
    (source,) = find_sources(["-"])
    give(buffer.getvalue())
    np.testing.assert_array_equal(source.read()[0], picture((6, 8)))
    for content, words in ((b"", "found nothing"), (b"text", "^standard input: expected a readable image")):
        give(content)
        with pytest.raises(ValueError, match=words):
            source.read()
    monkeypatch.setattr(sources, "MAX_DOWNLOAD", 10)
    give(buffer.getvalue())
    with pytest.raises(ValueError, match="at most 10 bytes"):
        source.read()


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_urls(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = find_sources([f"{address}/deep/c.png?size=large"])
    assert source.name == "c.png"
    np.testing.assert_array_equal(source.read()[0], picture((6, 8), 2))
    (missing,) = find_sources([f"{address}/none.png"])
    with pytest.raises(ValueError, match=r"none\.png.*cannot be read: .*not found"):
        missing.read()
    (page,) = find_sources([f"{address}/"])
    with pytest.raises(ValueError, match="expected a readable image"):
        page.read()
    monkeypatch.setattr(sources, "MAX_DOWNLOAD", 10)
    with pytest.raises(ValueError, match="at most 10 bytes"):
        source.read()
    with pytest.raises(ValueError, match="cannot be read"):
        find_sources(["http://127.0.0.1:9/a.png"])[0].read()


def test_what_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco")
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    for given, words in (
        ([folder / "none.png"], "no image .*none.png: no such file or folder"),
        ([folder / "*.gif"], r"no image matches .*\*.gif"),
        ([tmp_path / "empty.txt"], "expected the path of an image on each line"),
        ([coco, folder], "one annotated dataset, or images and folders"),
        ([coco, coco], "one annotated dataset"),
    ):
        with pytest.raises(ValueError, match=words):
            find_sources([str(one) for one in given])
    with pytest.raises(ValueError, match="detections: expected images from one annotation file"):
        find_sources([str(folder)], tmp_path / "results.json")
