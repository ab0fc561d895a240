"""Files of prompts: JSON and CSV say the same, and wrong ones are refused with their place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saqsam.segmentation.prompt_files import read_prompts
from saqsam.segmentation.prompts import Prompt


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_json_and_csv_give_the_same_prompts(tmp_path: Path) -> None:
    by_image = {
        "a.jpg": [
            {"box": [1, 2, 30, 40], "category": "cat"},
            {"points": [[5, 6], [7, 8.5, 0]], "box": [0, 0, 9, 9], "category": "dog"},
        ],
        "sub/b.jpg": [{"points": [3, 4], "category": "cat"}],
    }
    listed = [{"image": image, **one} for image, several in by_image.items() for one in several]
    table = """image,object,category,x0,y0,x1,y1,x,y,label
a.jpg,,cat,1,2,30,40,,,
a.jpg,2,dog,0,0,9,9,5,6,1
a.jpg,2,dog,,,,,7,8.5,0
sub/b.jpg,,cat,,,,,3,4,
"""
    files = [
        read_prompts(write(tmp_path / "a.json", by_image)),
        read_prompts(write(tmp_path / "b.json", listed)),
        read_prompts(write(tmp_path / "c.csv", table)),
    ]
    for found in files:
        assert found.categories == {1: "cat", 2: "dog"}
        assert found.prompts == {
            "a.jpg": (
                Prompt(box=(1, 2, 30, 40), category_id=1),
                Prompt(box=(0, 0, 9, 9), points=((5, 6), (7, 8.5)), labels=(1, 0), category_id=2),
            ),
            "sub/b.jpg": (Prompt(points=((3, 4),), labels=(1,), category_id=1),),
        }


def test_a_prompt_without_a_category_is_an_object(tmp_path: Path) -> None:
    found = read_prompts(write(tmp_path / "a.json", {"a.jpg": [{"box": [1, 2, 3, 4]}]}))
    assert found.categories == {1: "object"}


def test_a_mask_is_read_from_its_picture(tmp_path: Path) -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:5] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = read_prompts(write(tmp_path / "a.json", {"a.jpg": [{"mask": "mask.png"}]}))
    (prompt,) = found.prompts["a.jpg"]
    assert prompt.mask is not None
    np.testing.assert_array_equal(prompt.mask, mask > 0)


def test_images_are_found_by_whole_or_last_name(tmp_path: Path) -> None:
    content = {name: [{"box": [i, 0, 9, 9]}] for i, name in enumerate(("x/a.jpg", "b.jpg", "c.jpg"))}
    found = read_prompts(write(tmp_path / "a.json", content))
    prompts = found.match(["x/a.jpg", "y/a.jpg", "deep/b.jpg", "c.jpg", "d.jpg"])
    assert [[one.box and one.box[0] for one in several] for several in prompts] == [[0], [], [1], [2], []]
    with pytest.raises(ValueError, match=r"prompts for images that are not given: .*c\.jpg"):
        found.match(["x/a.jpg", "b.jpg"])
    with pytest.raises(ValueError, match=r"'b\.jpg' fits several images"):
        found.match(["x/a.jpg", "1/b.jpg", "2/b.jpg", "c.jpg"])


WRONG: list[tuple[str, Any, str]] = [
    ("a.json", "{", "expected JSON"),
    ("a.json", 3, "expected an object or a list, got int"),
    ("a.json", {}, "at least one prompt"),
    ("a.json", {"a.jpg": {"box": [1, 2, 3, 4]}}, "'a.jpg': expected a list of prompts, got dict"),
    ("a.json", [{"box": [1, 2, 3, 4]}], "prompt 1: expected an object with the name of an image"),
    ("a.json", {"a.jpg": [{"box": [1, 2, 3]}]}, r"prompt 1: expected a box \[x0, y0, x1, y1\]"),
    ("a.json", {"a.jpg": [{"box": [1, 2, 3, "4"]}]}, "prompt 1: expected a box"),
    ("a.json", '{"a.jpg": [{"box": [1, 2, 3, NaN]}]}', "prompt 1: expected a box"),
    ("a.json", {"a.jpg": [{"points": [[1, 2, 3]]}]}, r"a point \[x, y\] or \[x, y, 0\]"),
    ("a.json", {"a.jpg": [{"points": []}]}, "expected a list of points"),
    ("a.json", {"a.jpg": [{"bbox": [1, 2, 3, 4]}]}, "expected box, points, mask, category, got .*bbox"),
    ("a.json", {"a.jpg": [{"category": "cat"}]}, "expected a box, points or a mask"),
    ("a.json", {"a.jpg": [{"box": [1, 2, 3, 4], "category": 3}]}, "the name of a category, got 3"),
    ("a.json", {"a.jpg": [{"mask": "none.png"}]}, "none.png"),
    ("a.csv", "", "expected the columns image and .*found no row"),
    ("a.csv", "image,x,y,z\na,1,2,3\n", "expected the columns"),
    ("a.csv", "image,x0,y0\na,1,2\n", "expected the columns"),
    ("a.csv", "image,x,y\na.jpg,1,b\n", "line 2: expected numbers in x, y, got"),
    ("a.csv", "image,x,y\n,1,2\n", "line 2: expected the name of an image"),
    ("a.csv", "image,x,y\na.jpg,,\n", "line 2: expected a box or a point"),
    ("a.csv", "image,x,y,label\na.jpg,1,2,7\n", "line 2: expected a label 0 or 1, got"),
    ("a.csv", "image,object,x0,y0,x1,y1\na,1,1,2,3,4\na,1,1,2,3,4\n", "line 3: expected one box"),
    (
        "a.csv",
        "image,object,category,x,y\na,1,cat,1,2\na,1,dog,3,4\n",
        "line 3: expected one category for an object, got 'cat' and 'dog'",
    ),
    ("a.txt", "a", "expected prompts as .json or .csv"),
]


@pytest.mark.parametrize(("name", "content", "words"), WRONG)
def test_wrong_files_are_refused(tmp_path: Path, name: str, content: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_prompts(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["none.json", "none.csv"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        read_prompts(tmp_path / name)
