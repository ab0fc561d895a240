"""Tasks are entries of one table: a new entry is all that `evaluate` needs."""

import numpy as np
import pytest

import saqsam
from saqsam.evaluation.registry import TASKS, check_task_options, create_tasks, task_options
from saqsam.evaluation.tasks.prompt import PromptTask
from support.ade_folder import make_ade
from support.tiny_quantized import tiny_data
from support.tiny_sam import tiny_processor, tiny_sam
from support.toy_task import ENTRY, BrightnessTask


@pytest.fixture
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, ENTRY.name, ENTRY)


@pytest.mark.usefixtures("_toy")
def test_a_task_is_one_class_and_one_entry() -> None:
    data = tiny_data(2)
    result = saqsam.evaluate(tiny_sam(), tiny_processor(), data, tasks=["brightness"], factor=2.0)
    expected = np.mean([data[index].image.mean() * 2 for index in range(2)])
    assert result.metrics == {"brightness": {"brightness": pytest.approx(expected)}}
    assert result.options == {"brightness": {"factor": 2.0}}
    mixed = saqsam.evaluate(
        tiny_sam(), tiny_processor(), data, tasks=[BrightnessTask(3.0), "prompt"], prompt="point"
    )
    assert list(mixed.metrics) == ["brightness", "prompt"]
    assert mixed.options["prompt"]["prompt"] == "point"


def test_entries_name_their_classes() -> None:
    for name, entry in TASKS.items():
        assert entry.name == entry.load().name == name
        assert entry.implied_by in (None, *(option.name for option in entry.options))
    for name, option in task_options().items():
        owners = [one for entry in TASKS.values() for one in entry.options if one.name == name]
        assert all(one is option for one in owners), f"{name} means two things"


def test_default_tasks() -> None:
    assert [entry.name for entry in check_task_options(None, {})] == ["prompt"]
    assert [e.name for e in check_task_options(None, {"detections": "x"})] == ["prompt", "instance"]
    assert [e.name for e in check_task_options(["oriented", "oriented"], {"tile": None})] == ["oriented"]
    (task,) = create_tasks(tiny_data(1), min_area=5, keep_masks=True)
    assert isinstance(task, PromptTask)
    assert task.options() == {"prompt": "box", "min_area": 5, "masks": True}


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["segment"], {}, "task: expected one of prompt, .*, got 'segment'"),
        (None, {"prompt": "scribble"}, "prompt: expected box, point or clicks, got 'scribble'"),
        (None, {"promt": "box"}, "no task option 'promt'; did you mean 'prompt'"),
        (None, {"tile": 512}, "tile: an option of task oriented, which does not run"),
        (["prompt"], {"pred_iou": 0.5}, "pred_iou: an option of task everything or semantic, which"),
        (["everything"], {"points_per_side": 0}, "points_per_side: expected at least 1, got 0"),
        (["everything"], {"pred_iou": 1.5}, "pred_iou: expected at most 1, got 1.5"),
    ],
)
def test_wrong_names_and_options_are_refused(
    names: list[str] | None, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_task_options(names, options)


def test_what_a_task_needs_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ValueError, match=r"task instance needs detections \(FILE\|simulated\)"):
        create_tasks(tiny_data(1), ["instance"])
    with pytest.raises(ValueError, match="task semantic needs labels"):
        create_tasks(tiny_data(1), ["semantic"])
    label_maps = saqsam.open_dataset(str(make_ade(tmp_path_factory.mktemp("ade"))))
    with pytest.raises(ValueError, match="has label maps but no objects; run the task semantic alone"):
        create_tasks(label_maps, ["prompt"])
    create_tasks(label_maps, ["semantic"], labels="simulated")


def test_detections_are_opened_once_for_all_tasks() -> None:
    instance, oriented = create_tasks(tiny_data(1), ["instance", "oriented"], detections="simulated")
    assert instance.detections is oriented.detections  # type: ignore[attr-defined]
