"""Measure the cost of learning: seconds per phase on sam-mini, and seconds per step and unit on SAM-B at 1024 px.

    python benchmarks/ptq_cost.py            # rows in results/ptq_cost.csv; those that are there are not measured again
    python benchmarks/ptq_cost.py --device cuda --subjects sam-mini sam-b

- `sam-mini`: `saq-sam` w4a4 at the effort `standard`, phase by phase, calibrated on 32 scenes.
- `sam-mini-plus`: the same of `saq-sam-plus`.
- `search`: the clipping search of all decoder attentions of sam-mini against a plain one, a forward of the attention
  for each candidate; both on the same tensors, in turn.
- `sam-b`: a SAM-B of random weights, one image: seconds a step of each unit, for SAQ-SAM's stages and for plain
  blocks, and the highest memory, of the process or, on a GPU, of its tensors. Projections are these times the published
  numbers of steps. On a GPU in both precisions.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

import saqsam
from plain_rows import append_plain, read_plain
from plan import circumstances
from ptq import exit_code
from random_models import random_sam_b
from rows import RESULTS
from run_once import peak_gib
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepare
from saqsam.models.processing import build_processor
from saqsam.models.sam.attention import QuantDecoderAttention
from saqsam.models.structure import replace_module
from saqsam.ptq.calibration_data import calibration_scenes
from saqsam.ptq.calibration_images import choose_calibration_images
from saqsam.ptq.clipping import attention_inputs
from saqsam.ptq.focus_search import SEARCHED, FocusSearch
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Precision

OUT = RESULTS / "ptq_cost.csv"
COLUMNS = (
    "date",
    "commit",
    "torch",
    "machine",
    "subject",
    "recipe",
    "what",
    "seconds",
    "steps",
    "peak_gib",
    "ratio",
)
PAPER_STEPS = {"stage": 2000, "block": 20_000}
STEPS = 3
SLOTS = ("q_proj.input_quantizer", "k_proj.input_quantizer", "query_quantizer", "key_quantizer")
"""Slots of an attention of SAM v1 whose ranges are searched."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure what learning costs.")
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    return exit_code(lambda: measure(options.subjects, options.device, options.out))


def measure(subjects: Sequence[str], device: str, out: Path) -> None:
    """Append the rows of subjects that are not yet measured on this machine."""
    circumstances = common(device)
    for subject in subjects:
        if (subject, circumstances["machine"]) in {
            (row["subject"], row["machine"]) for row in read_plain(out)
        }:
            print(f"{subject}: is in {out.name}")
            continue
        rows = SUBJECTS[subject](device)
        append_plain(out, COLUMNS, [{**circumstances, "subject": subject, **row} for row in rows])
        for row in rows:
            print(subject, row, flush=True)


def common(device: str) -> dict[str, object]:
    """Return the columns that all rows of a call share."""
    conditions = circumstances(device)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return {"date": day, **{name: conditions[name] for name in ("commit", "torch", "machine")}}


class Phases:
    """Progress callback that records the duration of each phase and the time of each step."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.steps: dict[str, list[float]] = {}

    def __call__(self, what: str, done: int, total: int, note: str = "", /) -> None:
        """Add the time since the last call to a phase."""
        now = time.perf_counter()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self.last
        if done:  # the first report announces the phase
            self.steps.setdefault(what, []).append(now - self.last)
        self.last = now


def measure_sam_mini(device: str, method: str = "saq-sam") -> list[dict[str, object]]:
    """Measure the seconds of each phase of a method on the bundled model."""
    model, processor = saqsam.load("sam-mini", device=device)
    recipe = saqsam.recipe_for(method, "w4a4", "standard")
    data = calibration_scenes(images=32, seed=0)
    phases, start = Phases(), time.perf_counter()
    saqsam.quantize(model, processor, recipe, data, progress=phases)
    total = time.perf_counter() - start
    rows = [
        {
            "recipe": recipe.name,
            "what": what,
            "seconds": round(seconds, 2),
            "ratio": round(seconds / total, 4),
        }
        for what, seconds in phases.seconds.items()
    ]
    whole = {"recipe": recipe.name, "what": "total", "seconds": round(total, 2), "ratio": 1.0}
    return [*rows, {**whole, "peak_gib": _peak_gib(device)}]


def _peak_gib(device: str) -> float:
    """Return the peak memory so far: of the process, or of the tensors on a GPU."""
    if torch.device(device).type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    return peak_gib()


def measure_search(device: str) -> list[dict[str, object]]:
    """Compare the clipping search with a naive one: all slots of all attentions, one pass."""
    model, processor = saqsam.load("sam-mini", device=device)
    recipe = saqsam.recipe_for("saq-sam-s", "w4a4")
    plan = plan_quantization(model.config, recipe)
    spec = dataclasses.replace(recipe.calibration, images=1)
    data = calibration_scenes(images=32, seed=0)
    images = choose_calibration_images(model, processor, data, spec)
    prepare(model, plan)
    names = [site.name for site in plan.structure.decoder_attentions]
    seconds: dict[str, list[float]] = {"search": [], "plain": []}
    with torch.no_grad():
        inputs = attention_inputs(model, names, images, 0, recipe.calibration.prompts)
        for name in names:
            attention = model.get_submodule(name)
            assert isinstance(attention, QuantDecoderAttention)
            search = FocusSearch(attention, [inputs[name]], 0.5)
            for _ in range(3):
                for kind, function in (("search", _fast), ("plain", _plain)):
                    seconds[kind].append(_timed(lambda f=function, s=search: f(s)))
    medians = {
        kind: sum(statistics.median(times[i : i + 3]) for i in range(0, len(times), 3))
        for kind, times in seconds.items()
    }
    return [
        {
            "recipe": recipe.name,
            "what": kind,
            "seconds": round(value, 3),
            "ratio": round(medians["plain"] / value, 3),
        }
        for kind, value in medians.items()
    ]


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _fast(search: FocusSearch) -> None:
    empty: dict[str, nn.Module] = {operand: nn.Identity() for operand in SEARCHED}
    for position, operand in enumerate(SEARCHED):
        candidates = search.candidates(position % 2, operand, 4, symmetric=False)
        search.best(position % 2, operand, [quantizer for _, quantizer in candidates], empty)


def _plain(search: FocusSearch) -> None:
    """Search the range of a slot by a full forward pass of the attention for each candidate."""
    prompts = max(map(len, search.inputs[0]))
    query, key, value = (tensor.expand(prompts, -1, -1, -1) for tensor in search.inputs[0])
    for position, (operand, slot) in enumerate(zip(SEARCHED, SLOTS, strict=True)):
        old = search.attention.get_submodule(slot)
        for _, quantizer in search.candidates(position % 2, operand, 4, symmetric=False):
            replace_module(search.attention, slot, quantizer)
            probabilities = search.attention(query, key, value)[1]
            focus = probabilities > 0.5 * probabilities.amax(-1, keepdim=True)
            ((focus & search.focus[0]).sum((-2, -1)) / (focus | search.focus[0]).sum((-2, -1))).mean().item()
        replace_module(search.attention, slot, old)


def measure_sam_b(device: str) -> list[dict[str, object]]:
    """Measure the seconds per step of each unit of a SAM-B with random weights."""
    model = random_sam_b().to(device)
    processor = build_processor(model.config)
    data = saqsam.open_dataset("scenes", limit=1, seed=1_000_000)
    rows: list[dict[str, object]] = []
    for unit, label, recipe in _learned_variants(device):
        phases = Phases()
        if torch.device(device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        saqsam.quantize(model, processor, recipe, data, progress=phases)
        projected = 0.0
        for what, steps in phases.steps.items():
            if "/" not in what:
                continue
            seconds = statistics.median(steps[1:])  # the first holds the capture of the targets
            count = PAPER_STEPS[unit] * (5 if what.endswith("final attention") and unit == "stage" else 1)
            projected += seconds * count
            rows.append({"recipe": label, "what": what, "seconds": round(seconds, 3), "steps": count})
        total = {"recipe": label, "what": "projected total", "seconds": round(projected)}
        rows.append({**total, "peak_gib": _peak_gib(device)})
    return rows


def _learned_variants(device: str) -> Iterator[tuple[str, str, Recipe]]:
    """Return unit, label and recipe of each measurement on large models."""
    on_cpu = torch.device(device).type == "cpu"
    precisions: tuple[Precision, ...] = ("float32",) if on_cpu else ("float32", "bfloat16")
    for unit, method in (("stage", "saq-sam"), ("block", "brecq")):
        for precision in precisions:
            recipe = _few_steps(saqsam.recipe_for(method, "w4a4", "standard"), precision)
            yield unit, recipe.name if on_cpu else f"{recipe.name}, {precision}", recipe


def _few_steps(recipe: Recipe, precision: Precision) -> Recipe:
    assert recipe.reconstruction is not None
    learned = dataclasses.replace(
        recipe.reconstruction, steps=STEPS, final_steps=1, prompts=16, precision=precision
    )
    return dataclasses.replace(
        recipe, reconstruction=learned, calibration=dataclasses.replace(recipe.calibration, images=1)
    )


SUBJECTS: dict[str, Callable[[str], list[dict[str, object]]]] = {
    "sam-mini": measure_sam_mini,
    "sam-mini-plus": lambda device: measure_sam_mini(device, "saq-sam-plus"),
    "search": measure_search,
    "sam-b": measure_sam_b,
}
"""Subjects in order of memory, since peak memory is that of the process so far."""


if __name__ == "__main__":
    sys.exit(main())
