"""Scoring: prompts from the ground truth, mean IoU, COCO mask AP."""

from saqsam.evaluate.coco_ap import MaskAP
from saqsam.evaluate.iou import MeanIoU, mask_iou
from saqsam.evaluate.prompts import interior_point
from saqsam.evaluate.run import Evaluation, InstanceScore, PromptKind, evaluate, fill_box_iou

__all__ = [
    "Evaluation",
    "InstanceScore",
    "MaskAP",
    "MeanIoU",
    "PromptKind",
    "evaluate",
    "fill_box_iou",
    "interior_point",
    "mask_iou",
]
