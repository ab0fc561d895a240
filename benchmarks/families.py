"""Measure the size of published models of every family, float and packed: rows in results/families.csv.

    python benchmarks/families.py

Weights are random, since published ones cannot be redistributed here; bytes and multiply-accumulates do not depend on
them. Recipes are `mse` with `--deploy`, whose ranges need no images for this purpose.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import Sam3TrackerConfig, SamHQConfig

import saqsam
from options import add_out
from plain_rows import append_plain
from random_models import pack_uncalibrated, random_sam, random_sam2
from rows import RESULTS
from saqsam.analysis.macs import count_macs
from saqsam.checkpoint.tensors import checkpoint_tensors
from saqsam.models.mobile_sam.configuration import MobileSamConfig
from saqsam.models.registry import family_of
from saqsam.recipes.deployment import deployable

OUT = RESULTS / "families.csv"
COLUMNS = ("family", "model", "gmac", "float_mb", "w8a8_mb", "w4a8_mb")
BITS = ("w8a8", "w4a8")


def random_model(config: Any) -> Any:
    """Return a model of a configuration with random weights, in eval mode."""
    torch.manual_seed(0)
    return family_of(config).build(config).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "ViT-B": partial(random_sam, "b"),
    "HQ ViT-B": lambda: random_model(SamHQConfig()),
    **{
        f"2.1 {name}": partial(random_sam2, name.replace(" ", "_"))
        for name in ("tiny", "small", "base plus", "large")
    },
    "TinyViT": lambda: random_model(MobileSamConfig()),
    "tracker": lambda: random_model(Sam3TrackerConfig()),
}


def measure(name: str) -> dict[str, object]:
    """Return the row of a model."""
    model = MODELS[name]()
    family = family_of(model.config)
    tied = family.structure(model.config).tied
    floats = sum(value.numel() * 4 for key, value in model.state_dict().items() if key not in tied)
    macs = sum(count_macs(model.config).parts.values())
    row: dict[str, object] = {"family": family.label, "model": name, "gmac": round(macs / 1e9, 1)}
    row["float_mb"] = round(floats / 1e6, 1)
    for bits in BITS:
        packed = pack_uncalibrated(MODELS[name](), deployable(saqsam.recipe_for("mse", bits)))
        size = sum(tensor.numel() * tensor.element_size() for tensor in checkpoint_tensors(packed).values())
        row[f"{bits}_mb"] = round(size / 1e6, 1)
    return row


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(
        description="Measure the size of published models; writes all rows anew."
    )
    add_out(parser, OUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    rows = [measure(name) for name in MODELS]
    options.out.unlink(missing_ok=True)
    append_plain(options.out, COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
