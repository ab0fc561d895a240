"""The plan of `ptq.py`: the float model, the data and the recipes; and the conditions that all rows name."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.resources
import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import SamModel, SamProcessor

import saqsam
from rows import FILL_BOX, FLOAT
from saqsam.checkpoint import quantization_config_of
from saqsam.cli.inputs import usable_device
from saqsam.cli.terminal import err
from saqsam.convert.plan import plan_quantization
from saqsam.data.detections import Detections, load_detections
from saqsam.data.open import SCENES
from saqsam.data.types import Dataset
from saqsam.models.loading import BUNDLED_MODELS, bundled_folder
from saqsam.ptq.calibration_data import calibration_scenes
from saqsam.ptq.units import reconstruction_units
from saqsam.recipes.catalog import EFFORTS
from saqsam.recipes.overrides import with_overrides
from saqsam.recipes.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "work" / "benchmarks"
DATA_ROOT = Path(os.environ.get("SAQSAM_DATA", ROOT / "data"))
CALIBRATION = "coco_train"
FLOAT_BITS = "w32a32"
MODELS = " or ".join(BUNDLED_MODELS)


class FloatModel:
    """The model to quantize, with its name and the hash of its weights; it is loaded on first use."""

    def __init__(self, source: str, device: str) -> None:
        self._source, self._device = source, device
        self.files = _weights_files(source)
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.read_bytes())
        self.hash = digest.hexdigest()[:12]
        # Rows are published: the name of the folder or file, not where it lies.
        path = Path(source).resolve()
        self.name = source if source in BUNDLED_MODELS else path.name if path.is_dir() else path.stem

    @cached_property
    def loaded(self) -> tuple[SamModel, SamProcessor]:
        """Load model and processor.

        Raises:
            ValueError: If the model is quantized already.
        """
        model, processor = saqsam.load(self._source, device=self._device)
        if quantization_config_of(model) is not None:
            raise ValueError(f"{self._source} is quantized already; the benchmark starts from a float model")
        return model, processor


def _weights_files(source: str) -> list[Path]:
    path = Path(source)
    if source in BUNDLED_MODELS:
        path = bundled_folder(source)
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"no weights in {path}; --model takes {' or '.join(BUNDLED_MODELS)}, a local folder, or a .pth file"
        )
    return files


@dataclass(frozen=True)
class Plan:
    """The measurements of a call and their conditions.

    Attributes:
        model: The float model.
        methods: Names of methods, `float` and `fill-box` among them.
        bits: Such as `w4a4`.
        data: Data sets by name.
        detections: A detector's boxes for those that come with them.
        most_detections: How many of each image's.
        calibration: Name and data set for the calibration.
        images: How many of its images.
        seed: Which of them.
        prompt: `box` or `point`.
        settings: Fields of the recipe that differ from the method's, as `saqsam quantize --set` takes them.
        total_steps: Learning steps over all units, dealt out evenly; None for those of the effort.
        device: Where the models run.
        circumstances: Columns that are the same in all rows: commit, versions, machine.
        out: The CSV file.
        cache: Folder for checkpoints and the scores of single instances.
        effort: One of `EFFORTS`.
    """

    model: FloatModel
    methods: Sequence[str]
    bits: Sequence[str]
    data: Mapping[str, Dataset]
    detections: Mapping[str, Detections]
    most_detections: int
    calibration: tuple[str, Dataset]
    images: int
    seed: int
    prompt: str
    settings: Sequence[str]
    total_steps: int | None
    device: str
    circumstances: Mapping[str, str]
    out: Path
    cache: Path
    effort: str = "standard"

    def variants(self) -> list[tuple[str, str]]:
        """Return method and bits of every evaluation."""
        fixed = {FILL_BOX: [""], FLOAT: [FLOAT_BITS]}
        return [(method, bits) for method in self.methods for bits in fixed.get(method, self.bits)]

    def recipe(self, method: str, bits: str) -> Recipe:
        """Return the recipe of a method under the options."""
        recipe = with_overrides(saqsam.recipe_for(method, bits, self.effort), self.settings)
        recipe = dataclasses.replace(
            recipe, calibration=dataclasses.replace(recipe.calibration, images=self.images, seed=self.seed)
        )
        spec = recipe.reconstruction
        if spec is None or self.total_steps is None:
            return recipe
        steps = max(1, round(self.total_steps * spec.steps / (self.learning_steps(recipe) or 1)))
        if any(setting.startswith("reconstruction.") and "_rate=" in setting for setting in self.settings):
            return dataclasses.replace(recipe, reconstruction=dataclasses.replace(spec, steps=steps))
        spec = dataclasses.replace(spec, steps=steps, **learning_rates(steps))
        return dataclasses.replace(recipe, reconstruction=spec)

    def learning_steps(self, recipe: Recipe) -> int | None:
        """Return the number of learning steps over all units; None for a recipe without reconstruction."""
        spec = recipe.reconstruction
        if spec is None:
            return None
        units = reconstruction_units(plan_quantization(self.model.loaded[0].config, recipe))
        return sum(unit.steps(spec) for unit in units)

    def key_columns(self, method: str, bits: str, data: str) -> dict[str, str | int | None]:
        """Return the `KEY` columns of a row."""
        is_quantized = method not in (FILL_BOX, FLOAT)
        return {
            "model": "" if method == FILL_BOX else self.model.name,
            "model_hash": "" if method == FILL_BOX else self.model.hash,
            "method": method,
            "bits": bits,
            "settings": " ".join(self.settings) if is_quantized else "",
            "steps": self.learning_steps(self.recipe(method, bits)) if is_quantized else None,
            "calibration": self.calibration[0] if is_quantized else "",
            "calibration_images": self.images if is_quantized else None,
            "seed": self.seed if is_quantized else None,
            "data": data,
            "images_evaluated": len(self.data[data]),
            "prompt": self.prompt,
        }


def learning_rates(steps: int) -> dict[str, float]:
    """Return the learning rates for a number of steps per unit, between those of the efforts on logarithmic scales.

    Fewer steps need higher rates, so that a curve over steps shows each method at rates that suit every point.
    """
    efforts = sorted(EFFORTS.values(), key=lambda effort: effort["steps"])
    known = [math.log(effort["steps"]) for effort in efforts]
    return {
        rate: math.exp(np.interp(math.log(steps), known, [math.log(effort[rate]) for effort in efforts]))
        for rate in ("rounding_rate", "scale_rate")
    }


def circumstances(device: str) -> dict[str, str]:
    """Return the columns that all rows of a call share.

    Raises:
        ValueError: The device cannot be used.
    """
    device = usable_device(device)
    return {
        "commit": _commit(),
        "saqsam": saqsam.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": _machine(device),
    }


def stamp(device: str, columns: Sequence[str]) -> dict[str, str]:
    """Return the day and the circumstances of a measurement, of which a file has `columns`.

    Raises:
        ValueError: The device cannot be used.
    """
    known = {"date": time.strftime("%Y-%m-%d", time.gmtime()), **circumstances(device)}
    return {name: value for name, value in known.items() if name in columns}


def sources_hash(*scripts: Path) -> str:
    """Return the hash of the package's sources and bundled weights, of some scripts, and of torch's version.

    It is part of the name of everything that is cached, so that nothing is read that other code has made.
    """
    package = Path(str(importlib.resources.files("saqsam")))
    digest = hashlib.sha256(torch.__version__.encode())
    for file in (*sorted(package.rglob("*.py")), *sorted(package.rglob("*.safetensors")), *scripts):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _commit() -> str:
    try:
        revision = _git("rev-parse", "--short=12", "HEAD")
        return f"{revision}-dirty" if _git("status", "--porcelain", "--", "src") else revision
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _open_data(
    names: Sequence[str], root: Path, limit: int | None, most_detections: int
) -> tuple[dict[str, Dataset], dict[str, Detections]]:
    """Return the datasets that are installed, and their best detections."""
    data: dict[str, Dataset] = {}
    detections: dict[str, Detections] = {}
    for name in names:
        if name == SCENES:
            data[name] = saqsam.open_dataset(SCENES, limit=limit)
        elif (root / name).is_dir():
            data[name] = saqsam.open_dataset(root / name, limit=limit)
            files = sorted((root / name).glob("detections*.json"))
            if files and most_detections:
                detections[name] = load_detections(files[0], data[name]).best(most_detections)
        else:
            err.print(f"{name}: skipped, there is no such folder in the data root (--data-root)")
    return data, detections


def _open_calibration(name: str | None, root: Path, images: int, seed: int) -> tuple[str, Dataset]:
    """Return name and data of the selected dataset, with the defaults of `saqsam quantize`."""
    if name is None:
        name = CALIBRATION if (root / CALIBRATION).is_dir() else SCENES
        err.print(f"calibrating on {images} images of {name}")
    if name != SCENES:
        return name, saqsam.open_dataset(root / name)
    return name, calibration_scenes(images, seed)


def make_plan(options: argparse.Namespace) -> Plan:
    """Open everything that the options name, before any long work begins.

    Raises:
        ValueError: Something is wrong with them.
    """
    for bits in options.bits:
        saqsam.recipe_for("mse", bits)
    if options.detections < 0:
        raise ValueError(f"--detections must be 0 or more, got {options.detections}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    methods = list(dict.fromkeys(options.methods))
    if options.prompt == "point" and FILL_BOX in methods:
        methods.remove(FILL_BOX)
    data, detections = _open_data(
        list(dict.fromkeys(options.data)), options.data_root, options.limit, options.detections
    )
    return Plan(
        model=FloatModel(options.model, options.device),
        methods=methods,
        bits=list(dict.fromkeys(bits.lower() for bits in options.bits)),
        data=data,
        detections=detections,
        most_detections=options.detections,
        calibration=_open_calibration(options.calibration, options.data_root, options.images, options.seed),
        images=options.images,
        seed=options.seed,
        prompt=options.prompt,
        settings=tuple(options.settings),
        total_steps=options.total_steps,
        device=options.device,
        circumstances=circumstances(options.device),
        out=options.out,
        cache=options.cache,
    )
