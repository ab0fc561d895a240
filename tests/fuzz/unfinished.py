"""Fuzz unfinished runs: the journal of a quantization, and the records of an evaluation.

Damaged bytes must be refused or lead to the very same result. Values that were changed under a recomputed digest must
be refused, or be ones that the run could have written itself.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fuzz.harness import EQUAL, VALID, Different, Tally, arguments, report, run
from fuzz.tensors import VALUE_MUTATIONS
from saqsam.checkpoint import checkpoint_tensors
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.data.simulated_detections import SimulatedDetections
from saqsam.data.simulated_labels import SimulatedLabels
from saqsam.evaluation import (
    EverythingTask,
    InstanceTask,
    OrientedTask,
    PromptTask,
    SemanticTask,
    Task,
    evaluate,
)
from saqsam.evaluation.records import RecordFolder
from saqsam.inference.mask_generator import GeneratorOptions
from saqsam.ptq.journal import ARGUMENTS, Journal
from saqsam.ptq.pipeline import quantize
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam import tiny_processor, tiny_sam

Mutants = Iterator[tuple[str, Callable[[], str]]]
IMAGES = 2
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 2**31, 2**53, 2**63, 10**400, 0.5, -1.0, 1e308, 1e-300),
    *(
        float("nan"),
        float("inf"),
        "",
        "x",
        "0",
        "a" * 10**5,
        "PYY",
        [],
        {},
        [[]],
        [0],
        [1, 1],
        {"": 0},
        [10**9] * 2,
    ),
)


def mutate_json(value: Any, rng: random.Random) -> str:
    """Change one random entry of plain values in place; return what was done."""
    containers = [one for one in _containers(value) if one]
    container = rng.choice(containers)
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    key = rng.choice(keys)
    action = rng.choice(["replace", "replace", "replace", "remove", "add", "swap"])
    if action == "remove":
        del container[key]
    elif action == "add" and isinstance(container, dict):
        container[rng.choice(["x", "", "a" * 10**4])] = rng.choice(_VALUES)
    elif action == "add":
        container.append(rng.choice([*_VALUES, copy.deepcopy(container[key])]))
    elif action == "swap":
        other = rng.choice(keys)
        container[key], container[other] = container[other], container[key]
    else:
        container[key] = copy.deepcopy(rng.choice(_VALUES))
    return f"{action} {str(key)[:40]}"


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)


def mutate_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return changed bytes, and what was done."""
    data, place = bytearray(content), rng.randrange(len(content))
    action = rng.choice(["flip", "insert", "remove", "cut", "zero", "repeat", "nest"])
    if action == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif action == "insert":
        data[place:place] = rng.choice([rng.randbytes(8), b"\n", b"{}\n", b"\0" * 1000])
    elif action == "remove":
        del data[place : place + rng.choice([1, 8, 1000])]
    elif action == "cut":
        del data[place:]
    elif action == "zero":
        end = min(len(data), place + rng.choice([1, 8, 1000]))
        data[place:end] = bytes(end - place)
    elif action == "repeat":
        data[place:place] = data[place : place + 1000]
    else:
        data[place:place] = b"[" * 10_000
    return bytes(data), f"{action} at byte {place}"


def json_text(value: Any) -> str:
    """Return JSON text, with NaN and infinity as Python writes them."""
    return json.dumps(value)


class Quantization:
    """An unfinished quantization whose steps are all finished, to mutate copies of."""

    def __init__(self, folder: Path) -> None:
        self.original, self.copy = folder / "original", folder / "copy"
        self.expected = self._run(self.original)
        self.steps = sorted(path.stem for path in self.original.glob("*.safetensors"))

    def _run(self, folder: Path) -> dict[str, Tensor]:
        recipe = tiny_recipe("saq-sam", "w3a4", bimodal=True)
        found = quantize(tiny_sam(), tiny_processor(), recipe, tiny_data(), resume_dir=folder)
        return checkpoint_tensors(found.model)

    def reset(self) -> None:
        """Make the copy equal to the original."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.original, self.copy)

    def use(self, *, is_redigested: bool) -> str:
        """Resume from the copy, and compare the result with that of an undisturbed run."""
        found = self._run(self.copy)
        if all(torch.equal(found[name], self.expected[name]) for name in self.expected):
            return EQUAL
        if not is_redigested:
            raise Different("the checkpoint differs from that of an undisturbed run")
        if not all(
            bool(torch.isfinite(tensor).all()) for tensor in found.values() if tensor.is_floating_point()
        ):
            raise Different("the checkpoint holds NaN or infinity")
        return VALID

    def bytes(self, count: int, rng: random.Random, *, steps: bool) -> Mutants:
        """Yield copies with damaged bytes in the arguments or a step."""
        for _ in range(count):
            name = f"{rng.choice(self.steps)}.safetensors" if steps else ARGUMENTS
            data, label = mutate_bytes((self.original / name).read_bytes(), rng)
            self.reset()
            (self.copy / name).write_bytes(data)
            yield f"{name}: {label}", lambda: self.use(is_redigested=False)

    def arguments(self, count: int, rng: random.Random) -> Mutants:
        """Yield copies with other values in the arguments."""
        for _ in range(count):
            value = json.loads((self.original / ARGUMENTS).read_text())
            label = mutate_json(value, rng)
            self.reset()
            (self.copy / ARGUMENTS).write_text(json_text(value))
            yield label, lambda: self.use(is_redigested=False)

    def values(self, count: int, rng: random.Random) -> Mutants:
        """Yield copies in which a step has other tensors or notes, under a digest of their own."""
        for _ in range(count):
            step = rng.choice(self.steps)
            with safe_open(self.original / f"{step}.safetensors", framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                notes = json.loads(file.metadata()["notes"])
            if rng.random() < 0.3:
                label = mutate_json(notes, rng)
            else:
                label = _mutate_tensors(tensors, rng)
            self.reset()
            journal = Journal(self.copy, json.loads((self.original / ARGUMENTS).read_text()))
            try:
                journal.save(step, {name: t.contiguous().clone() for name, t in tensors.items()}, notes)
            except (ValueError, RuntimeError):  # notes that are no JSON: nothing was written
                continue
            yield f"{step}: {label}", lambda: self.use(is_redigested=True)


def _mutate_tensors(tensors: dict[str, Tensor], rng: random.Random) -> str:
    name = rng.choice(sorted(tensors))
    action = rng.randrange(8)
    if action == 0:
        del tensors[name]
        return f"remove {name}"
    if action == 1:
        other = rng.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
        return f"swap {name} and {other}"
    if action == 2:
        new = rng.choice(
            ["x", "a.b", "signs.", "signs.x", "signs.vision_encoder.layers.0.attn", "a" * 10_000]
        )
        tensors[new] = rng.choice([tensors[name], torch.ones(32, dtype=torch.int8)])
        return f"copy {name} to {new[:20]}"
    mutation = rng.choice(VALUE_MUTATIONS)
    try:
        tensors[name] = mutation(tensors[name], rng)
    except (RuntimeError, TypeError):  # a dtype without this operation
        return "nothing"
    return f"{mutation.__name__.strip('_')} {name}"


class Evaluation:
    """An unfinished evaluation in several tasks whose images are all done, to mutate copies of."""

    def __init__(self, folder: Path) -> None:
        self.original, self.copy = folder / "original", folder / "copy"
        generator = GeneratorOptions(points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0)
        self.tasks: list[Task] = [
            PromptTask("clicks", clicks=2, keep_masks=True),
            InstanceTask(SimulatedDetections()),
            OrientedTask(keep_masks=True),
            EverythingTask(generator),
            SemanticTask(SimulatedLabels(), generator, keep_masks=True),
        ]
        self.model, self.data = tiny_sam(), ScenesDataset(IMAGES, size=(48, 64))
        self.expected = self._run(self.original)
        self.content = (self.original / "records-0.jsonl").read_bytes()

    def _run(self, folder: Path) -> str:
        result = evaluate(
            self.model, tiny_processor(), self.data, tasks=self.tasks, resume_dir=folder, workers=0
        )
        return result.to_json()

    def write(self, content: bytes) -> None:
        """Write the copy."""
        shutil.rmtree(self.copy, ignore_errors=True)
        self.copy.mkdir()
        (self.copy / "records-0.jsonl").write_bytes(content)

    def use(self, *, is_redigested: bool) -> str:
        """Resume from the copy, and compare the result with that of an undisturbed run."""
        if self._run(self.copy) == self.expected:
            return EQUAL
        if not is_redigested:
            raise Different("the scores differ from those of an undisturbed run")
        return VALID  # `to_json` refuses what is not finite

    def bytes(self, count: int, rng: random.Random) -> Mutants:
        """Yield copies with damaged bytes."""
        for _ in range(count):
            data, label = mutate_bytes(self.content, rng)
            self.write(data)
            yield label, lambda: self.use(is_redigested=False)

    def values(self, count: int, rng: random.Random) -> Mutants:
        """Yield copies in which a record has other values, under digests of their own."""
        header, *records = (json.loads(line)["record"] for line in self.content.splitlines())
        for _ in range(count):
            changed = copy.deepcopy(records)
            label = mutate_json(changed[rng.randrange(len(changed))], rng)
            shutil.rmtree(self.copy, ignore_errors=True)
            folder = RecordFolder(self.copy, header["evaluation"], count=IMAGES, schemas={})
            try:
                for record in changed:
                    folder.append(record)
            except (ValueError, KeyError, TypeError):  # no JSON, or no index: nothing that could be written
                continue
            yield label, lambda: self.use(is_redigested=True)


def fuzz(count: int, seed: int) -> list[Tally]:
    """Run `count` mutants of each kind."""
    with tempfile.TemporaryDirectory() as name:
        rng = random.Random(seed)
        quantization = Quantization(Path(name, "quantization"))
        evaluation = Evaluation(Path(name, "evaluation"))
        return [
            run("journal, bytes of arguments", quantization.bytes(count, rng, steps=False)),
            run("journal, arguments", quantization.arguments(count, rng)),
            run("journal, bytes of steps", quantization.bytes(count, rng, steps=True)),
            run("journal, steps redigested", quantization.values(count, rng)),
            run("records, bytes", evaluation.bytes(count, rng)),
            run("records, redigested", evaluation.values(count, rng)),
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the long fuzz and print its table."""
    options = arguments(argv, count=400)
    return report(fuzz(options.count, options.seed))


if __name__ == "__main__":
    sys.exit(main())
