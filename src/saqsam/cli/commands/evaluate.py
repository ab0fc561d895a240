"""Implementation of `saqsam evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

import saqsam
from saqsam.analysis.inventory import Inventory, take_inventory
from saqsam.checkpoint import quantization_config_of
from saqsam.cli import reporting
from saqsam.cli.inputs import json_bytes, open_labeled, open_model
from saqsam.cli.integer_layers import measure_integers, print_integers
from saqsam.cli.options import EvaluationOptions
from saqsam.cli.outputs import claim_optional
from saqsam.cli.progress import progress_phases
from saqsam.cli.result_tables import print_evaluation
from saqsam.cli.terminal import say
from saqsam.evaluation.prompt_batches import prompts_within
from saqsam.evaluation.registry import create_tasks
from saqsam.runtimes import TORCH_INTEGER
from saqsam.utils.atomic_write import check_file_writable
from saqsam.utils.progress import renamed
from saqsam.utils.ranks import launched_rank, process_group, rank
from saqsam.utils.sizes import parse_size


def evaluate(
    model: str,
    options: EvaluationOptions,
    task_options: Mapping[str, Any],
    *,
    json_file: Path | None,
    device: str,
    runtime: str | None,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Score a model, in this process alone or as one of several."""
    reporting.current().errors_may_differ = True
    if json_file is not None:
        check_file_writable(json_file)
    memory = parse_size(options.memory)
    with claim_optional(json_file, overwrite=overwrite, rank=launched_rank()) as output:
        dataset = open_labeled(options.data, "--data", options.limit, options.ignore_label)
        tasks = create_tasks(dataset, options.task, **task_options)
        sam, processor, recipe = open_model(model, device, runtime, threads, options.image_size)
        with process_group(), progress_phases("images") as progress:
            is_first = rank() == 0
            result = saqsam.evaluate(
                sam,
                processor,
                dataset,
                tasks=tasks,
                limit=options.limit,
                prompts_at_once=prompts_within(memory, processor),
                resume_dir=None if output is None else output.unfinished,
                workers=options.workers,
                progress=renamed(progress, f"evaluating on {dataset.name}") if is_first else None,
            )
        if not is_first:
            return
        is_packed = isinstance(sam, PreTrainedModel) and quantization_config_of(sam) is not None
        inventory = take_inventory(sam) if is_packed else None
        recipe = recipe if inventory is None else inventory.name  # with the mean bits of a mixture
        integer = measure_integers(sam) if runtime == TORCH_INTEGER else None
        if output is not None:
            content = {"model": model, **_describe(recipe, inventory), **result.to_dict()}
            output.write(json_bytes(content if integer is None else {**content, **integer.to_dict()}))
    print_evaluation(result, tasks, model, recipe, inventory, dataset)
    if integer is not None:
        print_integers(integer)
    if json_file is not None:
        say(f"written: {json_file}")


def _describe(recipe: str, inventory: Inventory | None) -> dict[str, Any]:
    """Return the recipe of a model and, with an inventory, its shares of bytes and MACs by width."""
    if inventory is None:
        return {"recipe": recipe}
    return {
        "recipe": recipe,
        "share_of_bytes": inventory.share_of_bytes(),
        "share_of_macs": inventory.share_of_macs(),
    }
