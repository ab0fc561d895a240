"""Scoring: tasks, one file each, over one walk through the images."""

from saqsam.evaluation.compare import Comparison, TaskDifference, task_difference
from saqsam.evaluation.metrics.coco_ap import MaskAP
from saqsam.evaluation.metrics.iou import MeanIoU, mask_iou
from saqsam.evaluation.results import Evaluation, InstanceScore
from saqsam.evaluation.run import evaluate, fill_box_iou
from saqsam.evaluation.simulated_prompts import interior_point
from saqsam.evaluation.task import Task
from saqsam.evaluation.tasks.everything import EverythingTask
from saqsam.evaluation.tasks.instance import InstanceTask
from saqsam.evaluation.tasks.oriented import OrientedTask
from saqsam.evaluation.tasks.prompt import PromptKind, PromptTask
from saqsam.evaluation.tasks.semantic import SemanticTask

__all__ = [
    "Comparison",
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
    "TaskDifference",
    "evaluate",
    "fill_box_iou",
    "interior_point",
    "mask_iou",
    "task_difference",
]
