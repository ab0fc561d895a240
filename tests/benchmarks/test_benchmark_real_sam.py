"""The benchmark of an original SAM on COCO, on a tiny model and a COCO root of eight pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from support.coco_folder import CATEGORIES, annotation, compressed, picture, rectangle
from support.script_modules import scripts
from support.tiny_sam import tiny_processor, tiny_sam

SIZE = (48, 64)
BOXES = [(4, 6, 30, 28), (32, 10, 60, 44)]


@pytest.fixture(scope="module")
def real_sam() -> Iterator[ModuleType]:
    with scripts("benchmarks", ["real_sam"]) as found:
        yield found["real_sam"]


def make_split(root: Path, split: str, count: int) -> None:
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        name = f"{number:012d}.jpg"
        Image.fromarray(picture(SIZE, number)).save(root / split / name)
        images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for place, box in enumerate(BOXES):
            content = annotation(10 * number + place, 1, box, segmentation=compressed(rectangle(SIZE, box)))
            annotations.append({**content, "image_id": number})
    file = root / "annotations" / f"instances_{split}.json"
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    file.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("coco")
    make_split(root, "val2017", 8)
    make_split(root, "train2017", 3)
    boxes = [
        {"image_id": image, "category_id": 3, "bbox": [x, y, right - x, low - y], "score": 0.9}
        for image in range(1, 9)
        for x, y, right, low in BOXES
    ]
    (root / "boxes.json").write_text(json.dumps(boxes))
    tiny_sam().save_pretrained(root / "tiny")
    tiny_processor().save_pretrained(root / "tiny")
    return [
        *("--model", str(root / "tiny"), "--coco", str(root), "--detections", str(root / "boxes.json")),
        *("--out", str(root / "rows.csv"), "--cache", str(root / "cache"), "--images", "3"),
    ]


@pytest.mark.slow
def test_it_measures_once_and_prints_a_table(real_sam, arguments, capsys):
    chosen = ["--methods", "min-max", "saq-sam-s", "--bits", "w6a6", "w4a4"]
    assert real_sam.main([*arguments, *chosen]) == 0
    output = capsys.readouterr()
    assert "evaluations: 5 to do" in output.err
    lines = [line for line in output.out.splitlines() if line.startswith("| `saq-sam-s`")]
    assert len(lines) == 1
    measured = [cell.strip() for cell in lines[0].split("|")[2:-1]]
    assert all(0 <= float(cell) <= 100 for cell in measured[::2])
    assert measured[1::2] == ["", ""]  # a tiny model has no published figures
    assert real_sam.main([*arguments, *chosen]) == 0
    assert "evaluations: 0 to do" in capsys.readouterr().err
    assert real_sam.main([*arguments, *chosen, "--table"]) == 0
    assert lines[0] in capsys.readouterr().out


def test_the_table_marks_figures_that_are_not_of_an_integer_model(real_sam):
    text = real_sam.table([], ["w6a6", "w4a4"], "b")
    assert "| `saq-sam-s` |  | 39.4 |  | 3.5 |" in text
    assert "| `saq-sam` |  | (42.4) |  | (33.8) |" in text
    assert "| `saq-sam-plus` |  |  |  |  |" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--coco", "/nowhere"], "/nowhere/val2017"),
        (["--detections", "/nowhere.json"], "/nowhere.json"),
        (["--bits", "w9a9"], "9"),
        (["--model", "/nowhere"], "--model /nowhere: no such file or folder"),
    ],
)
def test_wrong_options_are_one_line(real_sam, arguments, capsys, change, message):
    assert real_sam.main([*arguments, "--methods", "min-max", *change]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
