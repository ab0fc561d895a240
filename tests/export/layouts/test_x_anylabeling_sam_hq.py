"""The samexporter layout of SAM-HQ, by the steps of X-AnyLabeling 4.2.1 (type `sam_hq`).

It scales images into a canvas of 684 x 1024 pixels, stacks all outputs of the encoder but the first, appends the
padding point itself, and reads the outputs of the decoder by position.
"""

import numpy as np
import onnxruntime
import pytest
import yaml

from support.anylabeling_client import CANVAS, MARKS, SCALE, SIZE, canvas_of
from support.client_steps import Exports, official_feeds, picture, write_exports
from support.published_sizes import published_processor, published_sam_hq


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    root = tmp_path_factory.mktemp("exports")
    return write_exports(published_sam_hq(), published_processor(), root, "samexporter")


def test_the_yaml_names_the_files(exports: Exports) -> None:
    found = yaml.safe_load((exports.folder / "x_anylabeling.yaml").read_text(encoding="utf-8"))
    assert found["type"] == "sam_hq"
    assert exports.encoder == exports.folder / found["encoder_model_path"]
    assert exports.decoder == exports.folder / found["decoder_model_path"]
    assert (found["input_size"], found["max_width"], found["max_height"]) == (1024, 1024, 682)
    assert not (exports.folder / "config.yaml").exists()  # AnyLabeling has no such type


@pytest.mark.parametrize("kind", MARKS)
def test_x_anylabeling_gets_the_masks_of_its_canvas(exports: Exports, kind: str) -> None:
    canvas = canvas_of(picture(SIZE))
    encoder = onnxruntime.InferenceSession(exports.encoder, providers=["CPUExecutionProvider"])
    outputs = encoder.run(None, {encoder.get_inputs()[0].name: canvas.astype(np.float32)})
    stacked = np.stack(outputs[1:])
    own = exports.own_features(canvas)
    for found, expected in ((outputs[0], own["image_embeddings"]), (stacked[0], own["hq_features"])):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())

    points, labels = MARKS[kind]
    feeds = official_feeds(outputs[0], np.array(points) * SCALE, labels, CANVAS, 1024)
    decoder = onnxruntime.InferenceSession(exports.decoder, providers=["CPUExecutionProvider"])
    masks, scores, low_res = decoder.run(None, {**feeds, "interm_embeddings": stacked})
    assert masks.shape == (1, 1, *CANVAS)
    wanted = exports.own_masks({**feeds, "hq_features": stacked[0]})
    for found, name in ((masks, "masks"), (scores, "iou_predictions"), (low_res, "low_res_masks")):
        np.testing.assert_array_equal(found, wanted[name])
