"""The page in headless Chromium: load, hover, click, undo, box, compare, wipe, download, and bad files."""

import io
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from saqsam.inference.predictor import Predictor
from saqsam.serve.app import create_app
from saqsam.serve.session import ServedModel, Session
from support.coco_folder import picture
from support.tiny_sam import tiny_processor, tiny_sam

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = os.environ.get("SAQSAM_CHROMIUM") or shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is here; SAQSAM_CHROMIUM names another browser"),
]
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    models = [
        ServedModel(f"model {seed}", "float", 29_600_000, Predictor(tiny_sam(seed), tiny_processor()))
        for seed in (1, 2, 3)
    ]
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    app = create_app(Session(models), [f"127.0.0.1:{port}"])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, "--no-proxy-server"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    yield page
    page.close()
    assert errors == []


def open_image(page: Any, content: bytes, name: str = "photo.png") -> None:
    page.set_input_files("#file", [{"name": name, "mimeType": "image/png", "buffer": content}])


def png(size: tuple[int, int] = (120, 180)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(size)).save(buffer, "PNG")
    return buffer.getvalue()


def ready(page: Any) -> dict[str, float]:
    """Open a picture, and return the place of the left canvas."""
    open_image(page, png())
    playwright.expect(page.locator("#message")).to_contain_text("Move over the image", timeout=30_000)
    box: dict[str, float] = page.locator("canvas").first.bounding_box()
    return box


def settled(page: Any, locator: str) -> str:
    element = page.locator(locator)
    playwright.expect(element).not_to_have_text("", timeout=20_000)
    text: str = element.inner_text()
    return text


def asks(page: Any, **expected: Any) -> Any:
    """Expect a request whose prompt has some values; requests before it may still be under way."""

    def fits(request: Any) -> bool:
        if not request.url.endswith("/api/predict"):
            return False
        content = json.loads(request.post_data)
        content |= content.pop("prompt")
        return all(content.get(name) == value for name, value in expected.items())

    return page.expect_request(fits, timeout=20_000)


def at(box: dict[str, float], x: float, y: float) -> tuple[float, float]:
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def test_clicks_boxes_and_undo(page: Any) -> None:
    box = ready(page)
    page.mouse.move(*at(box, 0.4, 0.5))
    assert settled(page, "#pixels0")  # the mask under the pointer
    assert page.locator("#undo").is_disabled()
    page.mouse.click(*at(box, 0.4, 0.5))
    playwright.expect(page.locator("#undo")).to_be_enabled()
    with asks(page, labels=[1, 0]) as request:
        page.keyboard.down("Alt")
        page.mouse.click(*at(box, 0.8, 0.2))
        page.keyboard.up("Alt")
    prompt = json.loads(request.value.post_data)["prompt"]
    assert prompt["points"][0] == pytest.approx([0.4 * 180, 0.5 * 120], abs=1)
    with asks(page, labels=[1, 0, 0]):
        page.mouse.click(*at(box, 0.1, 0.1), button="right")
    with asks(page, labels=[1, 0]):
        page.keyboard.press("z")
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#undo")).to_be_disabled()
    wanted = pytest.approx([36, 36, 162, 96], abs=2)

    def has_box(request: Any) -> bool:
        return "box" in (request.post_data or "") and json.loads(request.post_data)["prompt"]["box"] == wanted

    with page.expect_request(has_box):
        page.mouse.move(*at(box, 0.9, 0.8))
        page.mouse.down()
        page.mouse.move(*at(box, 0.2, 0.3), steps=5)
        page.mouse.up()
    assert 0 <= float(settled(page, "#iou").replace("–", "0")) <= 1


def test_models_can_be_swapped_and_masks_downloaded(page: Any) -> None:
    box = ready(page)
    page.mouse.click(*at(box, 0.5, 0.5))
    with asks(page, models=["model 1", "model 3"]):
        page.get_by_label("Model on the right", exact=True).select_option("model 3")
    assert "29.6 MB" in page.locator("#bytes1").inner_text()
    with page.expect_download() as download:
        page.locator("[data-side='1'][data-format='png']").click()
    assert download.value.suggested_filename == "photo.mask.png"
    mask = np.array(Image.open(download.value.path()))
    assert mask.shape == (120, 180)
    assert set(np.unique(mask)) <= {0, 255}
    with page.expect_download() as download:
        page.locator("[data-side='0'][data-format='coco']").click()
    document = json.loads(Path(download.value.path()).read_text())
    assert document["annotations"][0]["segmentation"]["size"] == [120, 180]


def test_the_keyboard_alone_is_enough(page: Any) -> None:
    ready(page)
    page.locator("canvas").first.focus()
    page.keyboard.press("ArrowRight")
    with asks(page, points=[[96, 60]], labels=[1]):
        page.keyboard.press("Enter")
    page.keyboard.press("ArrowUp")
    with asks(page, labels=[1, 0]):
        page.keyboard.press("Shift+Enter")
    page.keyboard.press("w")
    playwright.expect(page.locator("#wipe")).to_have_attribute("aria-pressed", "true")
    playwright.expect(page.locator("canvas").nth(1)).to_be_hidden()
    page.keyboard.press("e")
    playwright.expect(page.locator("#message")).to_contain_text("Everything:", timeout=60_000)


def test_bad_files_leave_the_page_working(page: Any) -> None:
    open_image(page, b"no picture", "notes.txt")
    playwright.expect(page.locator("#message")).to_contain_text("notes.txt: expected a readable image")
    assert "error" in page.locator("#message").get_attribute("class")
    open_image(page, b"\x00\x00\x00\x18ftypmp42" + bytes(300), "film.mp4")
    playwright.expect(page.locator("#message")).to_contain_text("film.mp4: expected a readable image")
    ready(page)
    assert "error" not in (page.locator("#message").get_attribute("class") or "")


def test_samples_open_and_nothing_leaves_the_machine(page: Any, address: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_title("Open the sample coffee.jpg").click()
    playwright.expect(page.locator("#message")).to_contain_text("Move over the image", timeout=30_000)
    assert asked
    assert all(url.startswith((address, "blob:", "data:")) for url in asked)


def test_a_closed_tab_while_encoding_harms_nobody(browser: Any, address: str, page: Any) -> None:
    other = browser.new_page()
    other.goto(address)
    other.wait_for_selector("body[data-ready]")
    open_image(other, png((1200, 1600)))
    other.close()
    ready(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screens_need_no_sideways_scrolling(page: Any, scheme: str) -> None:
    ready(page)
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    levels = [int(value) for value in background.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (max(levels) < 80) == (scheme == "dark")
