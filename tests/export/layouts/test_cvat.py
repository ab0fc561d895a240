"""The cvat layout: a decoder that crops the mask and returns its bounds.

Facts about CVAT: its page scales points by 1,024 over the longer side, sends the mask of the last call while clicks are
added, and reads `masks` as bytes within the inclusive bounds `xtl, ytl, xbr, ybr`. Its server returns the embedding,
base64 of float32 [1, 256, 64, 64].
"""

from pathlib import Path

import numpy as np
import onnx
import pytest

from saqsam.export.layouts import outputs
from saqsam.export.layouts.contract import Context
from saqsam.export.onnx.graph import Graph
from saqsam.models.registry import family_of
from support.client_steps import Exports, official_feeds, picture, run, write_exports
from support.published_sizes import published_processor, published_sam

SIZE = (90, 120)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return write_exports(published_sam(), published_processor(), tmp_path_factory.mktemp("exports"), "cvat")


def feeds_of(exports: Exports) -> dict[str, np.ndarray]:
    embedding = exports.own_embedding(picture(SIZE))
    return official_feeds(embedding, [[50.0, 37.0], [100.0, 80.0]], [1, 0], SIZE, 1024)


def test_the_mask_lies_within_its_bounds(exports: Exports) -> None:
    feeds = feeds_of(exports)
    found, expected = run(exports.decoder, feeds), exports.own_masks(feeds)
    left, top, right, bottom = (int(found[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
    assert found["masks"].dtype == np.uint8
    assert found["masks"].shape == (1, 1, bottom - top + 1, right - left + 1)
    whole = np.zeros(SIZE, np.uint8)
    whole[top : bottom + 1, left : right + 1] = found["masks"][0, 0]
    np.testing.assert_array_equal(whole, expected["masks"][0, 0] > 0)
    rows, columns = np.nonzero(whole)
    assert (top, bottom, left, right) == (rows.min(), rows.max(), columns.min(), columns.max())
    assert 0 < whole.sum() < whole.size
    for name in ("iou_predictions", "low_res_masks"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_the_last_mask_is_an_input_of_the_next_call(exports: Exports) -> None:
    feeds = feeds_of(exports)
    first = run(exports.decoder, feeds)
    again = {**feeds, "mask_input": first["low_res_masks"], "has_mask_input": np.ones(1, np.float32)}
    found, expected = run(exports.decoder, again), exports.own_masks(again)
    np.testing.assert_array_equal(found["low_res_masks"], expected["low_res_masks"])
    assert np.abs(found["low_res_masks"] - first["low_res_masks"]).max() > 0.1


@pytest.mark.parametrize(
    ("pixels", "bounds"), [([(2, 3)], (3, 2, 3, 2)), ([(0, 4), (5, 1)], (1, 0, 4, 5)), ([], (0, 0, 8, 6))]
)
def test_an_empty_mask_has_the_bounds_of_the_image(
    tmp_path: Path, pixels: list[tuple[int, int]], bounds: tuple[int, ...]
) -> None:
    config = published_sam().config
    graph, context = Graph("decoder"), Context(family_of(config).input_spec(config), (), ())
    logits = graph.input("logits", (1, 1, "height", "width"))
    outputs.cropped_mask(graph, context, logits, "masks")
    for name, adapter in (
        *(("xtl", outputs.left), ("ytl", outputs.top)),
        *(("xbr", outputs.right), ("ybr", outputs.bottom)),
    ):
        adapter(graph, context, logits, name)
    onnx.save(graph.model({}), tmp_path / "bounds.onnx")
    given = np.full((1, 1, 7, 9), -1, np.float32)
    for row, column in pixels:
        given[0, 0, row, column] = 1
    found = run(tmp_path / "bounds.onnx", {"logits": given})
    left, top, right, bottom = bounds
    assert tuple(int(found[name]) for name in ("xtl", "ytl", "xbr", "ybr")) == bounds
    np.testing.assert_array_equal(found["masks"][0, 0], given[0, 0, top : bottom + 1, left : right + 1] > 0)


def test_the_encoder_gives_the_embedding(exports: Exports) -> None:
    image = picture((768, 1024))
    expected = exports.own_embedding(image)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    pixels = np.zeros((1, 3, 1024, 1024), np.float32)
    pixels[0, :, :768] = ((image - mean) / std).transpose(2, 0, 1)
    found = run(exports.encoder, {"images": pixels})["embeddings"]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
