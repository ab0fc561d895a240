"""The examples run, and print what the package computes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import saqsam
from saqsam.data.images import read_image
from saqsam.export import export_model
from saqsam.inference.processing import preprocess
from saqsam.inference.prompts import Prompts
from saqsam.recipes.deployment import deployable
from saqsam.runtimes import load_runtime
from support.coco_folder import make_coco, picture
from support.tiny_quantized import quantize_tiny, tiny_recipe
from support.tiny_sam import tiny_processor

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(script: str, *arguments: str | Path) -> list[str]:
    """Run an example in a process of its own; the lines that it prints."""
    source = Path(saqsam.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def made(tiny: Path) -> tuple[Path, list[str]]:
    """The checkpoint that the first example writes and the next two read, and what it printed."""
    out = tiny.parent / "w4a4"
    return out, run("quantize_and_segment.py", tiny, "--images", "2", "--out", out)


def box_masks(model: Path, boxes: list[tuple[float, ...]]) -> list[np.ndarray]:
    predictor = saqsam.Predictor(*saqsam.load(model))
    predictor.set_image(saqsam.open_dataset("scenes", limit=1)[0].image)
    return [predictor.predict(box=box, multimask_output=False)[0][0] for box in boxes]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.slow
def test_quantize_and_segment(tiny: Path, made: tuple[Path, list[str]]) -> None:
    out, printed = made
    scene = saqsam.open_dataset("scenes", limit=1)[0]
    boxes = [instance.box for instance in scene.instances]
    agreement = [iou(*pair) for pair in zip(box_masks(tiny, boxes), box_masks(out, boxes), strict=True)]
    assert [line.split()[-1] for line in printed[:-1]] == [f"{value:.3f}" for value in agreement]
    assert min(agreement) < 1  # the masks are those of two models
    assert saqsam.recipe_of(saqsam.load(out)[0]).calibration.images == 2
    assert read_image(out / "masks.png").shape == scene.image.shape


@pytest.mark.slow
def test_quantize_and_segment_a_photograph(tiny: Path, tmp_path: Path) -> None:
    Image.fromarray(picture((40, 60))).save(tmp_path / "photo.png")
    arguments = ("--image", tmp_path / "photo.png", "--box", "5,5,30,30", "--box", "10,2,50,38")
    printed = run("quantize_and_segment.py", tiny, *arguments, "--images", "1", "--out", tmp_path / "q")
    assert [line.split(":")[0] for line in printed[:-1]] == ["box 5, 5, 30, 30", "box 10, 2, 50, 38"]
    assert read_image(tmp_path / "q" / "masks.png").shape == (40, 60, 3)


@pytest.mark.slow
def test_replace_sam_predictor(made: tuple[Path, list[str]]) -> None:
    printed = run("replace_sam_predictor.py", made[0])
    target = max(saqsam.open_dataset("scenes", limit=1)[0].instances, key=lambda instance: instance.area)
    (mask,) = box_masks(made[0], [target.box])
    assert printed[0] == f"box: {mask.sum()} pixels, IoU {iou(mask, target.mask()):.3f}"
    assert [line.split(":")[0] for line in printed[1:]] == [
        "point",
        "foreground point, background point, mask",
    ]
    assert len(set(printed)) == 3


@pytest.mark.slow
def test_transformers_native_gives_the_masks_of_the_predictor(made: tuple[Path, list[str]]) -> None:
    printed = run("transformers_native.py", made[0])
    instances = saqsam.open_dataset("scenes", limit=1)[0].instances
    masks = box_masks(made[0], [instance.box for instance in instances])
    for line, instance, mask in zip(printed[:-1], instances, masks, strict=True):
        pixels, found = int(line.split()[0]), float(line.split()[3].rstrip(","))
        # All boxes at once here, one by one there: a logit next to 0 may fall to either side.
        assert abs(pixels - int(mask.sum())) <= 0.01 * mask.size
        assert found == pytest.approx(iou(mask, instance.mask()), abs=0.02)
    assert printed[-1].endswith("recipe mse-w4a4")


@pytest.mark.slow
def test_calibrate_on_your_photos(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        Image.fromarray(picture((40, 60), seed)).save(tmp_path / "photos" / f"{seed}.png")
    labeled = make_coco(tmp_path / "coco")
    options = ("--model", tiny, "--images", "2", "--out", tmp_path / "q")
    printed = run("calibrate_on_your_photos.py", tmp_path / "photos", *options, "--score", labeled)
    assert printed[0] == "calibrated on 2 of 3 images of photos, prompted by the model's own masks"
    data = saqsam.open_dataset(labeled)
    for line, model in zip(printed[1:3], (tiny, tmp_path / "q"), strict=True):
        metrics = saqsam.evaluate(*saqsam.load(model), data).metrics["prompt"]
        assert f"mean IoU {metrics['miou']:.4f} on 3 objects" in line


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the tiny SAM."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_model(quantize_tiny(deployable(tiny_recipe(bits="w4a8"))), tiny_processor(), folder)
    return folder


@pytest.mark.parametrize("client", ["onnx_client.py", "openvino_client.py"])
def test_clients_of_a_runtime_give_the_masks_of_the_predictor(
    exported: Path, tmp_path: Path, client: str
) -> None:
    photo = picture((40, 60))
    Image.fromarray(photo).save(tmp_path / "photo.png")
    box = (5, 4, 50, 33)
    (printed,) = run(client, exported, tmp_path / "photo.png", *map(str, box), tmp_path / "mask.png")
    predictor = saqsam.Predictor(*load_runtime(exported))
    predictor.set_image(photo)
    (wanted,), _, _ = predictor.predict(box=np.array(box), multimask_output=False)
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert iou(mask, wanted) > 0.9
    assert printed.startswith(f"{mask.sum()} pixels")


def test_the_executorch_client_gives_the_masks_of_the_predictor(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="executorch is not installed: pip install '.[executorch]'")
    model = quantize_tiny(deployable(tiny_recipe(bits="w8a8"), "executorch"))
    export_model(model, tiny_processor(), tmp_path / "export", format="executorch")
    photo, box = picture((40, 60)), (5, 4, 50, 33)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    arguments = (tmp_path / "export", tmp_path / "photo.png", *map(str, box), tmp_path / "mask.png")
    (printed,) = run("executorch_client.py", *arguments)
    predictor = saqsam.Predictor(*load_runtime(tmp_path / "export"))
    predictor.set_image(photo)
    (wanted,), _, _ = predictor.predict(box=np.array(box), multimask_output=False)
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert iou(mask, wanted) > 0.9
    assert printed.startswith(f"{mask.sum()} pixels")


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")
def test_the_javascript_client_gives_the_masks_of_the_predictor(exported: Path, tmp_path: Path) -> None:
    client = EXAMPLES / "javascript"
    if not (client / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("examples/javascript has no node_modules: npm install onnxruntime-web")
    backend, processor = load_runtime(exported)
    pixels, _ = preprocess(processor, picture((40, 60)))
    pixels.numpy().astype("<f4").tofile(tmp_path / "pixels.f32")
    box = [5, 4, 50, 33]
    command = [
        "node",
        "segment.mjs",
        exported,
        tmp_path / "pixels.f32",
        *map(str, box),
        tmp_path / "logits.f32",
    ]
    done = subprocess.run(command, cwd=client, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = np.fromfile(tmp_path / "logits.f32", "<f4").reshape(4, 32, 32)[0]
    prompts = Prompts(boxes=torch.tensor([box], dtype=torch.float32))
    wanted, _ = backend.decode(backend.encode(pixels), prompts, False)
    assert iou(found > 0, wanted[0, 0].numpy() > 0) > 0.9


def test_every_example_is_in_the_table() -> None:
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for script in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("javascript/*.mjs")]:
        assert f"[`{script.name}`]({script.relative_to(EXAMPLES)})" in table
