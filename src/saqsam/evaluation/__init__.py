"""Score models on datasets: tasks, one file each, their metrics, and comparisons of models.

May import `checkpoint`, `inference` and everything below them. Public names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from saqsam.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from saqsam.evaluation.baseline import box_fill_iou
    from saqsam.evaluation.compare import Comparison, TaskDifference, task_difference
    from saqsam.evaluation.metrics.coco_ap import MaskAP
    from saqsam.evaluation.metrics.iou import MeanIoU, mask_iou
    from saqsam.evaluation.registry import TASKS, PromptKind, create_tasks
    from saqsam.evaluation.results import Evaluation
    from saqsam.evaluation.run import evaluate
    from saqsam.evaluation.simulated_prompts import interior_point
    from saqsam.evaluation.task import Task
    from saqsam.evaluation.tasks.everything import EverythingTask
    from saqsam.evaluation.tasks.instance import InstanceTask
    from saqsam.evaluation.tasks.oriented import OrientedTask
    from saqsam.evaluation.tasks.prompt import InstanceScore, PromptTask, instance_scores
    from saqsam.evaluation.tasks.semantic import SemanticTask

__all__ = [
    "TASKS",
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
    "box_fill_iou",
    "create_tasks",
    "evaluate",
    "instance_scores",
    "interior_point",
    "mask_iou",
    "task_difference",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "TASKS": "registry",
        "Comparison": "compare",
        "Evaluation": "results",
        "EverythingTask": "tasks.everything",
        "InstanceScore": "tasks.prompt",
        "InstanceTask": "tasks.instance",
        "MaskAP": "metrics.coco_ap",
        "MeanIoU": "metrics.iou",
        "OrientedTask": "tasks.oriented",
        "PromptKind": "registry",
        "PromptTask": "tasks.prompt",
        "SemanticTask": "tasks.semantic",
        "Task": "task",
        "TaskDifference": "compare",
        "box_fill_iou": "baseline",
        "create_tasks": "registry",
        "evaluate": "run",
        "instance_scores": "tasks.prompt",
        "interior_point": "simulated_prompts",
        "mask_iou": "metrics.iou",
        "task_difference": "compare",
    },
)
