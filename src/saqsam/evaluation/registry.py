"""The tasks, one entry each; imports none of them, nor torch, so that the command line can list them at once."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from saqsam.utils.suggestions import suggestion

if TYPE_CHECKING:
    from saqsam.data.types import Dataset
    from saqsam.evaluation.task import Task

PromptKind = Literal["box", "point", "clicks"]
DEFAULT_TILE = 1024
"""Side in pixels of the tiles that DOTA's images are cut into."""


@dataclass(frozen=True)
class TaskOption:
    """An option of one task or several: a keyword argument of `evaluate`, and an option of the command line.

    Attributes:
        name: Name of the keyword argument; `--name` with dashes on the command line.
        type: Type of its values on the command line.
        help: Help text of the command line.
        metavar: Placeholder of a value in the help.
        default: Value where none is given.
        shown_default: Default as the help shows it, where it is not the value itself.
        choices: Accepted values; empty for any.
        minimum: Smallest accepted number.
        maximum: Largest accepted number.
        opener: `module:function` that turns a value and the dataset into what tasks take; called once for all tasks.
    """

    name: str
    type: type
    help: str
    metavar: str
    default: Any = None
    shown_default: str | None = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    opener: str | None = None

    def check(self, value: Any, name: str) -> None:
        """Check a value against the choices and bounds.

        Args:
            value: Value to check.
            name: Name of the option in error messages.

        Raises:
            ValueError: The value is not accepted.
        """
        if self.choices and value not in self.choices:
            expected = f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
        if self.minimum is not None and value < self.minimum:
            raise ValueError(f"{name}: expected at least {self.minimum}, got {value}")
        if self.maximum is not None and value > self.maximum:
            raise ValueError(f"{name}: expected at most {self.maximum}, got {value}")

    def open(self, value: Any, dataset: Dataset) -> Any:
        """Return what tasks take for a value: the value itself, or what the opener makes of it."""
        if value is None or self.opener is None:
            return value
        return pkgutil.resolve_name(self.opener)(value, dataset)


@dataclass(frozen=True)
class TaskEntry:
    """A task.

    Attributes:
        name: Name of the task, which is also that of its class and its key in records.
        task: `module:class` of the `Task`.
        summary: One-line summary for the help.
        options: Options that the class's `create` takes.
        required: Names of options without which the task cannot run.
        is_default: Whether the task runs when no task is named.
        implied_by: Name of an option that makes the task run when no task is named; None if there is none.
    """

    name: str
    task: str
    summary: str
    options: tuple[TaskOption, ...] = ()
    required: tuple[str, ...] = ()
    is_default: bool = False
    implied_by: str | None = None

    def load(self) -> type[Task]:
        """Import the class of the task."""
        task: type[Task] = pkgutil.resolve_name(self.task)
        return task


PROMPT = TaskOption(
    name="prompt",
    type=str,
    help="Prompt of each object: its box, the point deepest inside it, or 5 simulated corrective clicks.",
    metavar="|".join(get_args(PromptKind)),
    default="box",
    choices=get_args(PromptKind),
)
MIN_AREA = TaskOption(
    name="min_area",
    type=int,
    help="Skip objects with fewer pixels.",
    metavar="PX",
    default=0,
    minimum=0,
)
DETECTIONS = TaskOption(
    name="detections",
    type=str,
    help="COCO results of any detector, whose boxes become the prompts, or simulated: the true boxes, jittered, with "
    "false ones among them.",
    metavar="FILE|simulated",
    opener="saqsam.evaluation.task_inputs:open_detections",
)
TILE = TaskOption(
    name="tile",
    type=int,
    help="Segment larger images in tiles of this side.",
    metavar="PX",
    default=DEFAULT_TILE,
    minimum=1,
)
LABELS = TaskOption(
    name="labels",
    type=str,
    help="Folder with a PNG label map for each image, or simulated: coarse maps made from the true ones.",
    metavar="DIR|simulated",
    opener="saqsam.evaluation.task_inputs:open_labels",
)
POINTS_PER_SIDE = TaskOption(
    name="points_per_side",
    type=int,
    help="Prompt with a grid of N x N points.",
    metavar="N",
    shown_default="32",
    minimum=1,
    maximum=1000,
)
PRED_IOU = TaskOption(
    name="pred_iou",
    type=float,
    help="Drop masks with a lower predicted IoU.",
    metavar="X",
    shown_default="0.88, which suits SAM ViT-H; sam-mini predicts lower values",
    minimum=0,
    maximum=1,
)
STABILITY = TaskOption(
    name="stability",
    type=float,
    help="Drop masks with a lower stability score.",
    metavar="X",
    shown_default="0.95",
    minimum=0,
    maximum=1,
)
GENERATOR_OPTIONS = (POINTS_PER_SIDE, PRED_IOU, STABILITY)

TASKS = {
    entry.name: entry
    for entry in (
        TaskEntry(
            "prompt",
            "saqsam.evaluation.tasks.prompt:PromptTask",
            "mean IoU of masks from simulated prompts",
            (PROMPT, MIN_AREA),
            is_default=True,
        ),
        TaskEntry(
            "instance",
            "saqsam.evaluation.tasks.instance:InstanceTask",
            "COCO mask AP on the boxes of a detector",
            (DETECTIONS,),
            required=("detections",),
            implied_by="detections",
        ),
        TaskEntry(
            "oriented",
            "saqsam.evaluation.tasks.oriented:OrientedTask",
            "rotated AP of oriented boxes from masks",
            (DETECTIONS, TILE),
        ),
        TaskEntry(
            "everything",
            "saqsam.evaluation.tasks.everything:EverythingTask",
            "average recall of automatic masks",
            GENERATOR_OPTIONS,
        ),
        TaskEntry(
            "semantic",
            "saqsam.evaluation.tasks.semantic:SemanticTask",
            "mean IoU of label maps that automatic masks refine",
            (LABELS, *GENERATOR_OPTIONS),
            required=("labels",),
        ),
    )
}
"""The tasks by name."""


def task_options() -> dict[str, TaskOption]:
    """Return the options of all tasks by name."""
    return {option.name: option for entry in TASKS.values() for option in entry.options}


def tasks_with(option: str) -> list[str]:
    """Return the names of the tasks that take an option."""
    return [name for name, entry in TASKS.items() if any(one.name == option for one in entry.options)]


def check_task_options(
    names: Sequence[str] | None, options: Mapping[str, Any], label: Callable[[str], str] = str
) -> list[TaskEntry]:
    """Check names and options of tasks before anything is loaded, and return the tasks to run.

    Args:
        names: Names of tasks; None for the default tasks and those that an option implies.
        options: Values of options by name; None counts as not set.
        label: Function from the name of an option to its name in error messages.

    Raises:
        ValueError: A task or an option is unknown, a value is not accepted, a task lacks an option that it needs, or
            none of the tasks takes an option.
    """
    values = {name: value for name, value in options.items() if value is not None}
    known = task_options()
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"no task option {name!r}{suggestion(name, list(known))}")
        known[name].check(value, label(name))
    if names is None:
        entries = [
            e for e in TASKS.values() if e.is_default or (e.implied_by is not None and e.implied_by in values)
        ]
    else:
        for name in names:
            if name not in TASKS:
                raise ValueError(f"{label('task')}: expected one of {', '.join(TASKS)}, got {name!r}")
        entries = [TASKS[name] for name in dict.fromkeys(names)]
    for entry in entries:
        for name in entry.required:
            if name not in values:
                raise ValueError(f"task {entry.name} needs {label(name)} ({known[name].metavar})")
    taken = {option.name for entry in entries for option in entry.options}
    for name in values:
        if name not in taken:
            raise ValueError(
                f"{label(name)}: an option of task {' or '.join(tasks_with(name))}, which does not run"
            )
    return entries


def create_tasks(
    dataset: Dataset,
    names: Sequence[str] | None = None,
    *,
    keep_masks: bool = False,
    **options: Any,
) -> list[Task]:
    """Create tasks by name.

    Args:
        dataset: Dataset that they will score.
        names: Names of tasks in `TASKS`; None for the default tasks and those that an option implies.
        keep_masks: Keep masks in the records, for comparisons and pictures.
        **options: Options of the tasks, see `TaskOption`; None for the default.

    Raises:
        ValueError: As for `check_task_options`; or a task cannot score the dataset, or a file cannot be used.
    """
    entries = check_task_options(names, options)
    opened = {}
    for name, option in task_options().items():
        value = options.get(name)
        opened[name] = option.open(option.default if value is None else value, dataset)
    tasks = []
    for entry in entries:
        own = {option.name: opened[option.name] for option in entry.options}
        task = entry.load().create(dataset, own, keep_masks=keep_masks)
        task.check_dataset(dataset)
        tasks.append(task)
    return tasks
