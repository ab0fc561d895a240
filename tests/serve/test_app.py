"""The server answers with the masks of the models, and nobody but the page."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle_codec
import pytest
from PIL import Image
from starlette.testclient import TestClient

from saqsam.inference.predictor import Predictor
from saqsam.serve import session as session_module
from saqsam.serve.app import ANY_HOST, MAX_REQUEST, create_app
from saqsam.serve.session import ServedModel, Session, parse_prompt, row_runs
from support.coco_folder import picture
from support.tiny_sam import tiny_processor, tiny_sam

HOST = "127.0.0.1:8000"
NAMES = ["left", "right"]


def png(size: tuple[int, int] = (60, 90), seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(size, seed)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def models() -> list[ServedModel]:
    return [
        ServedModel(name, "float", 1000 * seed, Predictor(tiny_sam(seed), tiny_processor()))
        for seed, name in enumerate(NAMES, 1)
    ]


@pytest.fixture
def client(models: list[ServedModel]) -> Iterator[TestClient]:
    with TestClient(create_app(Session(models), [HOST]), base_url=f"http://{HOST}") as client:
        yield client


def upload(client: TestClient, content: bytes | None = None) -> dict[str, Any]:
    response = client.post("/api/images?name=photo.png", content=png() if content is None else content)
    assert response.status_code == 200, response.text
    return response.json()


def request(client: TestClient, path: str, **content: Any) -> Any:
    return client.post(path, content=json.dumps(content))


def decode(answer: dict[str, Any]) -> np.ndarray:
    runs = np.array(answer["runs"])
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(answer["size"])


def test_the_page_and_its_parts_are_served_with_strict_headers(client: TestClient) -> None:
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        response = client.get(path)
        assert response.headers["content-type"].startswith(kind)
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
    state = client.get("/api/state").json()
    assert state["models"] == [
        {"name": "left", "kind": "float", "bytes": 1000},
        {"name": "right", "kind": "float", "bytes": 2000},
    ]
    for name in state["samples"]:
        Image.open(io.BytesIO(client.get(f"/samples/{name}").content)).verify()
    for path in ("/samples/../app.py", "/samples/%2e%2e/app.py", "/app.py", "/page/../../app.py"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("prompt", "arguments"),
    [
        ({"points": [[40, 30]], "labels": [1]}, {"point_coords": [[40, 30]], "point_labels": [1]}),
        (
            {"points": [[40, 30], [80, 5]], "labels": [1, 0]},
            {"point_coords": [[40, 30], [80, 5]], "point_labels": [1, 0], "multimask_output": False},
        ),
        ({"box": [70, 50, 10, 5]}, {"box": [10, 5, 70, 50], "multimask_output": False}),
    ],
)
def test_answers_are_the_masks_of_both_models(
    client: TestClient, models: list[ServedModel], prompt: dict[str, Any], arguments: dict[str, Any]
) -> None:
    image = upload(client)
    assert (image["width"], image["height"]) == (90, 60)
    result = request(client, "/api/predict", image=image["image"], models=NAMES, prompt=prompt).json()
    masks = []
    for model, answer in zip(models, result["answers"], strict=True):
        encoded = model.predictor.encode(picture((60, 90)))
        found, ious, _ = model.predictor.predict(image=encoded, **arguments)
        best = int(ious.argmax())
        np.testing.assert_array_equal(decode(answer), found[best])
        assert answer["predicted_iou"] == pytest.approx(float(ious[best]), abs=1e-4)
        assert answer["pixels"] == found[best].sum()
        assert answer["ms"] > 0
        assert answer["encode_ms"] > 0
        masks.append(found[best])
    union = (masks[0] | masks[1]).sum()
    assert result["iou"] == pytest.approx((masks[0] & masks[1]).sum() / union, abs=1e-4)


def test_files_have_the_size_of_the_image(
    client: TestClient, models: list[ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "SHOWN_SIDE", 45)
    image = upload(client)["image"]
    common = {"image": image, "prompt": {"box": [10, 5, 70, 50]}}
    shown = request(client, "/api/predict", models=["right"], **common).json()["answers"][0]
    assert shown["size"] == [30, 45]
    expected, _, _ = models[1].predictor.predict(
        box=[10, 5, 70, 50], multimask_output=False, image=models[1].predictor.encode(picture((60, 90)))
    )
    file = request(client, "/api/mask", models=["right"], format="png", **common).content
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(file))) == 255, expected[0])
    document = request(client, "/api/mask", models=["right"], format="coco", **common).json()
    assert document["images"][0]["file_name"] == "photo.png"
    assert document["annotations"][0]["area"] == expected[0].sum()
    rle = document["annotations"][0]["segmentation"]
    assert int(rle_codec.area({**rle, "counts": rle["counts"].encode()})) == expected[0].sum()


def test_everything_is_segmented(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    options = session_module.GeneratorOptions(3, 0.0, 0.0)
    monkeypatch.setattr(session_module, "GENERATOR", options)
    image = upload(client)["image"]
    result = request(client, "/api/everything", image=image, models=NAMES).json()
    for side in result["answers"]:
        sizes = [mask["pixels"] for mask in side["masks"]]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes


def test_an_image_is_encoded_once_by_each_model(models: list[ServedModel]) -> None:
    counts = dict.fromkeys(NAMES, 0)
    lock = threading.Lock()

    class Counting(Predictor):
        def encode(self, image: Any, image_format: str = "RGB") -> Any:
            with lock:
                counts[self.name] += 1
            return super().encode(image, image_format)

    counted = []
    for model in models:
        predictor = Counting(model.predictor.backend, model.predictor.processor)
        predictor.name = model.name
        counted.append(ServedModel(model.name, model.kind, model.size, predictor))
    with TestClient(create_app(Session(counted), [HOST]), base_url=f"http://{HOST}") as client:
        image = upload(client)["image"]
        content = {"image": image, "models": NAMES, "prompt": {"points": [[40, 30]], "labels": [1]}}
        with ThreadPoolExecutor(10) as pool:  # ten tabs at once
            responses = list(pool.map(lambda _: request(client, "/api/predict", **content), range(30)))
    assert {response.status_code for response in responses} == {200}
    assert len({json.dumps(response.json()["answers"][0]["runs"]) for response in responses}) == 1
    assert counts == {"left": 1, "right": 1}


def test_images_beyond_the_limit_go_first_in_first_out(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "KEPT_IMAGES", 2)
    first, second = (upload(client, png(seed=seed))["image"] for seed in range(2))
    prompt = {"box": [1, 1, 50, 50]}
    assert request(client, "/api/predict", image=first, models=NAMES, prompt=prompt).status_code == 200
    third = upload(client, png(seed=3))["image"]
    found = [
        request(client, "/api/predict", image=image, models=NAMES, prompt=prompt).status_code
        for image in (first, second, third)
    ]
    assert found == [200, 404, 200]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "photo.png: expected a readable image"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(200), "photo.png: expected a readable image"),
        (base64.b64decode("iVBORw0KGgo="), "photo.png: expected a readable image"),
    ],
)
def test_what_is_no_image_is_refused(client: TestClient, content: bytes, words: str) -> None:
    response = client.post("/api/images?name=photo.png", content=content)
    assert response.status_code == 400
    assert response.json()["error"].startswith(words)


def test_images_that_are_too_large_are_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAX_PIXELS", 5000)
    response = client.post("/api/images?name=a.png", content=png())
    assert (response.status_code, response.json()["error"]) == (
        400,
        "a.png: expected at most 0 megapixels, got 90 x 60",
    )
    wide = b"P6 30000 30000 255\n"
    assert "pixels" in client.post("/api/images", content=wide).json()["error"]
    monkeypatch.setattr("saqsam.serve.app.MAX_UPLOAD", 100)
    assert client.post("/api/images", content=bytes(101)).status_code == 400


GOOD = {"box": [1, 1, 50, 50]}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"models": NAMES, "prompt": GOOD}, "expected an image and one or two models"),
    ({"models": [], "prompt": GOOD}, "expected an image and one or two models"),
    ({"models": [*NAMES, "left"], "prompt": GOOD}, "expected an image and one or two models"),
    ({"models": ["../secret"], "prompt": GOOD}, "expected models that the page offers"),
    ({"models": NAMES, "prompt": None}, "prompt: expected points, labels and box"),
    ({"models": NAMES, "prompt": {}}, "prompt: expected a box, or a point on the object"),
    ({"models": NAMES, "prompt": {"points": [[1, 1]], "labels": [0]}}, "prompt: expected a box, or a point"),
    ({"models": NAMES, "prompt": {"points": [[1, 1]], "labels": []}}, "a label 0 or 1 each"),
    ({"models": NAMES, "prompt": {"points": [[1, 1]] * 65, "labels": [1] * 65}}, "at most 64 points"),
    ({"models": NAMES, "prompt": {"points": [[1, "1"]], "labels": [1]}}, "prompt: expected 2 numbers"),
    ({"models": NAMES, "prompt": {"box": [1, 1, 1e9, 5]}}, "prompt: expected 4 numbers"),
    ({"models": NAMES, "prompt": {"box": [1, 1, 1, 5]}}, "box: expected x0 < x1"),
    ({"models": NAMES, "prompt": {"box": [900, 1, 950, 5]}}, "box: expected one that meets"),
]


@pytest.mark.parametrize(("content", "words"), WRONG)
def test_wrong_requests_are_refused(client: TestClient, content: dict[str, Any], words: str) -> None:
    image = upload(client)["image"]
    given = content if content is WRONG[0][0] else {"image": image, **content}
    response = request(client, "/api/predict", **given)
    assert response.status_code == 400
    assert words in response.json()["error"]


@pytest.mark.parametrize("content", [b"{", b"[" * 5000, b"3", b"\xff", b" " * (MAX_REQUEST + 1)])
def test_requests_that_are_no_object_are_refused(client: TestClient, content: bytes) -> None:
    response = client.post("/api/predict", content=content)
    assert response.status_code == 400
    assert response.json()["error"].startswith("request: ")


def test_an_unknown_format_is_refused(client: TestClient) -> None:
    image = upload(client)["image"]
    response = request(client, "/api/mask", image=image, models=["left"], prompt=GOOD, format="exe")
    assert (response.status_code, response.json()["error"]) == (400, "format: expected png or coco")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1:9"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://{HOST}"}, 200),
        ({}, 200),
    ],
)
def test_other_hosts_and_pages_get_no_answer(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    assert client.post("/api/images", content=png(), headers=headers).status_code == status


def test_a_token_is_asked_of_everyone(models: list[ServedModel]) -> None:
    app = create_app(Session(models), [ANY_HOST], "secret")
    with TestClient(app, base_url="http://192.0.2.1:8000") as client:
        for path in ("/", "/api/state", "/?token=wrong"):
            assert client.get(path).status_code == 401
        assert client.get("/?token=secret").status_code == 200
        assert client.get("/api/state").status_code == 200  # by the cookie
        assert "HttpOnly" in client.get("/?token=secret").headers["set-cookie"]


def test_runs_go_along_the_rows() -> None:
    mask = np.array([[0, 1, 1], [1, 0, 0]], dtype=bool)
    assert row_runs(mask) == [1, 3, 2]
    assert row_runs(~mask) == [0, 1, 3, 2]
    assert row_runs(np.zeros((2, 2), dtype=bool)) == [4]
    assert row_runs(np.ones((2, 2), dtype=bool)) == [0, 4]


def test_points_beyond_the_border_are_moved_to_it() -> None:
    prompt = parse_prompt({"points": [[-5, 3], [200, 70]], "labels": [1, 1]}, (60, 90))
    assert prompt.points == ((0.0, 3.0), (pytest.approx(90, abs=0.01), pytest.approx(60, abs=0.01)))
    assert prompt.points[1][0] < 90


def test_the_page_names_no_other_server() -> None:
    folder = Path(session_module.__file__).parent / "page"
    for path in folder.glob("*.*"):
        text = path.read_text(encoding="utf-8")
        assert "http://" not in text
        assert "https://" not in text
