"""`saqsam compare`: from the command line to figures, file and picture."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import saqsam
from saqsam.checkpoint import save_checkpoint
from saqsam.cli.commands.compare import split_runtime
from saqsam.data.images import read_image
from saqsam.data.scenes.dataset import ScenesDataset
from support.coco_folder import make_coco
from support.command_line import assert_done, assert_refused, run
from support.tiny_sam import tiny_processor


@pytest.mark.slow
def test_figures_file_and_picture_are_of_one_comparison(tiny: Path, packed: Path, tmp_path: Path) -> None:
    json_file, picture = tmp_path / "c.json", tmp_path / "c.png"
    result = run(
        "compare", tiny, packed, tiny, "--limit", "3", "--json", json_file, "--out", picture, "--workers", "0"
    )
    assert_done(result)
    scenes = saqsam.open_dataset("scenes", limit=3)
    alone = [
        saqsam.evaluate(*saqsam.load(folder), scenes).metrics["prompt"]["miou"] for folder in (tiny, packed)
    ]
    lines = result.stdout.splitlines()
    objects = saqsam.evaluate(*saqsam.load(tiny), scenes).metrics["prompt"]["instances"]
    assert lines[:4] == [
        f"A  {tiny} (float)",
        f"B  {packed} (min-max-w4a4)",
        f"C  {tiny} (float)",
        f"on {objects} objects in 3 images of scenes (seed 0)",
    ]
    (means,) = [line.split() for line in lines if line.startswith("mean IoU")]
    assert means[2:] == [f"{iou:.4f}" for iou in (alone[0], alone[1], alone[0])]
    start = lines.index(next(line for line in lines if line.startswith("against A")))
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[start + 2 : start + 4]]
    assert rows[0][1] == f"{alone[1] - alone[0]:+.4f}"
    assert rows[1] == ["C", "+0.0000", "+0.0000 to +0.0000", "1.0000", "100.0 %"]
    assert not [line for line in lines if line.startswith("C lost most on")]
    assert (
        max(len(line) for line in lines if not line.startswith(("A ", "B ", "C ", "picture", "written")))
        <= 120
    )

    content = json.loads(json_file.read_text())
    assert [model["letter"] for model in content["models"]] == ["A", "B", "C"]
    assert [model["metrics"]["prompt"]["miou"] for model in content["models"]] == [*alone, alone[0]]
    (task,) = content["differences"][0]["tasks"]
    assert task["difference"]["mean"] == pytest.approx(alone[1] - alone[0])
    worst = next(line for line in lines if line.startswith(task["images"][0]["file_name"]))
    assert worst.split()[-1] == f"{task['images'][0]['difference']:+.4f}"
    assert "counts" not in json_file.read_text()
    assert read_image(picture).shape[1] > 4 * 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "c.png"]


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on(
    tiny: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    json_file = tmp_path / "c.json"
    arguments = ("compare", tiny, packed, "--limit", "3", "--workers", "0", "--json", json_file)
    read = ScenesDataset.__getitem__
    seen: list[int] = []

    def stops(self: ScenesDataset, index: int) -> Any:
        seen.append(index)
        if index == 2 and len(seen) == 3:
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(ScenesDataset, "__getitem__", stops)
    assert run(*arguments).exit_code == 130
    assert not json_file.exists()
    assert_done(run(*arguments))
    assert seen == [0, 1, 2, 2]
    continued = json_file.read_bytes()
    assert_refused(run(*arguments), "c.json exists", "--overwrite")
    assert_done(run(*arguments, "--overwrite"))
    assert json_file.read_bytes() == continued


def test_detections_are_compared_too(tiny: Path, packed: Path, tmp_path: Path) -> None:
    data = make_coco(tmp_path / "coco")
    found = tmp_path / "found.json"
    found.write_text(json.dumps([{"image_id": 1, "category_id": 3, "bbox": [10, 5, 20, 20], "score": 0.9}]))
    result = run(
        "compare", tiny, packed, "--data", data, "--detections", found, "--json", tmp_path / "c.json"
    )
    assert_done(result)
    tasks = json.loads((tmp_path / "c.json").read_text())["differences"][0]["tasks"]
    assert [task["task"] for task in tasks] == ["prompt", "instance"]
    assert "segm_ap" in tasks[1]["metrics"]
    assert tasks[1]["agreement"]["masks"] == 1
    assert "best IoU of a mask with an object" in " ".join(result.stdout.split())


def test_wrong_use(tiny: Path, packed: Path, tmp_path: Path) -> None:
    assert_refused(run("compare", tiny), "two models or more, got 1")
    assert_refused(run("compare", tiny, packed, "--out", tmp_path / "c.jpg"), "ends in .png")
    everything = run("compare", tiny, packed, "--task", "everything", "--out", tmp_path / "c.png")
    assert_refused(everything, "belong together")
    assert_refused(run("compare", tiny, packed, "--task", "color"), "--task", "color")
    assert_refused(run("compare", tiny, f"{packed}@onnxruntime"), "no export")
    assert_refused(run("compare", f"{tiny}@torch-int8", packed), "is float")
    assert_refused(run("compare", tiny, tmp_path / "nothing"), "nothing")
    assert_refused(run("compare", tiny, packed, "--json", tmp_path, "--overwrite"), "it is a folder")


def test_runtimes_are_named_behind_an_at_sign() -> None:
    assert split_runtime("out/onnx@openvino") == ("out/onnx", "openvino")
    assert split_runtime("out/q@torch-int8") == ("out/q", "torch-int8")
    assert split_runtime("me@home/q") == ("me@home/q", None)
    assert split_runtime("sam-mini") == ("sam-mini", None)


@pytest.mark.slow
def test_an_export_beside_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from saqsam.recipes.deployment import deployable
    from support.tiny_quantized import quantize_tiny, tiny_recipe

    model = quantize_tiny(deployable(tiny_recipe(bits="w8a8")))
    checkpoint = save_checkpoint(model, tiny_processor(), tmp_path / "q")
    assert_done(run("export", checkpoint, "--out", tmp_path / "onnx"))
    result = run("compare", checkpoint, tmp_path / "onnx", "--limit", "2", "--json", tmp_path / "c.json")
    assert_done(result)
    (task,) = json.loads((tmp_path / "c.json").read_text())["differences"][0]["tasks"]
    assert task["agreement"]["iou"] > 0.97
