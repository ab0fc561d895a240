"""The osam layout of SAM 2, which labelme and RectLabel run: facts about osam 0.8.1, and osam's own code.

RectLabel's sam-cpp-macos sends the same inputs in the order of the file, and mask inputs of 256 x 256.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from support.client_steps import Exports, picture, run, stretched_feeds, write_exports
from support.osam_client import osam_mask
from support.tiny_sam2 import IMAGE_SIZE, tiny_sam2, tiny_sam2_processor

SIZE = (45, 60)
MARKS = {
    "point": ([[30.0, 20.0]], [1]),
    "points": ([[30.0, 20.0], [5.0, 40.0]], [1, 0]),
    "box": ([[5.0, 6.0], [50.0, 40.0]], [2, 3]),
}
NAMES = {
    "image_embeddings": "image_embeddings",
    "high_res_features1": "high_res_features_0",
    "high_res_features2": "high_res_features_1",
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    root = tmp_path_factory.mktemp("exports")
    return write_exports(tiny_sam2(), tiny_sam2_processor(), root, "osam", single_mask=False)


def feeds_of(exports: Exports, kind: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the inputs of a client, and those of saqsam's own decoder."""
    own = stretched_feeds(exports.own_features(picture(SIZE)), *MARKS[kind], SIZE, IMAGE_SIZE)
    client = {
        **{name: own[feature] for name, feature in NAMES.items()},
        "point_coords": own["point_coords"][:, :-1],
        "point_labels": own["point_labels"][:, :-1],
        "mask_input": np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(SIZE, np.int64),
    }
    return client, own


@pytest.mark.parametrize("kind", MARKS)
def test_clients_leave_out_the_padding_point(exports: Exports, kind: str) -> None:
    client, own = feeds_of(exports, kind)
    found, expected = run(exports.decoder, client), exports.own_masks(own)
    assert list(found) == ["masks", "iou_predictions", "low_res_masks"]
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name])


def test_several_prompts_share_an_image(exports: Exports) -> None:
    client, _ = feeds_of(exports, "points")
    pairs = np.concatenate([client["point_coords"], client["point_coords"][:, ::-1]])
    labels = np.concatenate([client["point_labels"], 1 - client["point_labels"]])
    found = run(exports.decoder, {**client, "point_coords": pairs, "point_labels": labels})
    for index in range(2):
        one = {**client, "point_coords": pairs[index : index + 1], "point_labels": labels[index : index + 1]}
        for name, values in run(exports.decoder, one).items():
            np.testing.assert_allclose(found[name][index], values[0], atol=1e-4 * np.abs(values).max())


def test_the_last_mask_is_an_input_of_the_next_call(exports: Exports) -> None:
    client, own = feeds_of(exports, "point")
    mask = run(exports.decoder, client)["low_res_masks"][:, 1:2]
    fine = mask.repeat(8, axis=2).repeat(8, axis=3)
    flag = np.ones(1, np.float32)
    found = run(exports.decoder, {**client, "mask_input": fine, "has_mask_input": flag})["low_res_masks"]
    expected = exports.own_masks({**own, "mask_input": mask, "has_mask_input": flag})["low_res_masks"]
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)
    assert np.abs(found - exports.own_masks(own)["low_res_masks"]).max() > 0.1


def test_the_encoder_states_its_sizes(exports: Exports) -> None:
    """sam-cpp-macos allocates outputs by the shapes in the file."""
    session = onnxruntime.InferenceSession(exports.encoder, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, IMAGE_SIZE, IMAGE_SIZE]
    shapes = [value.shape for value in session.get_outputs()]
    assert shapes == [[1, 32, 8, 8], [1, 4, 32, 32], [1, 8, 16, 16]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_osam_itself_gets_the_masks(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    image, (points, labels) = picture(SIZE), MARKS[kind]
    found = osam_mask(exports, "sam2:tiny", image, points, labels, tmp_path, monkeypatch)
    _, own = feeds_of(exports, kind)
    outputs = exports.own_masks(own)
    expected = outputs["masks"][0, outputs["iou_predictions"][0].argmax()] > 0
    assert 0 < expected.mean() < 1
    assert (found & expected).sum() / (found | expected).sum() > 0.99
