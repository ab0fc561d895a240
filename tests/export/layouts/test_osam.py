"""The osam layout, which labelme runs: facts about osam 0.8.1, and osam's own code where it is installed."""

from pathlib import Path

import numpy as np
import pytest

from saqsam.models.processing import build_processor
from support.client_steps import Exports, official_feeds, picture, run, write_exports
from support.osam_client import osam_mask
from support.tiny_mobile_sam import tiny_mobile_sam
from support.tiny_sam import tiny_sam

SIZE = (45, 60)
MARKS = {
    "point": ([[30.0, 20.0]], [1]),
    "points": ([[30.0, 20.0], [5.0, 40.0]], [1, 0]),
    "box": ([[5.0, 6.0], [50.0, 40.0]], [2, 3]),
}


@pytest.fixture(scope="module", params=[tiny_sam, tiny_mobile_sam], ids=["sam", "mobile_sam"])
def exports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    model = request.param()
    return write_exports(model, build_processor(model.config), tmp_path_factory.mktemp("exports"), "osam")


def feeds_of(exports: Exports, image: np.ndarray, kind: str) -> dict[str, np.ndarray]:
    """Return the inputs of the official decoder for marks on an image."""
    size = exports.processor.image_processor.size["longest_edge"]
    return official_feeds(exports.own_embedding(image), *MARKS[kind], SIZE, size)


@pytest.mark.parametrize("kind", MARKS)
def test_a_mask_of_256_pixels_is_taken_and_ignored(exports: Exports, kind: str) -> None:
    """osam sends zeros of 256 x 256 for any model, and -1 as has_mask_input."""
    feeds = feeds_of(exports, picture(SIZE), kind)
    changed = {
        "mask_input": np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.array([-1], np.float32),
    }
    found, expected = run(exports.decoder, {**feeds, **changed}), exports.own_masks(feeds)
    assert list(found) == ["masks", "iou_predictions", "low_res_masks"]
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_mask_of_another_size_is_resized(exports: Exports) -> None:
    feeds = feeds_of(exports, picture(SIZE), "point")
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
    expected = exports.own_masks(feeds_of(exports, image, kind))["masks"][0, 0] > 0
    assert (found & expected).sum() / (found | expected).sum() > 0.99
