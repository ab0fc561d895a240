"""The calls of `segment_anything.SamPredictor` and `Sam`: the same numbers as the official code, and clear errors."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import SamModel

from saqsam.inference.backend import TorchBackend
from saqsam.inference.predictor import Predictor
from support.blobs import Blobs
from support.coco_folder import picture
from support.small_official import GRID, IMAGE, convert, small_official
from support.tiny_sam import tiny_processor

from segment_anything import SamPredictor  # isort: skip  # small_official made it importable

SIZE = (90, 150)
PHOTO = picture(SIZE, seed=1)
BOXES = torch.tensor([[10.0, 5.0, 80.0, 60.0], [40.0, 30.0, 149.0, 90.0], [0.0, 0.0, 20.0, 20.0]])
POINTS = torch.tensor([[[30.0, 20.0], [50.0, 40.0]], [[100.0, 60.0], [2.0, 3.0]], [[9.0, 9.0], [11.0, 7.0]]])
LABELS = torch.tensor([[1, 0], [1, 1], [0, 1]])
MASKS = torch.randn(3, 1, 4 * GRID, 4 * GRID, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def official() -> Any:
    return small_official(seed=3)


@pytest.fixture(scope="module")
def model(official: Any) -> SamModel:
    return convert(official)


@pytest.fixture
def pair(official: Any, model: SamModel) -> tuple[SamPredictor, Predictor]:
    """The official predictor and ours, with the same image."""
    both = SamPredictor(official), Predictor(model, prompts_at_once=2)
    for predictor in both:
        predictor.set_image(PHOTO)
    return both


def assert_close(ours: tuple[torch.Tensor, ...], official: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(ours, official, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if one.dtype == torch.bool:
            assert (one != other).float().mean() < 1e-3  # a logit of 1e-5 may fall on either side
        else:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "kinds", [("boxes",), ("points",), ("masks",), ("boxes", "points"), ("boxes", "points", "masks")]
)
@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("return_logits", [True, False])
def test_predict_torch_agrees_with_the_official_predictor(
    pair: tuple[SamPredictor, Predictor], kinds: tuple[str, ...], multimask_output: bool, return_logits: bool
) -> None:
    results = []
    for predictor in pair:
        transform = predictor.transform
        results.append(
            predictor.predict_torch(
                transform.apply_coords_torch(POINTS, SIZE) if "points" in kinds else None,
                LABELS if "points" in kinds else None,
                transform.apply_boxes_torch(BOXES, SIZE) if "boxes" in kinds else None,
                MASKS if "masks" in kinds else None,
                multimask_output,
                return_logits=return_logits,
            )
        )
    assert_close(results[1], results[0])


def test_predict_torch_equals_predict_batch(pair: tuple[SamPredictor, Predictor]) -> None:
    ours = pair[1]
    boxes = ours.transform.apply_boxes_torch(BOXES, SIZE)
    points = ours.transform.apply_coords_torch(POINTS, SIZE)
    expected = ours.predict_batch(boxes=BOXES, points=POINTS, labels=LABELS, mask_inputs=MASKS[:, 0])
    for one, other in zip(ours.predict_torch(points, LABELS, boxes, MASKS), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_masks_may_be_changed_in_place(pair: tuple[SamPredictor, Predictor]) -> None:
    masks, ious, low_res = pair[1].predict_torch(None, None, BOXES / 2)
    masks |= ~masks
    ious += 1
    low_res.clamp_(min=0)
    assert masks.all()


def test_attributes_are_those_of_the_official_predictor(pair: tuple[SamPredictor, Predictor]) -> None:
    official, ours = pair
    assert ours.device == official.device == torch.device("cpu")
    assert ours.model.device == official.model.device
    assert ours.model.mask_threshold == official.model.mask_threshold
    assert ours.model.image_format == official.model.image_format
    assert ours.model.image_size == ours.model.image_encoder.img_size == official.model.image_encoder.img_size
    assert ours.transform.target_length == official.transform.target_length == IMAGE
    assert ours.original_size == official.original_size
    assert ours.input_size == official.input_size
    assert ours.is_image_set is official.is_image_set is True
    torch.testing.assert_close(ours.get_image_embedding(), official.get_image_embedding(), atol=1e-4, rtol=0)
    for predictor in pair:
        predictor.reset_image()
        assert not predictor.is_image_set


def test_the_device_is_that_of_the_model() -> None:
    model = convert(small_official()).to("meta")
    assert Predictor(model).device == Predictor(model).model.device == torch.device("meta")
    assert Predictor(TorchBackend(model), tiny_processor()).device == torch.device("meta")
    assert Predictor(Blobs(), tiny_processor()).device == torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_set_torch_image_agrees_with_the_official_predictor(
    pair: tuple[SamPredictor, Predictor], dtype: torch.dtype
) -> None:
    embedding = pair[1].features
    for predictor in pair:
        resized = torch.as_tensor(predictor.transform.apply_image(PHOTO), device=predictor.device)
        predictor.set_torch_image(resized.permute(2, 0, 1).contiguous()[None].to(dtype), PHOTO.shape[:2])
        assert predictor.is_image_set
    torch.testing.assert_close(pair[1].features, pair[0].features, atol=1e-4, rtol=0)
    torch.testing.assert_close(pair[1].features, embedding, atol=1e-4, rtol=0)
    assert pair[1].original_size == SIZE
    results = [p.predict(box=np.array([10, 5, 80, 60]), multimask_output=False)[2] for p in pair]
    np.testing.assert_allclose(results[1], results[0], atol=1e-4)


@pytest.mark.parametrize(
    ("image", "size", "message"),
    [
        (torch.zeros(3, 77, 128), SIZE, r"transformed_image: expected shape \[1, 3, h, w\] .* side of 128"),
        (torch.zeros(2, 3, 77, 128), SIZE, "transformed_image: expected shape"),
        (torch.zeros(1, 3, 77, 127), SIZE, "transformed_image: expected shape"),
        (torch.zeros(1, 3, 0, 128), SIZE, "transformed_image: expected at least one pixel"),
        (
            torch.full((1, 3, 77, 128), -2.1),
            SIZE,
            r"RGB in \[0, 255\] before normalization, got -2.1 to -2.1",
        ),
        (torch.full((1, 3, 77, 128), torch.nan), SIZE, r"RGB in \[0, 255\]"),
        (torch.zeros(1, 3, 77, 128), SIZE[::-1], r"original_size: .* resized to 77 x 128, got \(150, 90\)"),
        (torch.zeros(1, 3, 77, 128), (90, 150, 3), "original_size"),
        (torch.zeros(1, 3, 77, 128), (0, 0), "original_size"),
    ],
)
def test_set_torch_image_refuses_other_tensors(
    pair: tuple[SamPredictor, Predictor], image: torch.Tensor, size: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pair[1].set_torch_image(image, size)
    assert not pair[1].is_image_set


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": torch.tensor([[140.0, 5.0, 149.0, 60.0]])}, "meets the 128 x 77 px resized image"),
        ({"point_coords": torch.tensor([[[140.0, 5.0]]])}, "inside the 128 x 77 px resized image"),
        ({"mask_input": MASKS[:, 0]}, r"mask input: expected shape \[P, 1, 4h, 4w\]"),
        ({}, "expected at least one of box, points and mask input"),
    ],
)
def test_predict_torch_refuses_other_prompts(
    pair: tuple[SamPredictor, Predictor], arguments: dict[str, Any], message: str
) -> None:
    labels = torch.ones(1, 1) if "point_coords" in arguments else None
    with pytest.raises(ValueError, match=message):
        pair[1].predict_torch(**{"point_coords": None, "point_labels": labels, **arguments})


def test_predict_torch_needs_an_image(model: SamModel) -> None:
    with pytest.raises(RuntimeError, match="call set_image"):
        Predictor(model).predict_torch(None, None, BOXES)


def test_a_batch_of_images_agrees_with_the_official_model(pair: tuple[SamPredictor, Predictor]) -> None:
    transform = pair[1].transform
    images = [PHOTO, picture((120, 60), seed=2)]

    def record(image: np.ndarray, **prompts: torch.Tensor) -> dict[str, Any]:
        resized = torch.as_tensor(transform.apply_image(image)).permute(2, 0, 1).contiguous()
        return {"image": resized, "original_size": image.shape[:2], **prompts}

    batch = [
        record(images[0], boxes=transform.apply_boxes_torch(BOXES, images[0].shape[:2])),
        record(images[1], point_coords=POINTS[:1] / 2, point_labels=LABELS[:1]),
    ]
    results = [predictor.model(batch, multimask_output=False) for predictor in pair]
    for one, other in zip(results[1], results[0], strict=True):
        assert one.keys() == other.keys()
        assert_close(tuple(one.values()), tuple(other[key] for key in one))
    with pytest.raises(ValueError, match="batched_input: expected image, original_size and prompts"):
        pair[1].model([{"image": batch[0]["image"]}], multimask_output=False)
    with pytest.raises(ValueError, match="got box, image, original_size"):
        pair[1].model([record(PHOTO, box=BOXES)], multimask_output=False)
