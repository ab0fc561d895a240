"""The samexporter layout of SAM 2, as AnyLabeling, X-AnyLabeling and samexporter's own inference load it.

Facts about the clients: AnyLabeling 0.4.43, X-AnyLabeling 4.2.1 and samexporter 0.5.0 stretch the image to the size of
the encoder's input, read and feed everything by position, leave out the padding point, and choose among the masks by
predicted IoU. AnyLabeling knows SAM 2 by the decoder's input `high_res_feats_0`.
"""

import numpy as np
import pytest
import yaml

from saqsam.inference.backend import TorchBackend
from saqsam.inference.predictor import Predictor
from support.client_steps import Exports, picture, run, stretched_feeds, write_exports
from support.tiny_sam2 import IMAGE_SIZE, tiny_sam2, tiny_sam2_processor

SIZE = (90, 120)
MARKS = {
    "point": ([[50.0, 37.0]], [1]),
    "points": ([[50.0, 37.0], [10.0, 80.0]], [1, 0]),
    "box": ([[10.0, 12.0], [80.0, 60.0]], [2, 3]),
}
NAMES = {
    "image_embed": "image_embeddings",
    "high_res_feats_0": "high_res_features_0",
    "high_res_feats_1": "high_res_features_1",
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    root = tmp_path_factory.mktemp("exports")
    return write_exports(tiny_sam2(), tiny_sam2_processor(), root, "samexporter", single_mask=False)


@pytest.mark.parametrize(
    ("file", "kind", "sizes"),
    [
        ("config.yaml", "segment_anything", {"input_size": 1024, "max_width": 1024, "max_height": 682}),
        ("x_anylabeling.yaml", "segment_anything_2", {}),
    ],
)
def test_the_yaml_names_the_files(exports: Exports, file: str, kind: str, sizes: dict[str, int]) -> None:
    found = yaml.safe_load((exports.folder / file).read_text(encoding="utf-8"))
    label = found["name"]
    assert label.startswith("saqsam-float-")
    assert found == {
        "type": kind,
        "name": label,
        "display_name": "Segment Anything 2 (float, saqsam)",
        "encoder_model_path": f"{label}.encoder.onnx",
        "decoder_model_path": f"{label}.decoder.onnx",
        **sizes,
    }
    assert exports.encoder == exports.folder / found["encoder_model_path"]
    assert exports.decoder == exports.folder / found["decoder_model_path"]


def client_feeds(own: dict[str, np.ndarray], *, flags: int = 1) -> dict[str, np.ndarray]:
    """Return what clients feed, from the inputs of saqsam's own decoder."""
    return {
        **{name: own[feature] for name, feature in NAMES.items()},
        "point_coords": own["point_coords"][:, :-1],
        "point_labels": own["point_labels"][:, :-1],
        "mask_input": own["mask_input"],
        "has_mask_input": own["has_mask_input"].repeat(flags),
    }


@pytest.mark.parametrize("kind", MARKS)
def test_the_decoder_returns_three_masks_of_its_own_size(exports: Exports, kind: str) -> None:
    own = stretched_feeds(exports.own_features(picture(SIZE)), *MARKS[kind], SIZE, IMAGE_SIZE)
    found, expected = run(exports.decoder, client_feeds(own)), exports.own_masks(own)
    assert list(found) == ["masks", "iou_predictions"]
    np.testing.assert_array_equal(found["masks"], expected["low_res_masks"][:, 1:])
    np.testing.assert_array_equal(found["iou_predictions"], expected["iou_predictions"][:, 1:])


@pytest.mark.parametrize("flags", [1, 3])
@pytest.mark.parametrize("has_mask", [0, 1])
def test_prompts_are_batched(exports: Exports, flags: int, has_mask: int) -> None:
    """X-AnyLabeling segments everything with 64 points per call, as many masks, and one flag for all of them."""
    features = exports.own_features(picture(SIZE))
    own = stretched_feeds(features, *MARKS["point"], SIZE, IMAGE_SIZE)
    places = np.array([[[20, 30]], [[64, 64]], [[100, 9]]], np.float32)
    masks = np.linspace(-4, 4, 3 * 32 * 32, dtype=np.float32).reshape(3, 1, 32, 32)
    both = {
        **client_feeds(own),
        "point_coords": places,
        "point_labels": np.ones((3, 1), np.float32),
        "mask_input": masks,
        "has_mask_input": np.full(flags, has_mask, np.float32),
    }
    found = run(exports.decoder, both)
    assert found["masks"].shape == (3, 3, 32, 32)
    for index in range(3):
        one = {
            **own,
            "point_coords": np.concatenate([places[index : index + 1], np.zeros((1, 1, 2), np.float32)], 1),
            "mask_input": masks[index : index + 1],
            "has_mask_input": np.full(1, has_mask, np.float32),
        }
        expected = exports.own_masks(one)["low_res_masks"][0, 1:]
        np.testing.assert_allclose(found["masks"][index], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("kind", MARKS)
def test_samexporter_itself_gets_torchs_masks(exports: Exports, kind: str) -> None:
    """Run where `pip install --no-deps samexporter==0.5.0` has put its code; its dependencies pin another torch."""
    client = pytest.importorskip("samexporter.sam2_onnx").SegmentAnything2ONNX(
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
    assert masks.shape == (1, 1, *SIZE)
    predictor = Predictor(TorchBackend(tiny_sam2()), tiny_sam2_processor())
    predictor.set_image(image)
    asked = (
        {"box": np.array(points).ravel()}
        if kind == "box"
        else {"point_coords": np.array(points), "point_labels": np.array(labels)}
    )
    logits, scores, _ = predictor.predict(**asked, multimask_output=True, return_logits=True)
    wanted = logits[scores.argmax()]
    # OpenCV resizes the image with other weights than Pillow.
    assert np.linalg.norm(masks[0, 0] - wanted) < 0.1 * np.linalg.norm(wanted)
    found = masks[0, 0] > 0
    assert (found & (wanted > 0)).sum() / (found | (wanted > 0)).sum() > 0.9
