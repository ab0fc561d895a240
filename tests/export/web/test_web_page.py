"""Web exports in headless Chromium: masks as in Python, prompts, downloads, bad files, and browsers that lack features.

`SAQSAM_NODE_MODULES` names a node_modules folder with onnxruntime-web.
"""

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import saqsam
from saqsam.data.images import read_image_bytes
from saqsam.data.rle import decode_mask
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.export import export_model
from saqsam.export.web.page import read_page
from saqsam.export.web.runtime import CDN
from saqsam.inference.encoded_image import EncodedImage
from saqsam.inference.predictor import Predictor
from saqsam.models.processing import build_processor
from saqsam.ptq.pipeline import quantize
from saqsam.recipes.deployment import deployable
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.recipe import Calibration
from saqsam.runtimes import load_runtime
from saqsam.segmentation.prompts import Prompt, segment_prompts
from support.tiny_mobile_sam import tiny_mobile_sam
from support.tiny_sam3_tracker import tiny_sam3_tracker
from support.tiny_sam_hq import tiny_sam_hq
from support.web_page import CHROMIUM, FLAGS, ISOLATION, onnxruntime_web, served

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
RUNTIME = onnxruntime_web()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is here; SAQSAM_CHROMIUM names another browser"),
    pytest.mark.skipif(RUNTIME is None, reason="set SAQSAM_NODE_MODULES to a folder with onnxruntime-web"),
]
PATIENCE = 60_000
"""Milliseconds to wait for an answer on a busy machine."""


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, processor = saqsam.load("sam-mini")
    recipe = dataclasses.replace(
        deployable(recipe_for("min-max", "w4a8")), calibration=Calibration(images=4, prompts=4)
    )
    data = ScenesDataset(count=4, seed=7, size=(192, 256))
    quantized = quantize(model, processor, recipe, data).model
    folder = tmp_path_factory.mktemp("web") / "sam-mini"
    export_model(quantized, processor, folder, format="web", web_runtime=RUNTIME)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert errors == []


def load(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("body[data-loaded]", timeout=2 * PATIENCE)


def expect_message(page: Any, text: str, *, is_error: bool = False) -> None:
    playwright.expect(page.locator("#message")).to_contain_text(text, timeout=2 * PATIENCE)
    assert ("error" in (page.locator("#message").get_attribute("class") or "")) == is_error


def open_sample(page: Any, name: str) -> None:
    page.get_by_title(f"Open the sample {name}").click()
    message = re.compile(rf"^{re.escape(name)}, .*Move over the image")
    playwright.expect(page.locator("#message")).to_have_text(message, timeout=2 * PATIENCE)


def open_file(page: Any, content: bytes, name: str, kind: str) -> None:
    page.set_input_files("#file", [{"name": name, "mimeType": kind, "buffer": content}])


def place(page: Any, x: float, y: float) -> tuple[float, float]:
    """Return the place of a point of the image, given as shares of its width and height."""
    box = page.locator("canvas").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def drag(page: Any, x0: float, y0: float, x1: float, y1: float) -> None:
    page.mouse.move(*place(page, x0, y0))
    page.mouse.down()
    page.mouse.move(*place(page, x1, y1), steps=4)
    page.mouse.up()


def downloaded(page: Any, form: str) -> bytes:
    with page.expect_download(timeout=PATIENCE) as download:
        page.locator(f"[data-format='{form}']").click()
    return Path(download.value.path()).read_bytes()


def annotation(page: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(downloaded(page, "coco"))["annotations"][0]
    return found


def prompt_of(text: str) -> Prompt:
    """Read the prompt of an annotation, such as `box 1,2,30,40, points 3,4;5,6,0`."""
    box = re.search(r"box ([-\d.,e]+\d)", text)
    points = re.search(r"points? ([-\d.,;e]+)", text)
    places = [[float(n) for n in one.split(",")] for one in points[1].split(";")] if points else []
    return Prompt(
        box=None if box is None else tuple(float(n) for n in box[1].split(",")),  # type: ignore[arg-type]
        points=tuple((x, y) for x, y, *_ in places),
        labels=tuple(0 if rest else 1 for _, _, *rest in places),
    )


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def logits_of(predictor: Predictor, encoded: EncodedImage, prompt: Prompt) -> np.ndarray:
    """Return the logits [H, W] of the mask that `segment_prompts` returns."""
    logits, ious, _ = predictor.predict(
        point_coords=prompt.points or None,
        point_labels=prompt.labels or None,
        box=prompt.box,
        multimask_output=prompt.box is None and len(prompt.points) == 1,
        return_logits=True,
        image=encoded,
    )
    best: np.ndarray = logits[int(ious.argmax())]
    return best


def segment_on_page(page: Any, name: str) -> Iterator[tuple[Prompt, dict[str, Any], np.ndarray]]:
    """Give prompts on a sample, and yield each with its annotation and mask as the page offers them for download."""
    open_sample(page, name)
    steps = (
        lambda: page.mouse.click(*place(page, 0.5, 0.4)),
        lambda: page.mouse.click(*place(page, 0.1, 0.9), button="right"),
        lambda: drag(page, 0.15, 0.05, 0.85, 0.95),
    )
    for number, step in enumerate(steps, 1):
        step()
        found = annotation(page)
        prompt = prompt_of(found["prompt"])
        assert len(prompt.points) + (prompt.box is not None) == number
        yield prompt, found, np.array(Image.open(io.BytesIO(downloaded(page, "png")))) > 0
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#undo")).to_be_disabled()


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "sam-mini": lambda: saqsam.load("sam-mini"),
    "sam2-mini": lambda: saqsam.load("sam2-mini"),
    "tiny SAM-HQ": lambda: (tiny_sam_hq(), build_processor(tiny_sam_hq().config)),
    "tiny MobileSAM": lambda: (tiny_mobile_sam(), build_processor(tiny_mobile_sam().config)),
    "tiny SAM 3 tracker": lambda: (tiny_sam3_tracker(), build_processor(tiny_sam3_tracker().config)),
}


@pytest.mark.parametrize("name", MODELS)
def test_float_masks_are_those_of_onnxruntime(page: Any, tmp_path: Path, name: str) -> None:
    model, processor = MODELS[name]()
    export_model(model, processor, tmp_path / "out", format="web", web_runtime=RUNTIME)
    predictor = Predictor(*load_runtime(tmp_path / "out", "onnxruntime", device="cpu", threads=1))
    with served(tmp_path / "out") as address:
        load(page, address)
        for sample in ("coffee.jpg", "cat.jpg"):
            pixels, _ = read_image_bytes(read_page(f"samples/{sample}"), sample)
            encoded = predictor.encode(pixels)
            for prompt, found, mask in segment_on_page(page, sample):
                (expected,) = segment_prompts(predictor, encoded, [prompt])
                assert mask.shape == pixels.shape[:2]
                assert iou(mask, expected.mask()) >= 0.999, (sample, found["prompt"])
                assert found["predicted_iou"] == pytest.approx(expected.predicted_iou, abs=1e-4)
                assert found["stability_score"] == pytest.approx(expected.stability_score, abs=0.01)
                assert found["area"] == mask.sum()
                counts = found["segmentation"]["counts"].encode()
                rle = {"size": found["segmentation"]["size"], "counts": counts}
                assert decode_mask(rle).tolist() == mask.tolist()


def test_quantized_masks_are_those_of_onnxruntime(page: Any, export: Path) -> None:
    predictor = Predictor(*load_runtime(export, "onnxruntime", device="cpu", threads=1))
    ious = []
    with served(export) as address:
        load(page, address)
        for sample in ("coffee.jpg", "cat.jpg", "astronaut.jpg"):
            pixels, _ = read_image_bytes(read_page(f"samples/{sample}"), sample)
            encoded = predictor.encode(pixels)
            for prompt, _, mask in segment_on_page(page, sample):
                logits = logits_of(predictor, encoded, prompt)
                ious.append(iou(mask, logits > 0))
                # Runtimes round some activations to neighboring codes, which moves edges where logits are near 0.
                decided = np.abs(logits) > 0.5
                assert iou(mask & decided, (logits > 0) & decided) >= 0.99, (sample, prompt)
    assert np.median(ious) >= 0.98


def test_hover_undo_keys_and_everything(page: Any, export: Path) -> None:
    with served(export) as address:
        load(page, address)
        assert page.locator("canvas").count() == 1
        assert "MB, WebAssembly" in page.locator("#bytes0").inner_text()
        open_sample(page, "coffee.jpg")
        page.mouse.move(*place(page, 0.5, 0.5))
        playwright.expect(page.locator("#pixels0")).not_to_have_text("", timeout=PATIENCE)
        assert page.locator("#undo").is_disabled()
        page.mouse.click(*place(page, 0.5, 0.5))
        page.keyboard.down("Alt")
        page.mouse.click(*place(page, 0.9, 0.9))
        page.keyboard.up("Alt")
        assert prompt_of(annotation(page)["prompt"]).labels == (1, 0)
        page.keyboard.press("z")
        assert prompt_of(annotation(page)["prompt"]).labels == (1,)
        page.keyboard.press("Escape")
        page.locator("canvas").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Shift+Enter")
        prompt = prompt_of(annotation(page)["prompt"])
        assert prompt.labels == (1, 0)
        assert prompt.points[0] == pytest.approx((256, 160), abs=0.1)
        page.keyboard.press("w")  # nothing to wipe between
        page.keyboard.press("e")
        expect_message(page, "Everything:")


def test_bad_files_leave_the_page_working(page: Any, export: Path) -> None:
    with served(export) as address:
        load(page, address)
        open_file(page, b"no picture", "notes.txt", "text/plain")
        expect_message(page, "notes.txt: expected a readable image", is_error=True)
        open_file(page, b"\x00\x00\x00\x18ftypmp42" + bytes(300), "film.mp4", "video/mp4")
        expect_message(page, "film.mp4: expected a readable image, but this is a video", is_error=True)
        open_sample(page, "astronaut.jpg")


def test_a_large_image_is_read_smaller_and_segmented_at_its_size(page: Any, export: Path) -> None:
    image = Image.new("RGB", (9000, 400), "white")
    image.paste("black", (3000, 100, 6000, 300))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with served(export) as address:
        load(page, address)
        open_file(page, buffer.getvalue(), "<b>wide</b>.png", "image/png")
        expect_message(page, "<b>wide</b>.png, 9000 × 400, read at 4096 × 182. Move over the image")
        assert page.locator("#message b").count() == 0
        drag(page, 0.32, 0.2, 0.68, 0.8)
        mask = np.array(Image.open(io.BytesIO(downloaded(page, "png"))))
        assert mask.shape == (400, 9000)


def test_nothing_leaves_the_machine(page: Any, export: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(f"{request.method} {request.url}"))
    with served(export) as address:
        load(page, address)
        open_sample(page, "coffee.jpg")
        page.mouse.click(*place(page, 0.5, 0.5))
        downloaded(page, "png")
    assert any("encoder.onnx" in one for one in asked)
    assert all(one.startswith((f"GET {address}", "GET blob:", "GET data:")) for one in asked)


def route_cdn(page: Any, change: Callable[[bytes], bytes]) -> list[str]:
    """Answer requests to the CDN with local files, and return the list of their names as it grows."""
    asked: list[str] = []

    def answer(route: Any) -> None:
        assert RUNTIME is not None
        asked.append(route.request.url.rpartition("/")[2])
        content = change((RUNTIME / "dist" / asked[-1]).read_bytes())
        route.fulfill(body=content, headers={"Access-Control-Allow-Origin": "*"})

    page.context.route("https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/*", answer)
    return asked


def without_copy(export: Path, folder: Path) -> Path:
    """Export the same checkpoint without a copy of onnxruntime-web: only the address differs."""
    shutil.copytree(export, folder, ignore=shutil.ignore_patterns("onnxruntime-web"))
    manifest = json.loads((folder / "export.json").read_text())
    manifest["details"]["runtime"]["base"] = CDN
    (folder / "export.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("headers", [{}, ISOLATION], ids=["plain", "isolated"])
def test_onnxruntime_web_from_the_cdn(
    browser: Any, export: Path, tmp_path: Path, headers: dict[str, str]
) -> None:
    page = browser.new_context().new_page()
    asked = route_cdn(page, lambda content: content)
    with served(without_copy(export, tmp_path / "out"), headers) as address:
        load(page, address)
        open_sample(page, "coffee.jpg")
    assert sorted(asked) == ["ort-wasm-simd-threaded.wasm", "ort.wasm.bundle.min.mjs"]
    page.context.close()


def test_altered_files_of_the_cdn_are_refused(browser: Any, export: Path, tmp_path: Path) -> None:
    page = browser.new_context().new_page()
    route_cdn(page, lambda content: content + b" ")
    with served(without_copy(export, tmp_path / "out")) as address:
        page.goto(address)
        message = "onnxruntime-web 1.30.0 cannot be loaded from cdn.jsdelivr.net: not reachable, or altered"
        expect_message(page, message, is_error=True)
    page.context.close()


def test_isolated_pages_use_threads(page: Any, export: Path) -> None:
    with served(export, ISOLATION) as address:
        load(page, address)
        count = min(4, page.evaluate("() => navigator.hardwareConcurrency"))
        expected = f"WebAssembly, {count} threads" if count > 1 else "WebAssembly"
        assert page.locator("#bytes0").inner_text().endswith(expected)
        open_sample(page, "coffee.jpg")


def test_without_webgpu_the_page_says_so_and_uses_webassembly(page: Any, export: Path) -> None:
    with served(export) as address:
        load(page, f"{address}?backend=webgpu")
        assert "WebGPU cannot be used" in page.locator("#notice").inner_text()
        assert page.locator("#bytes0").inner_text().endswith("WebAssembly")
        open_sample(page, "coffee.jpg")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decoder.onnx", "decoder.onnx is missing; export the model again"),
        ("export.json", "export.json is missing; export the model again"),
        ("onnxruntime-web/ort.wasm.bundle.min.mjs", "ort.wasm.bundle.min.mjs is missing; copy it"),
        ("worker.js", "worker.js cannot run"),
    ],
)
def test_missing_files_are_named(page: Any, export: Path, tmp_path: Path, name: str, message: str) -> None:
    folder = shutil.copytree(export, tmp_path / "out")
    (folder / name).unlink()
    with served(folder) as address:
        page.goto(address)
        expect_message(page, message, is_error=True)


def test_a_file_that_was_cut_short_is_named(page: Any, export: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(export, tmp_path / "out")
    (folder / "encoder.onnx").write_bytes((export / "encoder.onnx").read_bytes()[:1000])
    with served(folder) as address:
        page.goto(address)
        expect_message(page, "encoder.onnx: expected", is_error=True)


def test_other_pages_import_the_module(page: Any, export: Path, tmp_path: Path) -> None:
    shutil.copytree(export, tmp_path / "part")
    (tmp_path / "index.html").write_text("<!doctype html><title>Another page</title>")
    script = """async () => {
        const { connect, open, predict } = await import(new URL("part/models.js", location.href));
        await (await connect(() => {})).ready;
        const image = await open(await (await fetch("part/samples/coffee.jpg")).blob(), "coffee.jpg");
        const prompt = { box: [100, 20, 350, 200] };
        const [answer] = (await predict({ image: image.id, prompt })).answers;
        return { ...answer, runs: [...answer.runs] };
    }"""
    with served(tmp_path) as address:
        page.goto(address)
        answer = page.evaluate(script)
    assert answer["size"] == [320, 480]
    assert sum(answer["runs"]) == 320 * 480
    assert sum(answer["runs"][1::2]) == answer["pixels"] > 0


def test_browsers_without_simd_get_one_message(page: Any, export: Path) -> None:
    page.add_init_script("WebAssembly.validate = () => false")
    with served(export) as address:
        page.goto(address)
        expect_message(page, "This browser is too old: it has no WebAssembly SIMD", is_error=True)


def test_without_scripts_the_page_says_what_to_do(browser: Any, export: Path) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto((export / "index.html").as_uri())
    assert "python -m http.server" in page.locator("#message").inner_text()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screens_need_no_sideways_scrolling(page: Any, export: Path, scheme: str) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    with served(export) as address:
        load(page, address)
        open_sample(page, "coffee.jpg")
        assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    levels = [int(value) for value in background.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (max(levels) < 80) == (scheme == "dark")
