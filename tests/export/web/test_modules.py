"""The modules of the page compute what Python computes: pixels as Pillow, masks as torch, files as `saqsam segment`."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saqsam.data.rle import encode_mask, rle_text
from saqsam.export.web.page import LOCAL, local_page, read_page
from saqsam.inference.processing import preprocess, upscale_logits
from saqsam.models.processing import processor_fields
from saqsam.segmentation.formats.coco import coco_document
from saqsam.segmentation.objects import SegmentedImage, SegmentedObject
from saqsam.segmentation.prompts import Prompt
from saqsam.serve.app import _own_models
from saqsam.serve.session import row_runs
from support.tiny_sam import tiny_processor
from support.tiny_sam2 import tiny_sam2_processor

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no node is here")
SIZES = [
    (32, 48, 17, 25),
    (37, 53, 256, 200),
    (60, 40, 26, 17),
    (100, 100, 33, 77),
    (5, 400, 3, 64),
    (64, 48, 51, 51),
]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "package.json").write_text('{"type": "module"}')
    for name, content in local_page().items():
        if name.endswith(".js"):
            (folder / name).write_bytes(content)
    return folder


def run(folder: Path, action: str, values: np.ndarray, **request: Any) -> Path:
    """Return the file that a function of the modules wrote."""
    assert NODE is not None
    source, output, file = (folder / name for name in ("input", "output", "request.json"))
    source.write_bytes(values.tobytes())
    file.write_text(json.dumps({"action": action, "input": str(source), "output": str(output), **request}))
    script = Path(__file__).with_name("run_modules.mjs")
    done = subprocess.run([NODE, script, folder, file], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return output


def rgba(height: int, width: int) -> np.ndarray:
    """Return noise above, and a ramp below."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    pixels[height // 2 :, :, :3] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
    pixels[..., 3] = 255
    return pixels


@needs_node
@pytest.mark.parametrize("resample", range(1, 6))
def test_pixels_are_resized_as_pillow_does(modules: Path, resample: int) -> None:
    for height, width, new_height, new_width in SIZES:
        pixels = rgba(height, width)
        size = {"width": width, "height": height, "newWidth": new_width, "newHeight": new_height}
        output = run(modules, "resize", pixels, filter=resample, **size)
        found = np.frombuffer(output.read_bytes(), np.uint8).reshape(new_height, new_width, 3)
        expected = Image.fromarray(pixels[..., :3]).resize((new_width, new_height), resample=resample)
        # Lanczos overshoots, so that an older Pillow's order of the passes would show.
        assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= (
            1 if resample != 1 else 12
        )


@needs_node
@pytest.mark.parametrize("processor", [tiny_processor(), tiny_sam2_processor()], ids=["pad", "stretch"])
@pytest.mark.parametrize("size", [(45, 60), (90, 30), (1, 300)])
def test_pixel_values_are_the_processors(modules: Path, processor: Any, size: tuple[int, int]) -> None:
    pixels = rgba(*size)
    fields = processor_fields(processor)
    output = run(modules, "preprocess", pixels, processor=fields, width=size[1], height=size[0])
    expected, _ = preprocess(processor, np.ascontiguousarray(pixels[..., :3]))
    found = np.frombuffer(output.read_bytes(), np.float32).reshape(expected.shape)
    step = 1 / 255 / min(fields["image_std"])  # of one gray level
    np.testing.assert_allclose(found, expected.numpy(), atol=1.01 * step)
    assert (np.abs(found - expected.numpy()) > 1e-5).mean() < 0.05


@needs_node
@pytest.mark.parametrize("size", [(45, 60), (90, 30), (200, 333)])
@pytest.mark.parametrize("is_padded", [True, False])
def test_masks_and_their_files(modules: Path, size: tuple[int, int], is_padded: bool) -> None:
    processor = tiny_processor() if is_padded else tiny_sam2_processor()
    fields = processor_fields(processor)
    _, inner = preprocess(processor, np.zeros((*size, 3), np.uint8))
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 1, 6, 6, generator=generator)
    logits = 3 * torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic")
    placed = {"side": fields["size"], "size": inner[::-1]} if is_padded else None
    prompt = {"points": [[3.25, 4], [5, 6]], "labels": [1, 0], "box": [1, 2, 30.5, 20]}
    request = {"side": 32, "placed": placed, "prompt": prompt, "width": size[1], "height": size[0]}
    output = run(modules, "mask", logits.numpy(), **request)
    answer = json.loads(output.read_text())
    upscaled = upscale_logits(processor, logits, size, inner, return_logits=True)[0, 0]
    expected = (upscaled > 0).numpy()
    mask = np.asarray(Image.open(output.with_name("output.png")))
    assert mask.shape == size
    assert set(np.unique(mask)) == {0, 255}
    assert (mask > 0).tolist() == expected.tolist()
    assert answer["pixels"] == expected.sum()
    assert answer["runs"] == row_runs(expected)
    stability = int((upscaled > 1).sum()) / int((upscaled > -1).sum())
    assert answer["stability"] == pytest.approx(stability, abs=1e-3)
    assert_same_file(answer, expected, size)


def assert_same_file(answer: dict[str, Any], expected: np.ndarray, size: tuple[int, int]) -> None:
    """Compare with the annotation file that `saqsam segment` writes."""
    prompt = Prompt(box=(1, 2, 30.5, 20), points=((3.25, 4), (5, 6)), labels=(1, 0))
    rle = encode_mask(expected)
    one = SegmentedObject(rle, 0.75, round(answer["stability"], 6), str(prompt))
    image = SegmentedImage(1, "photo.jpg", size, (one,))
    written = json.loads(coco_document([image], polygons=False, tolerance=0.0))
    assert answer["coco"] == written
    assert answer["coco"]["annotations"][0]["segmentation"]["counts"] == rle_text(rle)


def scripts() -> dict[str, bytes]:
    files = {name: content for name, content in local_page().items() if name.endswith(".js")}
    assert files.keys() == {"page.js", *LOCAL}
    return files | {"serve/models.js": _own_models()}


@needs_node
@pytest.mark.parametrize("name", scripts())
def test_scripts_have_valid_syntax(tmp_path: Path, name: str) -> None:
    assert NODE is not None
    path = tmp_path / "script.mjs"
    path.write_bytes(scripts()[name])
    done = subprocess.run([NODE, "--check", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_page_names_no_other_server_and_inserts_no_markup() -> None:
    files = scripts() | {name: read_page(name) for name in ("index.html", "page.css")}
    for name, content in files.items():
        text = content.decode()
        assert not re.search(r"https?://", text), name
        assert not re.search(r"\beval\b|innerHTML|insertAdjacentHTML|document\.write|new Function", text), (
            name
        )


def test_both_ways_to_answer_have_the_same_functions() -> None:
    def exported(content: bytes) -> set[str]:
        return set(re.findall(r"^export async function (\w+)", content.decode(), re.MULTILINE))

    assert exported(local_page()["models.js"]) == exported(_own_models())
    used = set(re.findall(r"\bbackend\.(\w+)", read_page("page.js").decode()))
    assert used == exported(_own_models())
