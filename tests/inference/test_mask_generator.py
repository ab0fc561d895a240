"""`MaskGenerator` against the official generator, and on masks that are known."""

import dataclasses
import inspect
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as rle_codec
import pytest
import torch

from saqsam.data.rle import encode_mask
from saqsam.inference.mask_generator import (
    GeneratedMask,
    GeneratorOptions,
    MaskGenerator,
)
from saqsam.inference.mask_regions import remove_small_regions
from saqsam.inference.predictor import Predictor
from saqsam.inference.prompts import Prompts
from support.blobs import Blobs
from support.coco_folder import picture
from support.small_official import convert, small_official
from support.tiny_sam import tiny_processor

from segment_anything import SamAutomaticMaskGenerator  # isort: skip  # small_official made it importable

IMAGE = cv2.resize(picture((12, 16), 3), (150, 110), interpolation=cv2.INTER_CUBIC)

OPTIONS: list[dict[str, Any]] = [
    {},
    {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0},
    {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.5, "box_nms_thresh": 0.3},
    {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.8, "stability_score_offset": 0.5},
    {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.5, "min_mask_region_area": 40},
    {
        "pred_iou_thresh": 0.6,
        "stability_score_thresh": 0.5,
        "crop_n_layers": 2,
        "crop_n_points_downscale_factor": 2,
        "crop_nms_thresh": 0.5,
        "min_mask_region_area": 40,
    },
]


def official_masks(predictor: Predictor, options: dict[str, Any], side: int) -> list[dict[str, Any]]:
    """Run the official generator on our predictor, which has all the calls that it makes."""
    generator = SamAutomaticMaskGenerator(
        small_official(), points_per_side=side, points_per_batch=7, output_mode="coco_rle", **options
    )
    generator.predictor = predictor
    return generator.generate(IMAGE)


def assert_same(ours: list[GeneratedMask], official: list[dict[str, Any]], *, exact: bool) -> None:
    assert len(ours) == len(official) > 0
    for one, other in zip(ours, official, strict=True):
        truth = {"size": other["segmentation"]["size"], "counts": other["segmentation"]["counts"].encode()}
        if exact:
            assert one.rle == truth
            x, y, width, height = rle_codec.toBbox(truth)
            assert one.box == (x, y, x + width, y + height)
        else:
            assert rle_codec.iou([one.rle], [truth], [0])[0, 0] > 0.998
        assert one.predicted_iou == pytest.approx(other["predicted_iou"], abs=1e-4)
        assert one.stability_score == pytest.approx(other["stability_score"], abs=1e-6 if exact else 2e-3)
        np.testing.assert_allclose(one.point, other["point_coords"][0])
        x, y, width, height = other["crop_box"]
        assert one.crop_box == (x, y, x + width, y + height)


@pytest.mark.parametrize("options", OPTIONS)
def test_agrees_with_the_official_generator_on_masks_of_many_kinds(options: dict[str, Any]) -> None:
    predictor = Predictor(Blobs(), tiny_processor(), prompts_at_once=5)
    expected = official_masks(predictor, options, side=9)
    found = MaskGenerator(predictor, GeneratorOptions(points_per_side=9, **options)).generate(IMAGE)
    assert_same(found, expected, exact=True)
    assert all(one.area == rle_codec.area(one.rle) == one.mask().sum() for one in found)


def test_agrees_with_the_official_generator_on_a_model() -> None:
    official = small_official(seed=1)
    options = {
        "pred_iou_thresh": 0.03,
        "stability_score_thresh": 0.8,
        "stability_score_offset": 0.01,
        "box_nms_thresh": 1.0,
    }
    generator = SamAutomaticMaskGenerator(official, points_per_side=6, output_mode="coco_rle", **options)
    expected = generator.generate(IMAGE)
    predictor = Predictor(convert(official))
    found = MaskGenerator(predictor, GeneratorOptions(points_per_side=6, **options)).generate(IMAGE)
    assert 10 < len(found) < 108
    assert_same(found, expected, exact=False)


def test_masks_of_crops_come_first() -> None:
    options = GeneratorOptions(8, 0.6, 0.5, crop_n_layers=1)
    found = MaskGenerator(Predictor(Blobs(), tiny_processor()), options).generate(IMAGE)
    sizes = [(one.crop_box[2] - one.crop_box[0]) * (one.crop_box[3] - one.crop_box[1]) for one in found]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 1
    for one in found:
        x0, y0, x1, y1 = one.crop_box
        outside = one.mask()
        outside[y0:y1, x0:x1] = False
        assert not outside.any()
        assert x0 <= one.point[0] < x1
        assert y0 <= one.point[1] < y1


def test_an_encoded_image_is_not_encoded_again_and_the_current_one_stays_set() -> None:
    backend = Blobs()
    predictor = Predictor(backend, tiny_processor())
    generator = MaskGenerator(predictor, GeneratorOptions(4, 0.6, 0.5, crop_n_layers=1))
    first = generator.generate(IMAGE)
    assert backend.encoded == 5
    assert generator.generate(IMAGE, encoded=predictor.image) == first
    assert backend.encoded == 9
    assert predictor.original_size == IMAGE.shape[:2]


def test_prompts_at_once_change_nothing() -> None:
    options = GeneratorOptions(7, 0.6, 0.5)
    results = [
        MaskGenerator(Predictor(Blobs(), tiny_processor(), prompts_at_once=n), options).generate(IMAGE)
        for n in (1, 49)
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (3, 4), (300, 2)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    options = GeneratorOptions(3, 0.0, 0.0, crop_n_layers=1)
    for one in MaskGenerator(Predictor(Blobs(), tiny_processor()), options).generate(picture(size)):
        assert one.rle["size"] == list(size)
        assert one.area > 0


def test_no_mask_passes_and_a_layer_has_no_points() -> None:
    predictor = Predictor(Blobs(), tiny_processor())
    assert MaskGenerator(predictor, GeneratorOptions(4, pred_iou_thresh=1.0)).generate(IMAGE) == []
    backend = Blobs()
    options = GeneratorOptions(2, 0.6, 0.5, crop_n_layers=2, crop_n_points_downscale_factor=2)
    MaskGenerator(Predictor(backend, tiny_processor()), options).generate(IMAGE)
    assert backend.encoded == 5  # 2 x 2, 1 x 1 and no points a crop


def test_outputs_that_are_not_finite_are_refused() -> None:
    class Broken(Blobs):
        def decode(
            self, embedding: torch.Tensor, prompts: Prompts, multimask_output: bool
        ) -> tuple[torch.Tensor, torch.Tensor]:
            logits, rated = super().decode(embedding, prompts, multimask_output)
            logits[0, 0, 0, 0] = torch.nan
            return logits, rated

    with pytest.raises(ValueError, match="NaN"):
        MaskGenerator(Predictor(Broken(), tiny_processor())).generate(IMAGE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"points_per_side": 0},
        {"pred_iou_thresh": 1.5},
        {"stability_score_thresh": float("nan")},
        {"stability_score_offset": -1.0},
        {"box_nms_thresh": -0.1},
        {"crop_nms_thresh": 2},
        {"crop_n_layers": -1},
        {"crop_overlap_ratio": 1.0},
        {"crop_n_points_downscale_factor": 0},
        {"min_mask_region_area": -1},
    ],
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}: expected"):
        GeneratorOptions(**wrong)


def test_small_regions_are_removed() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[2:12, 2:12] = True
    mask[4:6, 4:6] = False  # a hole of 4
    mask[15:18, 15:18] = True  # an island of 9
    same, is_changed = remove_small_regions(mask, 4)
    assert not is_changed
    assert (same == mask).all()
    filled, is_changed = remove_small_regions(mask, 5)
    assert is_changed
    assert filled.sum() == 100 + 9
    assert remove_small_regions(mask, 10)[0].sum() == 100
    # All islands are small: the largest stays, without its hole.
    assert remove_small_regions(mask, 101)[0].sum() == 100
    assert encode_mask(mask) == encode_mask(remove_small_regions(mask, 0)[0])


def found_boxes(generator: MaskGenerator) -> list[tuple[int, ...]]:
    return [mask.box for mask in generator.generate(IMAGE)]


def test_keywords_are_those_of_the_official_generator() -> None:
    parameters = inspect.signature(SamAutomaticMaskGenerator.__init__).parameters
    values = {name: value.default for name, value in parameters.items() if name not in ("self", "model")}
    generator = MaskGenerator(Predictor(Blobs(), tiny_processor()), **values)
    assert generator.options == GeneratorOptions()
    assert generator.points_per_batch == 64


def test_keywords_change_options() -> None:
    predictor = Predictor(Blobs(), tiny_processor())
    options = GeneratorOptions(9, 0.6, 0.5)
    expected = found_boxes(MaskGenerator(predictor, options))
    keywords = {"points_per_side": 9, "pred_iou_thresh": 0.6, "stability_score_thresh": 0.5}
    assert found_boxes(MaskGenerator(predictor, **keywords)) == expected
    assert found_boxes(MaskGenerator(model=Blobs(), processor=tiny_processor(), **keywords)) == expected
    assert MaskGenerator(predictor, options, crop_n_layers=1).options == dataclasses.replace(
        options, crop_n_layers=1
    )


def test_points_per_batch_bounds_the_prompts_of_a_call() -> None:
    class Counting(Blobs):
        largest = 0

        def decode(
            self, embedding: torch.Tensor, prompts: Prompts, multimask_output: bool
        ) -> tuple[torch.Tensor, torch.Tensor]:
            self.largest = max(self.largest, len(prompts))
            return super().decode(embedding, prompts, multimask_output)

    for points_per_batch, expected in ((None, 5), (7, 7), (1000, 81)):
        backend = Counting()
        predictor = Predictor(backend, tiny_processor(), prompts_at_once=5)
        MaskGenerator(predictor, points_per_side=9, points_per_batch=points_per_batch).generate(IMAGE)
        assert backend.largest == expected


def test_point_grids_agree_with_the_official_generator() -> None:
    predictor = Predictor(Blobs(), tiny_processor())
    rng = np.random.default_rng(0)
    options = {
        "points_per_side": None,
        "point_grids": [rng.uniform(0, 1, (30, 2)), rng.uniform(0, 1, (8, 2))],
        "pred_iou_thresh": 0.6,
        "stability_score_thresh": 0.5,
        "crop_n_layers": 1,
    }
    official = SamAutomaticMaskGenerator(small_official(), output_mode="coco_rle", **options)
    official.predictor = predictor
    assert_same(MaskGenerator(predictor, **options).generate(IMAGE), official.generate(IMAGE), exact=True)


@pytest.mark.parametrize("output_mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
@pytest.mark.parametrize("min_mask_region_area", [0, 40])
def test_output_modes_agree_with_the_official_generator(output_mode: Any, min_mask_region_area: int) -> None:
    predictor = Predictor(Blobs(), tiny_processor())
    options: dict[str, Any] = {
        "points_per_side": 5,
        "pred_iou_thresh": 0.6,
        "stability_score_thresh": 0.5,
        "min_mask_region_area": min_mask_region_area,
        "output_mode": output_mode,
    }
    official = SamAutomaticMaskGenerator(small_official(), **options)
    official.predictor = predictor
    ours = MaskGenerator(predictor, **options).generate(IMAGE)
    expected = official.generate(IMAGE)
    assert len(ours) == len(expected) > 0
    for one, other in zip(ours, expected, strict=True):
        assert list(one) == list(other)
        np.testing.assert_equal(one["segmentation"], other["segmentation"])
        for key in ("area", "point_coords", "crop_box"):
            assert one[key] == other[key]
        x, y, width, height = other["bbox"]
        assert one["bbox"] == [x, y, width + 1, height + 1]  # the official box ends at the last pixel


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"points_per_side": 0}, "points_per_side: expected at least 1, got 0"),
        ({"points_per_side": None}, "points_per_side: expected a number, or point_grids"),
        ({"points_per_side": 4, "point_grids": [[[0.5, 0.5]]]}, "point_grids: expected points_per_side=None"),
        ({"point_grids": [[[0.5, 0.5]]], "crop_n_layers": 1}, "a grid for each of 2 layers, got 1"),
        ({"point_grids": [[0.5, 0.5]]}, r"arrays \[P, 2\] of x, y"),
        ({"point_grids": [[[0.5, 1.5]]]}, "at least 0 and below 1"),
        ({"points_per_batch": 0}, "points_per_batch: expected at least 1"),
        ({"output_mode": "polygon"}, "output_mode: expected binary_mask, .*, got 'polygon'"),
        ({"options": 32}, "options: expected GeneratorOptions, got 32; .* points_per_side=32"),
        ({"processor": tiny_processor()}, "processor: expected None with a Predictor"),
    ],
)
def test_wrong_keywords_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskGenerator(Predictor(Blobs(), tiny_processor()), **keywords)


def test_unknown_keywords_are_refused() -> None:
    with pytest.raises(TypeError, match="points_per_row"):
        MaskGenerator(Predictor(Blobs(), tiny_processor()), points_per_row=3)  # type: ignore[call-arg]
