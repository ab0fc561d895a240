"""Fuzz exported folders: `export.json`, the processor's configuration, and the bytes of ONNX files."""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from fuzz.configurations import TEXT_MUTATIONS, mutate
from fuzz.harness import EQUAL, VALID, Different, Tally, arguments, report, run
from saqsam.export import export_model
from saqsam.export.manifest import MANIFEST, file_hash, manifest_hash
from saqsam.inference.predictor import Predictor, check_finite
from saqsam.recipes.deployment import deployable
from saqsam.runtimes import load_runtime
from support.tiny_quantized import quantize_tiny, tiny_recipe
from support.tiny_sam import IMAGE_SIZE, tiny_processor

PROCESSOR = "processor_config.json"
MODEL_FILES = ("encoder.onnx", "decoder.onnx")
KINDS = (
    MANIFEST,
    f"{MANIFEST}, hash recomputed",
    PROCESSOR,
    *MODEL_FILES,
    *(f"{name}, hash recomputed" for name in MODEL_FILES),
)
Mutants = Iterator[tuple[str, Callable[[], str]]]


class Export:
    """An exported folder to mutate copies of.

    Args:
        folder: The export, of which a copy is made beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.original, self.copy = folder, folder.with_name(f"{folder.name}-copy")
        self.expected = _masks(folder)

    def renew(self) -> None:
        """Make the copy equal to the original."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.original, self.copy)

    def use(self) -> str:
        """Load the copy and compare its masks with the original's."""
        if not self._is_equal():
            raise Different("masks differ from those of the undamaged export")
        return EQUAL

    def use_recomputed(self) -> str:
        """Load a copy whose hashes were recomputed: another valid export may compute other masks."""
        return EQUAL if self._is_equal() else VALID

    def _is_equal(self) -> bool:
        found = _masks(self.copy)
        return len(found) == len(self.expected) and all(map(torch.equal, found, self.expected))


def _masks(folder: Path) -> list[Tensor]:
    backend, processor = load_runtime(folder, threads=1)
    predictor = Predictor(backend, processor)
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE - 16, IMAGE_SIZE, 3), np.uint8))
    box = np.array([[4.0, 4.0, 40.0, 44.0]])
    found = []
    for several in (True, False):
        masks, ious, low_res = predictor.predict_batch(
            boxes=box, multimask_output=several, return_logits=True
        )
        check_finite(low_res, ious)  # as evaluation does
        found += [masks, ious, low_res]
    return found


def _json_mutants(export: Export, name: str, count: int, rng: random.Random, *, recompute: bool) -> Mutants:
    text = (export.original / name).read_text(encoding="utf-8")
    for _ in range(count):
        if not recompute and rng.random() < 0.1:
            index = rng.randrange(len(TEXT_MUTATIONS))
            label, mutated = f"text mutation {index}", TEXT_MUTATIONS[index](text, rng)
        else:
            raw = json.loads(text)
            label = "; ".join(mutate(raw, rng) for _ in range(rng.choice([1, 1, 1, 2, 3])) if raw)
            if recompute:
                raw["sha256"] = manifest_hash(raw)
            mutated = json.dumps(raw)
        export.renew()
        (export.copy / name).write_text(mutated, encoding="utf-8", errors="surrogatepass")
        yield label, export.use_recomputed if recompute else export.use


def _byte_mutants(export: Export, name: str, count: int, rng: random.Random, *, recompute: bool) -> Mutants:
    content = (export.original / name).read_bytes()
    for _ in range(count):
        mutated = bytearray(content)
        action = rng.choice(["flip"] * 6 + ["cut", "insert", "zero", "repeat"])
        place = rng.randrange(len(content))
        if action == "flip":
            for _ in range(rng.choice([1, 1, 2, 8])):
                mutated[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif action == "cut":
            del mutated[place:]
        elif action == "insert":
            mutated[place:place] = rng.randbytes(rng.randrange(1, 16))
        elif action == "zero":
            mutated[place : place + 64] = bytes(len(mutated[place : place + 64]))
        else:
            mutated += mutated[place:]
        export.renew()
        (export.copy / name).write_bytes(mutated)
        if recompute:
            raw = json.loads((export.copy / MANIFEST).read_text())
            raw["files"][name] = file_hash(export.copy / name)
            raw["sha256"] = manifest_hash(raw)
            (export.copy / MANIFEST).write_text(json.dumps(raw))
        yield f"{action} at {place}", export.use_recomputed if recompute else export.use


def fuzz(count: int, seed: int, kinds: Sequence[str] = KINDS) -> list[Tally]:
    """Run `count` mutants of each kind."""
    tallies = []
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "export"
        export_model(quantize_tiny(deployable(tiny_recipe("min-max", "w4a8"))), tiny_processor(), original)
        export = Export(original)
        for kind in kinds:
            name, _, recomputed = kind.partition(", ")
            make = _byte_mutants if name in MODEL_FILES else _json_mutants
            rng = random.Random(f"{seed} {kind}")
            tallies.append(run(kind, make(export, name, count, rng, recompute=bool(recomputed))))
    return tallies


def main(argv: Sequence[str] | None = None) -> int:
    """Run the long fuzz and print its table."""
    options = arguments(argv, count=300)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return report(fuzz(options.count, options.seed))


if __name__ == "__main__":
    sys.exit(main())
