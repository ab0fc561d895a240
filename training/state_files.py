"""The state of a training run in several small files, for a rented GPU with limited transfers.

`state.pt`, which `train.py` writes, holds weights, moving average and optimizer in float32: 120 MB. Here a state is
split into files `state_0.pt`, `state_1.pt`, ... of at most 15 MiB, 57 MiB in all:

- weights: float32, for one step changes them by less than half precision resolves;
- moving average: float16 difference from the weights, which is a thousandth of them;
- second moments of the optimizer: bfloat16, whose error changes a step by 0.2 %;
- first moments: not stored. They average ten steps and rebuild as fast, from zero, so the first steps are small.

Either form resumes a run in `train.py` and in `train_gpu.py`, and is exported by `export.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE_BYTES = 15 * 2**20
"""Most bytes of tensors in one file."""

COUNTERS = ("step", "samples", "seconds")


def save_split(state: dict[str, Any], folder: Path) -> None:
    """Write a state as split files. Earlier ones are replaced when all new ones are complete."""
    tensors = {f"model.{name}": value for name, value in state["model"].items()}
    for name, value in state["average"].items():
        tensors[f"average.{name}"] = (value - state["model"][name]).half()
    for index, moments in state["optimizer"]["state"].items():
        tensors[f"second.{index}"] = moments["exp_avg_sq"].bfloat16()
        tensors[f"step.{index}"] = moments["step"]
    files: list[dict[str, Tensor]] = [{}]
    room = FILE_BYTES
    for name, value in tensors.items():
        size = value.numel() * value.element_size()
        if size > room and files[-1]:
            files.append({})
            room = FILE_BYTES
        files[-1][name] = value.detach().cpu().clone()
        room -= size
    counters = {name: state[name] for name in COUNTERS} | {"files": len(files)}
    partial = [folder / f"state_{number}.partial" for number in range(len(files))]
    for path, content in zip(partial, files, strict=True):
        torch.save({"counters": counters, "tensors": content}, path)
    for path in partial:
        path.replace(path.with_suffix(".pt"))


def load_split(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read split files as the state that `state.pt` would hold, without the optimizer's `param_groups`.

    Raises:
        ValueError: Files are missing, or stem from different states.
    """
    tensors: dict[str, Tensor] = {}
    counters = torch.load(folder / "state_0.pt", map_location=device, weights_only=True)["counters"]
    for number in range(counters["files"]):
        path = folder / f"state_{number}.pt"
        if not path.exists():
            raise ValueError(f"{path} is missing: the state has {counters['files']} files")
        part = torch.load(path, map_location=device, weights_only=True)
        if part["counters"] != counters:
            raise ValueError(
                f"{path} is of step {part['counters']['step']}, state_0.pt of step {counters['step']}"
            )
        tensors |= part["tensors"]

    def named(group: str) -> dict[str, Tensor]:
        return {name[len(group) + 1 :]: v for name, v in tensors.items() if name.startswith(f"{group}.")}

    model, steps = named("model"), named("step")
    moments = {
        int(index): {"step": steps[index], "exp_avg": torch.zeros_like(v, dtype=torch.float32), "exp_avg_sq": v.float()}
        for index, v in named("second").items()
    }  # fmt: skip
    return {
        "model": model,
        "average": {name: model[name] + v.float() for name, v in named("average").items()},
        "optimizer": {"state": moments},
        **{name: counters[name] for name in COUNTERS},
    }


def load_state(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Return the state of a run, the later one if it is there in both forms, or None if there is none."""
    states = []
    if (folder / "state.pt").exists():
        states.append(torch.load(folder / "state.pt", map_location=device, weights_only=True))
    if (folder / "state_0.pt").exists():
        states.append(load_split(folder, device))
    return max(states, key=lambda state: state["step"], default=None)
