"""`GeneratedMask` as a dataclass and as the dictionary of the official generator."""

import numpy as np
import pycocotools.mask as rle_codec
import pytest

from saqsam.data.rle import encode_mask
from saqsam.inference.generated_mask import GeneratedMask, OutputMode
from support.coco_folder import rectangle, uncompressed

PIXELS = rectangle((20, 30), (4, 5, 10, 17))


def generated(output_mode: OutputMode = "binary_mask", pixels: np.ndarray = PIXELS) -> GeneratedMask:
    return GeneratedMask(
        encode_mask(pixels), (4, 5, 10, 17), 0.9, 0.8, (6.5, 7.25), (2, 1, 30, 20), output_mode
    )


def test_keys_are_those_of_the_official_generator() -> None:
    mask = generated()
    np.testing.assert_array_equal(mask["segmentation"], PIXELS)
    assert mask["segmentation"].dtype == bool
    assert (mask["area"], mask["predicted_iou"], mask["stability_score"]) == (72, 0.9, 0.8)
    assert mask["bbox"] == [4, 5, 6, 12] == rle_codec.toBbox(mask.rle).tolist()
    assert mask["crop_box"] == [2, 1, 28, 19]
    assert mask["point_coords"] == [[6.5, 7.25]]
    assert list(mask.keys()) == [
        *("segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box")
    ]


def test_attributes_and_keys_agree() -> None:
    mask = generated()
    for name in ("area", "predicted_iou", "stability_score"):
        assert mask[name] == getattr(mask, name)
    np.testing.assert_array_equal(mask.segmentation, mask.mask())


def test_a_mask_is_a_read_only_mapping() -> None:
    mask = generated()
    assert "area" in mask
    assert "label" not in mask
    assert len(mask) == len(dict(mask)) == len({**mask}) == 7
    assert mask.get("label", "none") == "none"
    with pytest.raises(KeyError, match="box"):
        mask["box"]
    with pytest.raises(TypeError):
        mask["label"] = 1  # type: ignore[index]
    assert mask == generated()
    assert mask != generated(pixels=~PIXELS)


def test_output_modes_give_the_forms_of_coco() -> None:
    coco, plain = generated("coco_rle")["segmentation"], generated("uncompressed_rle")["segmentation"]
    assert coco == {"size": [20, 30], "counts": encode_mask(PIXELS)["counts"].decode()}
    assert plain == uncompressed(PIXELS)
    starts_inside = generated("uncompressed_rle", ~PIXELS)["segmentation"]
    assert starts_inside == uncompressed(~PIXELS)
