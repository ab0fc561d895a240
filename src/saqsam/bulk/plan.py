"""Plan of a bulk run, recorded beside its files so that no other run adds to them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saqsam.bulk.collections import Collection, Inputs
from saqsam.segmentation.prompts import Prompt
from saqsam.segmentation.run import Task
from saqsam.utils.atomic_write import write_atomic
from saqsam.utils.errors import CheckpointError, shorten_names
from saqsam.utils.strict_json import read_json_object

PLAN_FILE = "plan.json"
PART_NAME = re.compile(r"part-(\d{6})\.parquet")
_OWN_NAME = re.compile(r"plan\.json|part-\d{6}\.parquet|\..*")
"""Files of a run; those of attempts and unfinished files are hidden."""

MOST_PARTS = 1_000_000
_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """All that the rows of a run depend on.

    Attributes:
        checkpoint: Identity of the model with its settings, see `model_identity`.
        model: Its name on the command line.
        inputs: What the command line names as images.
        listing: Digest of the images and their order.
        prompts: Digest of prompts, of files that hold them, of generator options and of tiling.
        images: Number of images, or None where only reading tells.
        parts: Number of parts.
    """

    checkpoint: str
    model: str
    inputs: tuple[str, ...]
    listing: str
    prompts: str
    images: int | None
    parts: int

    @classmethod
    def of(cls, checkpoint: str, model: str, inputs: Inputs, collection: Collection, task: Task) -> Plan:
        """Return the plan of a run, whose `collection` is that of its `inputs`.

        Raises:
            ValueError: There are more parts than their files have numbers.
        """
        if len(collection) > MOST_PARTS:
            raise ValueError(
                f"images: expected at most {MOST_PARTS:,} parts, got {len(collection):,}; raise --images-per-file"
            )
        images = None if collection.names is None else len(collection.names)
        prompts = f"{task_digest(task)}{inputs.annotations_digest()}"
        return cls(checkpoint, model, inputs.names, collection.digest, prompts, images, len(collection))


def task_digest(task: Task) -> str:
    """Return a digest of prompts, generator options and tiling."""
    content: dict[str, Any] = {
        "prompts": [_prompt_text(prompt) for prompt in task.prompts],
        "file": None,
        "generator": None if task.generator is None else dataclasses.asdict(task.generator),
        "tiling": None if task.tiling is None else dataclasses.asdict(task.tiling),
    }
    if task.prompt_file is not None:
        content["file"] = {
            name: [_prompt_text(prompt) for prompt in prompts]
            for name, prompts in task.prompt_file.prompts.items()
        }
        content["categories"] = dict(task.prompt_file.categories)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _prompt_text(prompt: Prompt) -> str:
    mask = "" if prompt.mask is None else hashlib.sha256(prompt.mask.tobytes()).hexdigest()
    return f"{prompt.box} {prompt.points} {prompt.labels} {prompt.category_id} {prompt.score} {mask}"


def claim_folder(folder: Path, plan: Plan) -> None:
    """Create the folder of a run, or check that an existing one is of the same run.

    Any number of processes may do so at the same time.

    Raises:
        ValueError: The folder holds other files, or parts of another run.
    """
    path = folder / PLAN_FILE
    if path.exists():
        _check_same(read_plan(folder), plan, folder)
        return
    if folder.is_dir():
        foreign = [entry.name for entry in folder.iterdir() if not _OWN_NAME.fullmatch(entry.name)]
        if foreign:
            raise ValueError(f"--out: {folder} holds {shorten_names(foreign)}; choose another folder")
    content = {"version": _VERSION, **dataclasses.asdict(plan)}
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


def _check_same(found: Plan, expected: Plan, folder: Path) -> None:
    for field in dataclasses.fields(Plan):
        was, now = getattr(found, field.name), getattr(expected, field.name)
        # The same images may be named in another way, and the same model may lie elsewhere.
        if field.name not in ("model", "inputs") and was != now:
            what = {"checkpoint": "model", "listing": "images"}.get(field.name, field.name)
            raise ValueError(
                f"{folder} holds masks of another run: its {what} differ; choose another folder, or pass --overwrite"
            )


def read_plan(folder: Path) -> Plan:
    """Read the plan of a run.

    Raises:
        ValueError: The folder is not that of a run.
        CheckpointError: The plan is damaged.
    """
    path = folder / PLAN_FILE
    try:
        content = read_json_object(path)
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: expected a folder of saqsam segment --format parquet, found no {PLAN_FILE}"
        ) from None
    kinds: dict[str, type | tuple[type, ...]] = {
        "checkpoint": str,
        "model": str,
        "inputs": list,
        "listing": str,
        "prompts": str,
        "images": (int, type(None)),
        "parts": int,
    }
    if content.pop("version", None) != _VERSION or content.keys() != kinds.keys():
        raise CheckpointError(f"{path}: expected a plan of version {_VERSION}")
    for name, kind in kinds.items():
        if not isinstance(content[name], kind):
            raise CheckpointError(f"{path}: {name} has the wrong type")
    if not 0 < content["parts"] <= MOST_PARTS:
        raise CheckpointError(f"{path}: expected 1 to {MOST_PARTS:,} parts")
    return Plan(**{**content, "inputs": tuple(map(str, content["inputs"]))})


def part_path(folder: Path, part: int) -> Path:
    """Return the file of a part."""
    return folder / f"part-{part:06d}.parquet"


def attempts_path(folder: Path, part: int) -> Path:
    """Return the journal of a part's attempts, see `Attempts`."""
    return folder / f".part-{part:06d}.attempts"


def finished_parts(folder: Path) -> set[int]:
    """Return the numbers of the parts whose file is there."""
    found = (PART_NAME.fullmatch(path.name) for path in folder.iterdir())
    return {int(match[1]) for match in found if match}


@dataclass(frozen=True)
class Shard:
    """The share of one process among several: every `count`-th part from `index` on.

    Raises:
        ValueError: The index is not below the count.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"--shard: expected i/n with i from 0 to n-1, got {self.index}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse `i/n`.

        Raises:
            ValueError: The text has another form.
        """
        match = re.fullmatch(r"(\d{1,7})/(\d{1,7})", text)
        if match is None:
            raise ValueError(f"--shard: expected i/n with i from 0 to n-1, such as 0/8, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    def of(self, parts: int) -> range:
        """Return the numbers of this share among all parts."""
        return range(self.index, parts, self.count)
