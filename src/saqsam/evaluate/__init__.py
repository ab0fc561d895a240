"""Scoring: tasks, one file each, over one walk through the images."""

from saqsam.evaluate.coco_ap import MaskAP
from saqsam.evaluate.iou import MeanIoU, mask_iou
from saqsam.evaluate.prompts import interior_point
from saqsam.evaluate.run import Evaluation, InstanceScore, evaluate, fill_box_iou
from saqsam.evaluate.task import Task
from saqsam.evaluate.tasks.everything import EverythingTask
from saqsam.evaluate.tasks.instance import InstanceTask
from saqsam.evaluate.tasks.oriented import OrientedTask
from saqsam.evaluate.tasks.prompt import PromptKind, PromptTask
from saqsam.evaluate.tasks.semantic import SemanticTask

__all__ = [
    "Evaluation",
    "EverythingTask",
    "InstanceScore",
    "InstanceTask",
    "MaskAP",
    "MeanIoU",
    "OrientedTask",
    "PromptKind",
    "PromptTask",
    "SemanticTask",
    "Task",
    "evaluate",
    "fill_box_iou",
    "interior_point",
    "mask_iou",
]
