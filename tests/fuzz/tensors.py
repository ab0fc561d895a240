"""Fuzz the tensors of a checkpoint: damaged bytes, and impossible values under a recomputed hash."""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fuzz.harness import EQUAL, VALID, Different, Tally, arguments, report, run
from saqsam.checkpoint import (
    WEIGHTS,
    SaqsamConfig,
    content_hash,
    hash_header,
    load_checkpoint,
    save_checkpoint,
)
from saqsam.models.configuration import parse_config
from support.tiny_quantized import outputs, quantize_tiny, tiny_recipe
from support.tiny_sam import tiny_processor

Mutation = Callable[[Tensor, random.Random], Tensor]
_EXTREMES = (
    float("nan"),
    float("inf"),
    -float("inf"),
    0.0,
    -1.0,
    1e-45,
    1e38,
    65505.0,
    3.7,
    255.0,
    -(2.0**31),
)
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


def _cast(tensor: Tensor, value: float) -> Tensor:
    """Return `value` in the dtype of `tensor`, as far as the dtype has it."""
    if tensor.is_floating_point():
        return torch.tensor(value).to(tensor.dtype)
    info = torch.iinfo(tensor.dtype)
    finite = 0 if value != value else min(max(value, info.min), info.max)
    return torch.tensor(int(finite)).to(tensor.dtype)


def _fill(tensor: Tensor, rng: random.Random) -> Tensor:
    return torch.zeros_like(tensor) + _cast(tensor, rng.choice(_EXTREMES))


def _poke(tensor: Tensor, rng: random.Random) -> Tensor:
    changed = tensor.clone()
    if changed.numel():
        changed.view(-1)[rng.randrange(changed.numel())] = _cast(tensor, rng.choice(_EXTREMES))
    return changed


def _negate(tensor: Tensor, rng: random.Random) -> Tensor:
    return -tensor


def _retype(tensor: Tensor, rng: random.Random) -> Tensor:
    return tensor.to(rng.choice(_DTYPES))


def _reshape(tensor: Tensor, rng: random.Random) -> Tensor:
    return rng.choice(
        [tensor[None], tensor.reshape(-1), torch.cat([tensor.reshape(-1)] * 2), tensor.reshape(-1)[:0]]
    )


def _scale(tensor: Tensor, rng: random.Random) -> Tensor:
    return (tensor.float() * rng.choice([0.5, 2.0, 1e3, 1e-3])).to(tensor.dtype)


VALUE_MUTATIONS: tuple[Mutation, ...] = (_fill, _poke, _negate, _retype, _reshape, _scale)


class Checkpoint:
    """A checkpoint of a tiny SAM to mutate copies of.

    Args:
        folder: An empty folder to work in.
        method: Method of its recipe.
    """

    def __init__(self, folder: Path, method: str) -> None:
        model = quantize_tiny(tiny_recipe(method))
        self.original = save_checkpoint(model, tiny_processor(), folder / "original")
        self.copy = folder / "copy"
        self.expected = outputs(load_checkpoint(self.original))
        self.tensors = load_file(self.original / WEIGHTS)

    def reset(self) -> None:
        """Make the copy equal to the original."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.original, self.copy)

    def use(self, *, is_rehashed: bool) -> str:
        """Load the copy and compare its masks with the original's."""
        found = outputs(load_checkpoint(self.copy))
        if all(torch.equal(found[name], self.expected[name]) for name in self.expected):
            return EQUAL
        if not is_rehashed:
            raise Different("masks differ from those of the undamaged checkpoint")
        if not all(bool(torch.isfinite(found[name]).all()) for name in found):
            raise Different("masks hold NaN or infinity")
        return VALID

    def write(self, tensors: dict[str, Tensor], *, rehash: bool) -> None:
        """Write tensors into the copy, with their own hash if `rehash`."""
        self.reset()
        save_file(
            {name: t.clone().contiguous() for name, t in tensors.items()},
            self.copy / WEIGHTS,
            {"format": "pt"},
        )
        if rehash:
            path = self.copy / "config.json"
            raw = json.loads(path.read_text())
            quantization = SaqsamConfig.from_dict(raw["quantization_config"])
            header = hash_header(
                parse_config(raw, str(path)), quantization.recipe, quantization.processor_sha256
            )
            raw["quantization_config"]["content_sha256"] = content_hash(tensors, header)
            path.write_text(json.dumps(raw))


def mutated_values(
    checkpoint: Checkpoint, count: int, rng: random.Random, *, rehash: bool
) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield checkpoints in which one tensor, sometimes two, holds other values, or is missing, renamed or swapped."""
    names = sorted(checkpoint.tensors)
    special = [name for name in names if name.endswith(("scale", "zero_point", "tau", "codes", "gain"))]
    for _ in range(count):
        tensors, label = dict(checkpoint.tensors), []
        for _ in range(rng.choice([1, 1, 1, 2])):
            name = rng.choice(special if rng.random() < 0.6 else names)
            action = rng.randrange(10)
            if action == 0:
                tensors.pop(name, None)
                label.append(f"remove {name}")
            elif action == 1:
                other = rng.choice(names)
                tensors[name], tensors[other] = checkpoint.tensors[other], checkpoint.tensors[name]
                label.append(f"swap {name} and {other}")
            elif action == 2:
                tensors[rng.choice(["x", "", "a" * 10_000, name.upper(), "../" + name])] = checkpoint.tensors[
                    name
                ]
                label.append(f"copy {name} to another name")
            else:
                mutation = rng.choice(VALUE_MUTATIONS)
                try:
                    tensors[name] = mutation(checkpoint.tensors[name], rng)
                except (RuntimeError, TypeError):  # a dtype without this operation
                    continue
                label.append(f"{mutation.__name__.strip('_')} {name}")
        if label:
            checkpoint.write(tensors, rehash=rehash)
            yield ", ".join(label), lambda: checkpoint.use(is_rehashed=rehash)


def mutated_bytes(
    checkpoint: Checkpoint, count: int, rng: random.Random
) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield checkpoints whose tensor file has flipped, inserted, removed or overwritten bytes."""
    content = (checkpoint.original / WEIGHTS).read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    for _ in range(count):
        data = bytearray(content)
        place = rng.randrange(header if rng.random() < 0.6 else len(data))
        action = rng.choice(["flip", "insert", "remove", "cut", "zero", "length"])
        if action == "flip":
            data[place] ^= 1 << rng.randrange(8)
        elif action == "insert":
            data[place:place] = rng.randbytes(rng.choice([1, 8, 1000]))
        elif action == "remove":
            del data[place : place + rng.choice([1, 8, 1000])]
        elif action == "cut":
            del data[place:]
        elif action == "zero":
            end = min(len(data), place + rng.choice([1, 8, 1000]))
            data[place:end] = bytes(end - place)
        else:
            data[:8] = rng.choice([0, 1, 2**31, 2**63 - 1, 2**64 - 1, len(data)]).to_bytes(8, "little")
        checkpoint.reset()
        (checkpoint.copy / WEIGHTS).write_bytes(data)
        yield f"{action} at byte {place}", lambda: checkpoint.use(is_rehashed=False)


METHODS = ("mse", "saq-sam-plus", "ptq4sam-s", "adalog")


def fuzz(count: int, seed: int, methods: Sequence[str] = METHODS) -> list[Tally]:
    """Run `count` mutants of each kind, spread over checkpoints of several methods."""
    tallies = []
    with tempfile.TemporaryDirectory() as folder:
        for method in methods:
            checkpoint = Checkpoint(Path(folder) / method, method)
            rng, share = random.Random(f"{seed} {method}"), -(-count // len(methods))
            tallies += [
                run(f"tensors, {method}", mutated_values(checkpoint, share, rng, rehash=False)),
                run(f"tensors rehashed, {method}", mutated_values(checkpoint, share, rng, rehash=True)),
                run(f"tensor file, {method}", mutated_bytes(checkpoint, share, rng)),
            ]
    return tallies


def main(argv: Sequence[str] | None = None) -> int:
    """Run the long fuzz and print its table."""
    options = arguments(argv, count=1500)
    return report(fuzz(options.count, options.seed))


if __name__ == "__main__":
    sys.exit(main())
