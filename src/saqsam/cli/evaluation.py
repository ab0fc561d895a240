"""What the commands do that score models: `evaluate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import SamModel

import saqsam
from saqsam.analysis.inventory import Inventory, take_inventory
from saqsam.checkpoint import quantization_config_of
from saqsam.cli.inputs import json_bytes, open_labelled, open_model
from saqsam.cli.options import EvaluationOptions
from saqsam.cli.outputs import claim_optional
from saqsam.cli.result_tables import print_evaluation, print_integer_layers, print_speed
from saqsam.cli.terminal import Bars, bar, busy, progress_bars, say
from saqsam.data.ade20k import AdeDataset
from saqsam.data.coco import CocoDataset
from saqsam.data.detections import DetectionSource, load_detections
from saqsam.data.dota import DotaDataset
from saqsam.data.label_maps import FolderLabels, LabelMaps
from saqsam.data.open import SIMULATED
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.data.simulated_detections import SimulatedDetections
from saqsam.data.simulated_labels import SimulatedLabels
from saqsam.data.types import Dataset
from saqsam.evaluation import (
    EverythingTask,
    InstanceTask,
    OrientedTask,
    PromptKind,
    PromptTask,
    SemanticTask,
    Task,
)
from saqsam.evaluation.prompt_batches import prompts_within
from saqsam.evaluation.ranks import launched_rank, process_group, rank
from saqsam.inference.backend import Backend
from saqsam.inference.mask_generator import GeneratorOptions
from saqsam.runtimes import TORCH_INTEGER, compare_with_float, find_integer_layers
from saqsam.runtimes.torch_integer import IntegerLayers, Speed
from saqsam.utils.atomic_write import check_file_writable
from saqsam.utils.progress import Progress
from saqsam.utils.sizes import parse_size


def evaluate(
    model: str,
    options: EvaluationOptions,
    *,
    json_file: Path | None,
    device: str,
    runtime: str | None,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Score a model, alone or as one of several processes."""
    if json_file is not None:
        check_file_writable(json_file)
    memory = parse_size(options.memory)
    with claim_optional(json_file, overwrite=overwrite, rank=launched_rank()) as output:
        dataset = open_labelled(options.data, "--data", options.limit, options.ignore_label)
        tasks = make_tasks(options, dataset)
        sam, processor, recipe = open_model(model, device, runtime, threads)
        with process_group(), progress_bars() as bars:
            is_first = rank() == 0
            result = saqsam.evaluate(
                sam,
                processor,
                dataset,
                tasks=tasks,
                limit=options.limit,
                prompts_at_once=prompts_within(memory, processor),
                unfinished=None if output is None else output.unfinished,
                workers=options.workers,
                progress=evaluation_bar(bars, "evaluating", dataset, options.limit) if is_first else None,
            )
        if not is_first:
            return
        is_packed = isinstance(sam, SamModel) and quantization_config_of(sam) is not None
        inventory = take_inventory(sam) if is_packed else None
        recipe = recipe if inventory is None else inventory.name  # with the mean bits of a mixture
        integer = measure_integers(sam) if runtime == TORCH_INTEGER else None
        if output is not None:
            content = {"model": model, **_describe(recipe, inventory), **result.to_dict()}
            output.write(json_bytes(content if integer is None else {**content, **integer.to_dict()}))
    print_evaluation(result, model, recipe, inventory, dataset)
    if integer is not None:
        print_integers(integer)
    if json_file is not None:
        say(f"written: {json_file}")


def evaluation_bar(bars: Bars, verb: str, dataset: Dataset, limit: int | None) -> Progress:
    """Add the bar of a pass over a data set."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    return bar(bars, f"{verb} on {dataset.name}", count)


def make_tasks(options: EvaluationOptions, dataset: Dataset, *, keep_masks: bool = False) -> list[Task]:
    """The tasks that options ask for.

    Raises:
        ValueError: What a task needs is not given.
    """
    names: Sequence[str] = options.tasks or ("prompt",)
    if options.detections is not None and options.tasks is None:
        names = (*names, InstanceTask.name)
    if isinstance(dataset, AdeDataset) and set(names) != {SemanticTask.name}:
        raise ValueError(
            f"--data {options.data}: ADE20K has label maps but no objects; give --task semantic alone"
        )
    found = None if options.detections is None else find_detections(options.detections, dataset)
    generator = generator_options(options.points_per_side, options.pred_iou, options.stability)
    tasks: list[Task] = []
    for name in dict.fromkeys(names):
        if name == PromptTask.name:
            tasks.append(PromptTask(cast(PromptKind, options.prompt), keep_masks=keep_masks))
        elif name == InstanceTask.name:
            if found is None:
                raise ValueError(
                    "--task instance needs --detections FILE, the boxes of a detector, or --detections simulated"
                )
            frequencies = dataset.category_frequencies if isinstance(dataset, CocoDataset) else None
            tasks.append(InstanceTask(found, frequencies))
        elif name == OrientedTask.name:
            classes = category_names(dataset)
            tasks.append(
                OrientedTask(found, tile=options.tile, category_names=classes, keep_masks=keep_masks)
            )
        elif name == EverythingTask.name:
            tasks.append(EverythingTask(generator))
        elif name == SemanticTask.name:
            labels = _open_labels(options.labels, dataset)
            tasks.append(SemanticTask(labels, generator, keep_masks=keep_masks))
    return tasks


def category_names(dataset: Dataset) -> Mapping[int, str]:
    """Names of the classes of a data set; none where it has none."""
    if isinstance(dataset, CocoDataset | DotaDataset | ScenesDataset):
        return dataset.category_names
    return {}


def find_detections(path: Path, dataset: Dataset) -> DetectionSource:
    """Detections as the command line has them: a file, or a word for those that are made of the truth."""
    return SimulatedDetections() if str(path) == SIMULATED else load_detections(path, dataset)


def _open_labels(labels: str | None, dataset: Dataset) -> LabelMaps:
    if labels is None:
        raise ValueError("--task semantic needs --labels, a folder of label maps or simulated")
    return SimulatedLabels() if labels == SIMULATED else FolderLabels(labels, dataset)


def generator_options(
    points_per_side: int | None, pred_iou: float | None, stability: float | None
) -> GeneratorOptions:
    """How masks of everything are made: the official values but for those that are given."""
    given: dict[str, Any] = {
        "points_per_side": points_per_side,
        "pred_iou_thresh": pred_iou,
        "stability_score_thresh": stability,
    }
    return GeneratorOptions(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Integers:
    """Which layers run on torch's integer kernels, and how fast the model is beside a float one."""

    layers: IntegerLayers
    speeds: Sequence[Speed]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "integer_layers": dataclasses.asdict(self.layers),
            "speed": {one.part: {**dataclasses.asdict(one), "ratio": one.ratio} for one in self.speeds},
        }


def measure_integers(model: SamModel | Backend) -> Integers:
    """Count the layers that run on integers, and time the model now."""
    assert isinstance(model, SamModel)
    layers = find_integer_layers(model)
    with busy("timing against float"):
        return Integers(layers, compare_with_float(model))


def print_integers(integer: Integers) -> None:
    """Print what `measure_integers` found."""
    print_integer_layers(integer.layers)
    print_speed(integer.speeds)


def _describe(recipe: str, inventory: Inventory | None) -> dict[str, Any]:
    """What a row of results says of a model beside its name; nothing but the recipe without an inventory."""
    if inventory is None:
        return {"recipe": recipe}
    return {
        "recipe": recipe,
        "share_of_bytes": inventory.share_of_bytes(),
        "share_of_macs": inventory.share_of_macs(),
    }
