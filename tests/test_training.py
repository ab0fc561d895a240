"""The training of sam-mini goes on where it stopped, and starts from exported weights."""

import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from saqsam.data.scenes import ScenesDataset

TRAINING = Path(__file__).resolve().parents[1] / "training"
MODULES = ("train", "evaluation", "forward", "samples", "pack")


@pytest.fixture(scope="module")
def training() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TRAINING))
        yield {name: importlib.import_module(name) for name in MODULES}
        for name in MODULES:
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def samples(training, tmp_path_factory):
    """Windows of 64 px of three packed scenes."""
    path = tmp_path_factory.mktemp("packs") / "scenes.npz"
    read = training["pack"].read(ScenesDataset(count=3, seed=5), "scenes")
    np.savez(path, **training["pack"].pack(itertools.chain(read), 256, 80))
    pack = training["samples"].Pack(path, {})
    spec = training["samples"].SampleSpec(64, 256, 2, {"scenes": 1.0})
    return training["samples"].SampleSet([pack], spec, seed=1, length=100)


def batch(samples, *numbers: int) -> dict[str, torch.Tensor]:
    return torch.utils.data.default_collate([samples[number] for number in numbers])


def test_a_sample_depends_on_its_number_alone(samples) -> None:
    first = samples[7]
    samples[3]
    again = samples[7]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixels"], samples[8]["pixels"])
    assert first["pixels"].shape == (3, 64, 64)
    assert first["targets"].shape == (2, 32, 32)
    assert first["targets"].flatten(1).any(1).all()


def test_a_run_goes_on_as_if_it_had_not_stopped(training, samples, tmp_path) -> None:
    train = training["train"]
    run = train.Run(tmp_path / "run", torch.device("cpu"), 1e-3)
    train.train_step(run, batch(samples, 0), False, 1.0)
    run.step, run.samples, run.seconds = 1, 1, 2.5
    run.update_average()
    run.save()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["state.pt"]
    resumed = train.Run(tmp_path / "run", torch.device("cpu"), 1e-3)
    assert (resumed.step, resumed.samples, resumed.seconds) == (1, 1, 2.5)
    losses = [train.train_step(r, batch(samples, 1), True, 1.0) for r in (run, resumed)]
    assert losses[0] == losses[1]
    state, other = run.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert all(torch.equal(run.average[name], resumed.average[name]) for name in run.average)


def test_a_new_run_can_start_from_exported_weights(training, tmp_path) -> None:
    train = training["train"]
    run = train.Run(tmp_path / "run", torch.device("cpu"), 1e-3)
    weights = Path(train.HERE).parent / "src" / "saqsam" / "models" / "sam_mini"
    curve = tmp_path / "curve.csv"
    curve.write_text("step,samples,hours\n5,40,0.1\n9,72,0.5\n")
    run.start_from(weights, curve)
    assert (run.step, run.samples, run.seconds) == (9, 72, 1800.0)
    expected = train.SamModel.from_pretrained(weights, dtype=torch.float32).state_dict()
    found = run.averaged_model().state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
