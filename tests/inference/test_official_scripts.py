"""Code in the manner of published scripts for `segment_anything`; only the import and the constructor differ.

The calls are those of the official notebooks predictor_example and automatic_mask_generator_example, of Grounded-SAM
and of lang-sam. `sam` stands for a loaded model.
"""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from transformers import SamModel

from saqsam import MaskGenerator, Predictor
from support.coco_folder import picture
from support.small_official import convert, small_official

IMAGE = cv2.resize(picture((12, 16), 3), (150, 110), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def sam() -> SamModel:
    return convert(small_official(seed=1))


def test_predictor_example(sam: SamModel) -> None:
    device = "cpu"
    sam.to(device=device)
    predictor = Predictor(sam)
    predictor.set_image(IMAGE)

    # One point, three masks.
    input_point = np.array([[50, 37]])
    input_label = np.array([1])
    masks, scores, logits = predictor.predict(
        point_coords=input_point, point_labels=input_label, multimask_output=True
    )
    assert masks.shape == (3, 110, 150)
    for mask in masks:
        height, width = mask.shape[-2:]
        assert mask.reshape(height, width, 1).dtype == bool

    # Two points, and the best mask of the last call as a prompt.
    input_point = np.array([[50, 37], [112, 62]])
    input_label = np.array([1, 0])
    mask_input = logits[np.argmax(scores), :, :]
    masks, _, _ = predictor.predict(
        point_coords=input_point,
        point_labels=input_label,
        mask_input=mask_input[None, :, :],
        multimask_output=False,
    )
    assert masks.shape == (1, 110, 150)

    # A box, alone and with a point.
    input_box = np.array([42, 10, 140, 95])
    masks, _, _ = predictor.predict(
        point_coords=None, point_labels=None, box=input_box[None, :], multimask_output=False
    )
    assert masks[0].shape == (110, 150)
    masks, _, _ = predictor.predict(
        point_coords=np.array([[57, 37]]), point_labels=np.array([0]), box=input_box, multimask_output=False
    )
    assert masks.shape == (1, 110, 150)

    # Several boxes at once.
    input_boxes = torch.tensor(
        [[7, 62, 50, 105], [42, 10, 140, 95], [137, 67, 149, 100], [120, 55, 145, 80]],
        device=predictor.device,
    )
    transformed_boxes = predictor.transform.apply_boxes_torch(input_boxes, IMAGE.shape[:2])
    masks, _, _ = predictor.predict_torch(
        point_coords=None, point_labels=None, boxes=transformed_boxes, multimask_output=False
    )
    assert masks.shape == (4, 1, 110, 150)
    for mask in masks:
        assert mask.cpu().numpy().dtype == bool


def test_predictor_example_with_batches(sam: SamModel) -> None:
    predictor = Predictor(sam)
    model = predictor.model
    resize_transform = predictor.transform

    def prepare_image(image: np.ndarray, transform: Any, device: Any) -> torch.Tensor:
        image = transform.apply_image(image)
        tensor = torch.as_tensor(image, device=device.device)
        return tensor.permute(2, 0, 1).contiguous()

    image1, image2 = IMAGE, picture((60, 45))
    boxes1 = torch.tensor([[7, 62, 50, 105], [42, 10, 140, 95]], device=model.device)
    boxes2 = torch.tensor([[4, 7, 30, 50]], device=model.device)
    batched_input = [
        {
            "image": prepare_image(image, resize_transform, model),
            "boxes": resize_transform.apply_boxes_torch(boxes, image.shape[:2]),
            "original_size": image.shape[:2],
        }
        for image, boxes in ((image1, boxes1), (image2, boxes2))
    ]
    batched_output = model(batched_input, multimask_output=False)
    assert list(batched_output[0]) == ["masks", "iou_predictions", "low_res_logits"]
    assert [output["masks"].shape for output in batched_output] == [(2, 1, 110, 150), (1, 1, 60, 45)]


def show_anns(anns: list[Any]) -> np.ndarray:
    sorted_anns = sorted(anns, key=(lambda x: x["area"]), reverse=True)
    first = sorted_anns[0]["segmentation"]
    canvas = np.ones((first.shape[0], first.shape[1], 4))
    canvas[:, :, 3] = 0
    rng = np.random.default_rng(0)
    for ann in sorted_anns:
        m = ann["segmentation"]
        canvas[m] = np.concatenate([rng.random(3), [0.35]])
    return canvas


def test_automatic_mask_generator_example(sam: SamModel) -> None:
    # The weights are random, so nearly all masks have to pass.
    lenient = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    mask_generator = MaskGenerator(sam, points_per_side=4, **lenient)
    masks = mask_generator.generate(IMAGE)
    assert len(masks) > 1
    assert "segmentation" in masks[0].keys()  # noqa: SIM118  # scripts write it so
    assert show_anns(masks).shape == (110, 150, 4)

    mask_generator_2 = MaskGenerator(
        model=sam,
        points_per_side=4,
        crop_n_layers=1,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=100,
        **lenient,
    )
    masks2 = mask_generator_2.generate(IMAGE)
    assert masks2
    x, y, width, height = masks2[0]["bbox"]
    assert masks2[0]["segmentation"][y : y + height, x : x + width].sum() == masks2[0]["area"]


def test_grounded_sam(sam: SamModel) -> None:
    """Boxes come from a detector as normalized centers and sizes."""
    predictor = Predictor(sam)
    predictor.set_image(IMAGE)
    boxes_filt = torch.tensor([[0.5, 0.4, 0.6, 0.5], [0.8, 0.8, 0.4, 0.4]])
    height, width = IMAGE.shape[:2]
    for i in range(boxes_filt.size(0)):
        boxes_filt[i] = boxes_filt[i] * torch.Tensor([width, height, width, height])
        boxes_filt[i][:2] -= boxes_filt[i][2:] / 2
        boxes_filt[i][2:] += boxes_filt[i][:2]
    boxes_filt = boxes_filt.cpu()
    transformed_boxes = predictor.transform.apply_boxes_torch(boxes_filt, IMAGE.shape[:2]).to("cpu")
    masks, _, _ = predictor.predict_torch(
        point_coords=None, point_labels=None, boxes=transformed_boxes.to("cpu"), multimask_output=False
    )
    value = 0
    mask_image = torch.zeros(masks.shape[-2:])
    for idx, mask in enumerate(masks):
        mask_image[mask.cpu().numpy()[0]] = value + idx + 1
    assert mask_image.max() <= 2


def test_lang_sam(sam: SamModel) -> None:
    predictor = Predictor(sam)
    predictor.set_image(IMAGE)
    boxes = torch.tensor([[7.0, 62.0, 50.0, 105.0], [42.0, 10.0, 140.0, 95.0]])
    transformed_boxes = predictor.transform.apply_boxes_torch(boxes, IMAGE.shape[:2])
    masks, _, _ = predictor.predict_torch(
        point_coords=None,
        point_labels=None,
        boxes=transformed_boxes.to(predictor.device),
        multimask_output=False,
    )
    masks = masks.cpu().squeeze(1)
    assert masks.shape == (2, 110, 150)
    masks &= masks  # masks may be edited in place
