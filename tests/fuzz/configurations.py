"""Fuzz `config.json` and `processor_config.json` of a float model and of packed checkpoints."""

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

import numpy as np
import torch
from torch import Tensor
from transformers import SamModel, SamProcessor
from transformers.utils import logging

import saqsam
from fuzz.harness import EQUAL, VALID, Different, Tally, arguments, report, run
from saqsam.checkpoint import save_checkpoint
from saqsam.inference.predictor import Predictor
from saqsam.models.processing import load_processor
from support.tiny_quantized import quantize_tiny, tiny_recipe
from support.tiny_sam import IMAGE_SIZE, tiny_processor, tiny_sam

FILES = ("config.json", "processor_config.json")
Loader = Callable[[Path], tuple[SamModel, SamProcessor]]

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 8, 16, 64, 255, 8000, 10**9, 2**53, 2**63, 10**400),
    *(0.0, -0.0, 0.5, 1e-6, 1e-5, 1e-300, 1e308, -1e308, float("nan"), float("inf")),
    *(
        "",
        "x",
        "gelu",
        "relu",
        "prelu",
        "xielu",
        "float32",
        "float3",
        "8",
        "\u0000",
        "\ud83d\ude00",
        "a" * 10**6,
    ),
    *([], [[]], {}, {"": {}}, [1, 1, 1], [0.5] * 3, [1e-30] * 3, [1, 3], [-1], [10**9], list(range(10_000))),
    *(
        {"longest_edge": 64},
        {"longest_edge": 10**9},
        {"height": 64, "width": 64},
        {"height": -1, "width": "x"},
    ),
)
_STRAY: dict[str, Any] = {
    "per_layer_config": {"0": {"hidden_size": 3}},
    "return_dict": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "tie_word_embeddings": False,
    "attn_implementation": "flash_attention_9",
    "_attn_implementation": "eager",
    "auto_map": {"AutoModel": "evil.Model"},
    "problem_type": "regression",
    "num_labels": 10**9,
    "id2label": {"x": 1},
    "image_embedding_size": 3,
    "scale": 1e9,
    "crop_size": {"height": 3, "width": 3},
    "do_center_crop": True,
    "data_format": "channels_last",
    "input_data_format": "channels_first",
    "torch_dtype": "float16",
}
_HANGS_TRANSFORMERS = {"num_labels"}
"""Makes transformers count to the number given while it parses a configuration, before it asks us."""
TEXT_MUTATIONS: tuple[Callable[[str, random.Random], str], ...] = (
    lambda text, rng: text[:-2] + ',"deep":' + "[" * 5000 + "]" * 5000 + "}",
    lambda text, rng: text[:-2] + ',"deep":' + '{"a":' * 500 + "1" + "}" * 500 + "}",
    lambda text, rng: text[: rng.randrange(len(text))],
    lambda text, rng: text.replace('"', "'", 1),
    lambda text, rng: "\ufeff" + text,
    lambda text, rng: text.replace("{", '{"model_type": "sam", ', 1),
    lambda text, rng: text + text,
    lambda text, rng: "[" + text + "]",
    lambda text, rng: rng.choice(["", "null", "1e999", "{}", "[]", '"x"', "NaN", "[" * 10**5]),
)


class Model:
    """A saved model to mutate copies of.

    Args:
        folder: The saved model, of which copies are made beside it.
        is_float: Whether another valid configuration makes another valid model.
        load: How it is loaded.
    """

    def __init__(self, folder: Path, *, is_float: bool, load: Loader) -> None:
        self.original, self.copy = folder, folder.with_name(f"{folder.name}-copy")
        self.is_float, self.load = is_float, load
        self.expected = _masks(*load(folder))

    def use(self) -> str:
        """Load the copy and compare its masks with the original's."""
        found = _masks(*self.load(self.copy))
        if len(found) == len(self.expected) and all(map(torch.equal, found, self.expected)):
            return EQUAL
        if not self.is_float:
            raise Different("masks differ from those of the undamaged checkpoint")
        if not all(bool(torch.isfinite(tensor).all()) for tensor in found):
            raise Different("masks hold NaN or infinity")
        return VALID

    def write(self, name: str, text: str) -> None:
        """Make the copy equal to the original except for one file."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.original, self.copy)
        (self.copy / name).write_text(text, encoding="utf-8", errors="surrogatepass")


def _masks(model: SamModel, processor: SamProcessor) -> list[Tensor]:
    predictor = Predictor(model, processor)
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE - 16, IMAGE_SIZE, 3), np.uint8))
    box = np.array([[4.0, 4.0, 40.0, 44.0]])
    found = [
        tensor
        for several in (True, False)
        for tensor in predictor.predict_batch(boxes=box, multimask_output=several, return_logits=True)
    ]
    point = predictor.predict_batch(points=box[None, :, :2], labels=np.array([[1]]), return_logits=True)
    return [*found, *point]


def _containers(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _containers(inner)


def mutate(raw: dict[str, Any], rng: random.Random, stray: Sequence[str] = tuple(_STRAY)) -> str:
    """Change one thing in a configuration, in place; return what was done.

    Args:
        raw: The configuration.
        rng: Chooses.
        stray: Keys of `_STRAY` that may be added.
    """
    place = rng.choice([found for found in _containers(raw) if found])
    key = rng.choice(sorted(place))
    action = rng.choice(["replace"] * 6 + ["delete", "rename", "swap", "nest", "stray", "nudge", "nudge"])
    if action == "replace":
        place[key] = copy.deepcopy(rng.choice(_VALUES))
    elif action == "delete":
        del place[key]
    elif action == "rename":
        place[rng.choice([key.upper(), f"{key} ", f"_{key}", "\u202e" + key, "a" * 10**6])] = place.pop(key)
    elif action == "swap":
        other = rng.choice(sorted(place))
        place[key], place[other] = place[other], place[key]
    elif action == "nest":
        place[key] = rng.choice([[place[key]], {key: place[key]}, {"value": [place[key]] * 3}])
    elif action == "stray":
        key = rng.choice(stray)
        place[key] = copy.deepcopy(_STRAY[key])
    elif isinstance(place[key], bool):
        place[key] = not place[key]
    elif isinstance(place[key], int | float):
        place[key] *= rng.choice([2, 0.5, -1, 1.01, 10])
    elif isinstance(place[key], list):
        place[key] = place[key][::-1] + rng.choice([[], [0], [1]])
    return f"{action} {key[:60]}: {json.dumps(place.get(key))[:60]}"


def mutants(
    model: Model, name: str, count: int, rng: random.Random
) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield copies of a model in which one JSON file has one to three mutations."""
    text = (model.original / name).read_text(encoding="utf-8")
    stray = sorted(_STRAY if model.load is not _from_pretrained else _STRAY.keys() - _HANGS_TRANSFORMERS)
    for _ in range(count):
        if rng.random() < 0.1:
            index = rng.randrange(len(TEXT_MUTATIONS))
            label, mutated = f"text mutation {index}", TEXT_MUTATIONS[index](text, rng)
        else:
            raw = json.loads(text)
            label = "; ".join(mutate(raw, rng, stray) for _ in range(rng.choice([1, 1, 1, 2, 3])) if raw)
            mutated = json.dumps(raw)
        model.write(name, mutated)
        yield label, model.use


def _from_pretrained(folder: Path) -> tuple[SamModel, SamProcessor]:
    """Load by transformers, which parses `config.json` itself before it asks us.

    What it raises by then is its own, and counts as a refusal. So does a `quantization_config` that no longer names
    saqsam: transformers then warns that it ignores it, and that weights are missing.
    """
    try:
        model = SamModel.from_pretrained(folder)
    except Exception as error:
        if isinstance(error, ValueError) and type(error).__module__.startswith("saqsam"):
            raise
        frames, trace = [], error.__traceback__
        while trace is not None:
            frames.append(trace.tb_frame.f_globals.get("__name__", ""))
            trace = trace.tb_next
        if any(name.startswith("saqsam") for name in frames):
            raise
        raise ValueError(f"transformers: {type(error).__name__}") from error
    if not hasattr(model, "hf_quantizer"):
        raise ValueError("transformers: not loaded as a quantized model")
    return model, load_processor(folder, model.config)


def fuzz(count: int, seed: int, kinds: Sequence[str] = ("float", "packed", "from_pretrained")) -> list[Tally]:
    """Run `count` mutants of each file and each way of loading."""
    tallies = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            original = Path(folder) / kind
            if kind == "float":
                tiny_sam(seed=3).save_pretrained(original)
                tiny_processor().save_pretrained(original)
            else:
                save_checkpoint(quantize_tiny(tiny_recipe("min-max", "w4a8")), tiny_processor(), original)
            load = _from_pretrained if kind == "from_pretrained" else saqsam.load
            model = Model(original, is_float=kind == "float", load=load)
            for name in FILES:
                rng = random.Random(f"{seed} {kind} {name}")
                tallies.append(run(f"{kind}, {name.removesuffix('.json')}", mutants(model, name, count, rng)))
    return tallies


def main(argv: Sequence[str] | None = None) -> int:
    """Run the long fuzz and print its table."""
    options = arguments(argv, count=1000)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return report(fuzz(options.count, options.seed))


if __name__ == "__main__":
    sys.exit(main())
