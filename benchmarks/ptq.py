"""Measure quantized models: one CSV row per (model, method, bits, data); an interrupted run resumes.

    python benchmarks/ptq.py --methods float mse --bits w4a4 --data scenes coco_val

Each checkpoint is made once, written to disk, reloaded, and evaluated on every data set. A row that is in the file
already is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from rich import progress as rich_progress
from transformers import SamModel, SamProcessor

import saqsam
from options import parse_arguments
from plan import Plan, make_plan, sources_hash
from rows import FILL_BOX, FLOAT, KEY, Row, append_row, read_rows
from saqsam.analysis.inventory import take_inventory
from saqsam.checkpoint import quantization_config_of
from saqsam.cli.terminal import err, progress_bars
from saqsam.data.types import Dataset
from saqsam.evaluation import Evaluation, PromptTask, instance_scores, mask_iou
from saqsam.evaluation.metrics.iou import fill_box
from saqsam.recipes.recipe import Recipe
from saqsam.utils.allocator import keep_freed_memory
from saqsam.utils.atomic_write import write_atomic
from saqsam.utils.progress import Progress
from scores import scores_file, write_scores


@dataclass(frozen=True)
class Subject:
    """An evaluated model with the columns that describe it; the model of the box-fill baseline is None."""

    model: tuple[SamModel, SamProcessor] | None
    columns: Mapping[str, str | int | float | None]


def run(plan: Plan) -> int:
    """Measure the missing rows and return their number."""
    known = {row.key for row in read_rows(plan.out)}
    missing = {
        (method, bits): [
            name
            for name in plan.data
            if tuple(plan.key_columns(method, bits, name)[column] for column in KEY) not in known
        ]
        for method, bits in plan.variants()
    }
    total = sum(map(len, missing.values()))
    done = len(plan.data) * len(missing) - total
    err.print(f"evaluations: {total} to do, {done} already in {plan.out.name}")
    with progress_bars() as bars:
        whole = bars.add_task("evaluations", total=total)
        for (method, bits), names in missing.items():
            if not names:
                continue
            subject = make_subject(plan, method, bits, bars)
            for name in names:
                row = _measure(plan, subject, plan.key_columns(method, bits, name), bars)
                append_row(plan.out, row)
                bars.advance(whole)
                bars.console.print(
                    f"{method} {bits} on {name}: mean IoU {row.miou:.4f} ({row.seconds_evaluate:.0f} s)"
                )
    return total


def make_subject(plan: Plan, method: str, bits: str, bars: rich_progress.Progress) -> Subject:
    """Return the evaluated model of a method, whose checkpoint is quantized unless cached, and reloaded."""
    nothing: dict[str, str | int | float | None] = {
        "recipe": "" if method == FILL_BOX else method,
        "checkpoint": "",
        "checkpoint_bytes": None,
        "float32_bytes": None,
        "low_width_macs": None,
        "mac_shares": "",
        "byte_shares": "",
        "seconds_quantize": None,
    }
    if method == FILL_BOX:
        return Subject(None, nothing)
    if method == FLOAT:
        model, processor = plan.model.loaded
        size = sum(file.stat().st_size for file in plan.model.files)
        float32 = 4 * sum(parameter.numel() for parameter in model.parameters())
        return Subject((model, processor), {**nothing, "checkpoint_bytes": size, "float32_bytes": float32})
    folder, seconds = make_checkpoint(plan, method, bits, bars)
    model, processor = saqsam.load(folder, device=plan.device)  # never the model in memory
    config = quantization_config_of(model)
    assert config is not None
    assert config.content_sha256 is not None
    inventory = take_inventory(model)
    shares = inventory.share_of_macs()
    activation_bits = plan.recipe(method, bits).activation_spec.bits
    columns: dict[str, str | int | float | None] = {
        "recipe": inventory.name,
        "checkpoint": config.content_sha256[:12],
        "checkpoint_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "float32_bytes": inventory.float32_bytes,
        "low_width_macs": shares.get(bits, 0.0) + shares.get(f"a{activation_bits}a{activation_bits}", 0.0),
        "mac_shares": _share_text(shares),
        "byte_shares": _share_text(inventory.share_of_bytes()),
        "seconds_quantize": seconds,
    }
    return Subject((model, processor), columns)


def make_checkpoint(plan: Plan, method: str, bits: str, bars: rich_progress.Progress) -> tuple[Path, float]:
    """Return a checkpoint folder and its quantization time, from the cache if the code is unchanged.

    The time is in seconds: on a CPU those of all cores, which other work on the machine changes little.
    """
    recipe = plan.recipe(method, bits)
    folder = plan.cache / "checkpoints" / f"{recipe.name}-{_cache_key(plan, recipe)}"
    timing = folder.with_suffix(".json")
    if not (folder.is_dir() and timing.is_file()):
        model, processor = plan.model.loaded
        clock = time.process_time if torch.device(plan.device).type == "cpu" else time.perf_counter
        start = clock()
        with bar(bars, recipe.name) as step:
            result = saqsam.quantize(
                model,
                processor,
                recipe,
                plan.calibration[1],
                progress=step,
            )
        # The folder last: it is there only if all is.
        write_atomic(timing, json.dumps({"seconds": clock() - start}).encode())
        result.save(folder, overwrite=True)
    return folder, float(json.loads(timing.read_text(encoding="utf-8"))["seconds"])


def _cache_key(plan: Plan, recipe: Recipe) -> str:
    """Return the hash of everything that affects a checkpoint: model, recipe, calibration, code, torch and device."""
    parts = (sources_hash(), plan.model.hash, recipe.to_json(), plan.calibration[0], plan.device)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _measure(
    plan: Plan, subject: Subject, key: Mapping[str, str | int | None], bars: rich_progress.Progress
) -> Row:
    name = str(key["data"])
    dataset = plan.data[name]
    # AP is of boxes, whatever the prompt: once is enough.
    detections = plan.detections.get(name) if plan.prompt == "box" else None
    start = time.perf_counter()
    with bar(bars, f"{key['method']} {key['bits']} {name}") as step:
        if subject.model is None:
            result = _evaluate_filled_boxes(dataset, step)
        else:
            result = saqsam.evaluate(
                *subject.model,
                dataset,
                prompt=plan.prompt,  # type: ignore[arg-type]
                detections=detections,
                progress=step,
            )
    seconds = time.perf_counter() - start
    for reason, number in result.skipped.items():
        bars.console.print(f"{name}: left out: {reason}: {number}")
    if not key["settings"]:  # methods as they are get compared object by object
        write_scores(scores_file(plan.out, [key[column] for column in KEY]), instance_scores(result))
    ap = result.metrics.get("instance", {})
    measured = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "miou": result.metrics["prompt"]["miou"],
        "instances": result.metrics["prompt"]["instances"],
        "segm_ap": ap.get("segm_ap"),
        "segm_ap50": ap.get("segm_ap50"),
        "detections": None if not ap else plan.most_detections,
        "seconds_evaluate": seconds,
    }
    return Row(**plan.circumstances, **subject.columns, **key, **measured)  # type: ignore[arg-type]


def _evaluate_filled_boxes(dataset: Dataset, progress: Progress) -> Evaluation:
    """Score the box-fill baseline on every instance."""
    task, records = PromptTask(), []
    for index in range(len(dataset)):
        sample, instances = dataset[index], []
        for instance in sample.instances:
            if instance.is_crowd:
                continue
            filled = torch.from_numpy(fill_box(instance.box, sample.image.shape[:2]))
            iou = mask_iou(filled[None], torch.from_numpy(instance.mask())[None]).item()
            instances.append(
                {"id": instance.id, "iou": iou, "boundary_iou": math.nan, "predicted_iou": math.nan}
            )
        records.append({"image_id": sample.image_id, task.name: {"instances": instances}})
        progress("evaluating", index + 1, len(dataset))
    metrics = {task.name: task.reduce([record[task.name] for record in records])}
    return Evaluation(dataset.name, len(dataset), {task.name: task.options()}, metrics, tuple(records))


@contextmanager
def bar(bars: rich_progress.Progress, description: str) -> Iterator[Progress]:
    """Show a progress bar while the block runs, and yield the callback that advances it."""
    task = bars.add_task(description, total=None)

    def update(phase: str, done: int, total: int, note: str = "", /) -> None:
        bars.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        bars.remove_task(task)


def _share_text(shares: Mapping[str, float]) -> str:
    return " ".join(f"{name}:{share:.4f}" for name, share in shares.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parse_arguments(arguments)
    return exit_code(lambda: run(make_plan(options)))


def exit_code(work: Callable[[], object]) -> int:
    """Run a benchmark and return its exit code, with one-line messages for wrong options and interrupts.

    The process keeps the memory that it frees, which makes evaluation 10 to 15 % faster.
    """
    keep_freed_memory()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        work()
    except ValueError as error:
        err.print(f"error: {error}", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        err.print("interrupted; run the same command again to resume")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
