"""The samexporter layout, as AnyLabeling, X-AnyLabeling and samexporter's own inference load it.

Facts about the clients: AnyLabeling 0.4.43 and X-AnyLabeling 4.2.1 scale the image into a canvas of 684 x 1024 pixels
and feed it as HWC floats to the encoder's only input; samexporter 0.5.0 feeds the resized image. All append the padding
point themselves, and read the outputs of the decoder by position.
"""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml

from saqsam.inference.backend import TorchBackend
from saqsam.inference.predictor import Predictor
from support.anylabeling_client import CANVAS, MARKS, SCALE, SIZE, canvas_of
from support.client_steps import Exports, official_feeds, picture, run, write_exports
from support.published_sizes import published_mobile_sam, published_processor, published_sam


@pytest.fixture(scope="module", params=[published_sam, published_mobile_sam], ids=["sam", "mobile_sam"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture(scope="module")
def exports(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return write_exports(model, published_processor(), tmp_path_factory.mktemp("exports"), "samexporter")


def test_the_yaml_names_the_files(exports: Exports) -> None:
    found = yaml.safe_load((exports.folder / "config.yaml").read_text(encoding="utf-8"))
    label = found["name"]
    assert label.startswith("saqsam-float-")
    assert found == {
        "type": "segment_anything",
        "name": label,
        "display_name": "Segment Anything (float, saqsam)",
        "encoder_model_path": f"{label}.encoder.onnx",
        "decoder_model_path": f"{label}.decoder.onnx",
        "input_size": 1024,
        "max_width": 1024,
        "max_height": 682,
    }
    assert exports.encoder == exports.folder / found["encoder_model_path"]
    assert exports.decoder == exports.folder / found["decoder_model_path"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MARKS)
def test_anylabeling_gets_the_masks_of_its_canvas(exports: Exports, kind: str) -> None:
    canvas = canvas_of(picture(SIZE))
    encoder = onnxruntime.InferenceSession(exports.encoder, providers=["CPUExecutionProvider"])
    (embedding,) = encoder.run(None, {encoder.get_inputs()[0].name: canvas.astype(np.float32)})
    expected = exports.own_embedding(canvas)
    np.testing.assert_allclose(embedding, expected, atol=1e-4 * np.abs(expected).max())

    points, labels = MARKS[kind]
    feeds = official_feeds(embedding, np.array(points) * SCALE, labels, CANVAS, 1024)
    decoder = onnxruntime.InferenceSession(exports.decoder, providers=["CPUExecutionProvider"])
    masks, scores, low_res = decoder.run(None, feeds)
    assert masks.shape == (1, 1, *CANVAS)
    for found, name in ((masks, "masks"), (scores, "iou_predictions"), (low_res, "low_res_masks")):
        np.testing.assert_array_equal(found, exports.own_masks(feeds)[name])


def test_images_of_any_shape_are_padded(exports: Exports) -> None:
    for size in ((1024, 300), (17, 1024), (1024, 1024)):
        image = picture(size)
        found = run(exports.encoder, {"input_image": image.astype(np.float32)})["image_embeddings"]
        expected = exports.own_embedding(image)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("kind", MARKS)
def test_samexporter_itself_gets_torchs_masks(model: Any, exports: Exports, kind: str) -> None:
    """Run where `pip install --no-deps samexporter==0.5.0` has put its code; its dependencies pin another torch."""
    client = pytest.importorskip("samexporter.sam_onnx").SegmentAnythingONNX(
        str(exports.encoder), str(exports.decoder), providers="cpu"
    )
    image, (points, labels) = picture(SIZE), MARKS[kind]
    prompt = [
        {"type": "point", "data": point, "label": label}
        for point, label in zip(points, labels, strict=True)
        if label < 2
    ]
    if kind == "box":
        prompt = [{"type": "rectangle", "data": [*points[0], *points[1]]}]
    masks = client.predict_masks(client.encode(np.ascontiguousarray(image[..., ::-1])), prompt)
    feeds = official_feeds(exports.own_embedding(image), points, labels, SIZE, 1024)
    expected = exports.own_masks(feeds)["masks"]
    np.testing.assert_allclose(masks, expected, atol=1e-3 * np.abs(expected).max())
    if kind == "points":  # a prompt without padding after a box, and without a choice among three masks
        predictor = Predictor(TorchBackend(model), published_processor())
        predictor.set_image(image)
        torchs, _, _ = predictor.predict(
            np.array(points), np.array(labels), multimask_output=False, return_logits=True
        )
        np.testing.assert_allclose(masks[0], torchs, atol=1e-3 * np.abs(torchs).max())
