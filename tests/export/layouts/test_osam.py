"""The osam layout, which labelme runs: facts about osam 0.8.1, and osam's own code where it is installed."""

from pathlib import Path

import numpy as np
import pytest

from support.client_steps import Exports, official_feeds, picture, run, write_exports
from support.osam_client import osam_mask
from support.tiny_sam import IMAGE_SIZE, tiny_processor, tiny_sam

SIZE = (45, 60)
MARKS = {
    "point": ([[30.0, 20.0]], [1]),
    "points": ([[30.0, 20.0], [5.0, 40.0]], [1, 0]),
    "box": ([[5.0, 6.0], [50.0, 40.0]], [2, 3]),
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return write_exports(tiny_sam(), tiny_processor(), tmp_path_factory.mktemp("exports"), "osam")


@pytest.mark.parametrize("kind", MARKS)
def test_a_mask_of_256_pixels_is_taken_and_ignored(exports: Exports, kind: str) -> None:
    """osam sends zeros of 256 x 256 for any model, and -1 as has_mask_input."""
    image, (points, labels) = picture(SIZE), MARKS[kind]
    feeds = official_feeds(exports.own_embedding(image), points, labels, SIZE, IMAGE_SIZE)
    changed = {
        "mask_input": np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.array([-1], np.float32),
    }
    found, expected = run(exports.decoder, {**feeds, **changed}), exports.own_masks(feeds)
    assert list(found) == ["masks", "iou_predictions", "low_res_masks"]
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_mask_of_another_size_is_resized(exports: Exports) -> None:
    points, labels = MARKS["point"]
    feeds = official_feeds(exports.own_embedding(picture(SIZE)), points, labels, SIZE, IMAGE_SIZE)
    given = np.linspace(-3, 3, 32, dtype=np.float32)[None, None, None].repeat(32, axis=2)
    with_mask = {**feeds, "mask_input": given, "has_mask_input": np.ones(1, np.float32)}
    expected = exports.own_masks(with_mask)["low_res_masks"]
    found = run(exports.decoder, with_mask)["low_res_masks"]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected - exports.own_masks(feeds)["low_res_masks"]).max() > 0.1
    fine = given.repeat(8, axis=2).repeat(8, axis=3)
    found = run(exports.decoder, {**with_mask, "mask_input": fine})["low_res_masks"]
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_osam_itself_gets_the_masks(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    image, (points, labels) = picture(SIZE), MARKS[kind]
    found = osam_mask(exports, "sam:100m", image, points, labels, tmp_path, monkeypatch)
    feeds = official_feeds(exports.own_embedding(image), points, labels, SIZE, IMAGE_SIZE)
    expected = exports.own_masks(feeds)["masks"][0, 0] > 0
    assert (found & expected).sum() / (found | expected).sum() > 0.99
