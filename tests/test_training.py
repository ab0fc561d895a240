"""The training of sam-mini goes on where it stopped, and starts from exported weights."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import SamModel

from saqsam.data.scenes.dataset import ScenesDataset
from support.script_modules import scripts

MODULES = ("train", "evaluation", "forward", "samples", "pack", "widen")


@pytest.fixture(scope="module")
def training() -> Iterator[dict[str, ModuleType]]:
    with scripts("training", MODULES) as found:
        yield found


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


@torch.inference_mode()
def test_widening_changes_no_output_and_no_two_copies_stay_tied(training) -> None:
    torch.manual_seed(0)
    narrow = SamModel(training["forward"].sam_mini_config(64)).eval()
    training["forward"].initialize(narrow)
    for name, parameter in narrow.named_parameters():
        if name.endswith("bias") or "layer_norm" in name:
            parameter.add_(0.1 * torch.randn_like(parameter))
    wide = training["widen"].widen(narrow).eval()
    pixels = torch.randn(1, 3, 256, 256)
    prompts = [
        {"input_boxes": torch.tensor([[[20.0, 30, 100, 120], [3, 4, 10, 12]]])},
        {"input_points": torch.tensor([[[[50.0, 60.0]]]]), "input_masks": torch.randn(1, 1, 128, 128)},
    ]
    for prompt in prompts:
        before, after = (model(pixel_values=pixels, **prompt) for model in (narrow, wide))
        torch.testing.assert_close(after.pred_masks, before.pred_masks, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(after.iou_scores, before.iou_scores, atol=1e-4, rtol=1e-4)
    weight = wide.mask_decoder.transformer.layers[0].mlp.lin1.weight
    assert (weight[:, :32] - weight[:, 32:64]).abs().min() > 0


def test_a_box_lies_between_pixels_where_the_mask_does(training) -> None:
    fine = training["samples"].FINE
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 12:30] = 255
    mask[10:20, 11] = 64  # a quarter of that column is covered
    x0, y0, x1, y1 = training["samples"].subpixel_box(mask) * fine
    assert (y0, x1, y1) == pytest.approx((10, 30, 20), abs=0.51)
    assert 11.5 < x0 < 12
    mask[:] = 255
    assert training["samples"].subpixel_box(mask).tolist() == [0, 0, 60 / fine, 40 / fine]


def test_logits_are_compared_on_a_fine_grid_over_the_object(training) -> None:
    """The region's samples of a mask and of the logits that draw it agree, and everything else is far."""
    module, fine = training["samples"], training["samples"].FINE
    window = 32
    rows, columns = np.mgrid[: window * fine, : window * fine]
    center = (columns - 30) ** 2 + (rows - 26) ** 2
    mask = np.where(center < 12**2, 255, 0).astype(np.uint8)
    box = module.subpixel_box(mask)
    region, samples = module.cut_region(np.random.default_rng(0), mask, box)
    cells = window // 2
    covered = torch.from_numpy(mask).float().reshape(cells, 2 * fine, cells, 2 * fine).mean((1, 3)) / 255
    truth = training["train"].Truth(
        covered[None], torch.from_numpy(region)[None] / 2, torch.from_numpy(samples)[None].float() / 255
    )
    y, x = torch.meshgrid(*[(torch.arange(cells) + 0.5) * 2 * fine - 0.5] * 2, indexing="ij")
    logits = (12 - ((x - 30) ** 2 + (y - 26) ** 2).sqrt())[None, None]
    found = truth.sample(logits) > 0
    assert (found == (truth.samples > 0.5)).float().mean() > 0.97
    assert training["train"].true_iou(logits, truth).item() > 0.93
    far = logits.clone()
    far[..., 0, 0] = 9.0  # a cell beyond the region counts with its area
    share = float(training["train"].true_iou(logits, truth) / training["train"].true_iou(far, truth))
    assert share == pytest.approx(1 + 1 / (np.count_nonzero(mask) / (2 * fine) ** 2), rel=0.05)
    losses = training["train"].mask_loss(torch.cat([logits, far, -logits], 1), truth, balance=0.0)[0]
    assert losses[0] < losses[1] < losses[2]
