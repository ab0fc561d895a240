"""Samples made on a device match those of the data loader, and a run on a GPU resumes from small files."""

import csv
import itertools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from saqsam.data.scenes.dataset import ScenesDataset
from support.script_modules import scripts

MODULES = (
    "train", "train_gpu", "evaluation", "forward", "samples", "pack",
    "device_pictures", "device_images", "device_samples", "state_files",
)  # fmt: skip
CPU = torch.device("cpu")
DEVICE = torch.device(os.environ.get("SAQSAM_TEST_DEVICE", "cuda"))
needs_device = pytest.mark.skipif(
    DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no CUDA device is here"
)
WINDOW = 64


@pytest.fixture(scope="module")
def training() -> Iterator[dict[str, ModuleType]]:
    with scripts("training", MODULES) as found:
        yield found


@pytest.fixture(scope="module")
def pack_file(training, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packs") / "scenes.npz"
    read = training["pack"].read(ScenesDataset(count=6, seed=5), "scenes")
    np.savez(path, **training["pack"].pack(itertools.chain(read), 384, 90))
    return path


@pytest.fixture(scope="module")
def pack(training, pack_file):
    return training["samples"].Pack(pack_file, {})


@pytest.fixture(scope="module")
def pictures(training, pack):
    return training["device_pictures"].DevicePictures([pack], CPU, 256)


def sampler(training, pictures, *, batch=4, small=0.0, window=WINDOW, **spec):
    spec = training["samples"].SampleSpec(window, 256, 3, {"scenes": 1.0}, small=small, **spec)
    return training["device_samples"].DeviceSampler(pictures, spec, batch, seed=3)


def placements(training, pictures, side: int) -> Iterator[tuple[int, np.ndarray]]:
    """Pictures and matrices that show their middles at many scales and angles."""
    for number, scale in enumerate(np.geomspace(0.12, 1.8, 12)):
        image = number % len(pictures.size)
        angle = 0.5 * number
        linear = (
            scale
            * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            @ np.diag([(-1.0) ** number, 1])
        )
        height, width = pictures.size[image].tolist()
        offset = side / 2 + 0.3 * number - linear @ np.array([width, height]) / 2
        yield image, np.concatenate([linear, offset[:, None]], 1)


def number_of(pack, image: int) -> int:
    return int(pack.images_of["scenes"][image])


def test_a_matrix_places_the_same_picture(training, pack, pictures) -> None:
    module, side = training["device_samples"], 96
    border = torch.tensor(255 * training["samples"].MEAN)
    apart = []
    for image, matrix in placements(training, pictures, side):
        expected = training["samples"].warp_image(pack.read(number_of(pack, image)), matrix, side)
        item, to_window = torch.tensor([image]), torch.tensor(matrix[None], dtype=torch.float32)
        found = module.warp_images(pictures.images, item, to_window, side, border)[0].permute(1, 2, 0).numpy()
        apart.append(np.abs(found - expected).mean())
    assert max(apart) < 8
    assert np.mean(apart) < 1.5


def placed(training, instance: int, matrix: np.ndarray):
    """One instance in a window."""
    return training["device_samples"].Objects(
        torch.tensor([[instance]]),
        torch.tensor([[False]]),
        torch.tensor(matrix[None, None], dtype=torch.float32),
        torch.full((1, 2), float(WINDOW)),
        torch.zeros(0, 2 * WINDOW, 2 * WINDOW),
    )


def test_a_matrix_places_the_same_masks(training, pack, pictures) -> None:
    """Areas agree within 3 %, boxes within half a pixel, and visibility is decided alike."""
    samples, device = training["samples"], sampler(training, pictures)
    steps = (torch.arange(WINDOW * samples.FINE) + 0.5) / samples.FINE
    decided = []
    for image, matrix in placements(training, pictures, WINDOW):
        first, count = int(pictures.instance_first[image]), int(pictures.instance_count[image])
        to_window, content = (
            torch.tensor(matrix[None], dtype=torch.float32),
            torch.full((1, 2), float(WINDOW)),
        )
        visible = device.visible(torch.arange(first, first + count)[None], to_window, content, None)[0]
        for place in range(count):
            instance = find_instance(pack, number_of(pack, image), pictures.box[first + place])
            masks = samples.warp_masks(pack, [instance], matrix * samples.FINE, (WINDOW, WINDOW), WINDOW)
            decided.append(bool(masks) == bool(visible[place]))
            if not masks:
                continue
            objects = placed(training, first + place, matrix)
            found = device.cover(objects, steps, steps[:, None], 1 / samples.FINE)[0, 0].numpy()
            expected = masks[0] / 255
            assert found.sum() == pytest.approx(expected.sum(), rel=0.03, abs=3)
            both, any_ = (op(found > 0.5, expected > 0.5).sum() for op in (np.logical_and, np.logical_or))
            assert both / any_ > 0.93 or any_ - both < 12
            cells = cv2.resize(masks[0], (WINDOW // 2, WINDOW // 2), interpolation=cv2.INTER_AREA)
            assert np.abs(device.targets(objects)[0, 0].numpy() - cells.astype(int)).mean() < 1.5
            crops = device.crops(objects)
            area = crops.cover.sum().item() * crops.step.item() ** 2 * samples.FINE**2
            assert area == pytest.approx(expected.sum(), rel=0.03, abs=3)
            box = device.boxes(crops, objects)[0, 0]
            assert box.numpy() == pytest.approx(samples.subpixel_box(masks[0]), abs=0.5)
    assert len(decided) > 50
    assert np.mean(decided) > 0.96


def find_instance(pack, number: int, box: torch.Tensor) -> int:
    rows = pack.instance[pack.instances_of[number], 1:]
    return pack.instances_of[number][int(np.abs(rows - box.numpy()).sum(1).argmin())]


def test_a_batch_looks_like_collated_samples(training, pack, pictures) -> None:
    device = sampler(training, pictures)
    made = device.batch(7)
    device.batch(3)
    assert all(torch.equal(value, made[name]) for name, value in device.batch(7).items())
    assert not torch.equal(made["pixels"], device.batch(8)["pixels"])
    samples = training["samples"].SampleSet([pack], device.spec, seed=1, length=100)
    expected = torch.utils.data.default_collate([samples[number] for number in range(4)])
    assert {name: (v.shape, v.dtype) for name, v in made.items()} == {
        name: (v.shape, v.dtype) for name, v in expected.items()
    }
    assert made["targets"].flatten(2).any(2).all()


def statistics(batches: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Means over samples and prompts of what the augmentation draws."""
    data = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    area = data["targets"].float().sum((2, 3)) / 255 * 4
    region = data["regions"]
    is_box = data["labels"][..., 0] == 2
    side = (region[..., 2:] - region[..., :2]).amin(-1)
    width = data["coords"][..., 1, 0] - data["coords"][..., 0, 0]
    pixels = data["pixels"]
    # A region is the box and 15 to 35 % on each side: 1 / 1.5 of it on average.
    loose = (width / (region[..., 2] - region[..., 0]) * 1.5)[is_box & (side > 12)]
    return {
        "log_size": (0.5 * area.clamp(min=1).log()).mean().item(),
        "log_size_spread": (0.5 * area.clamp(min=1).log()).std().item(),
        "box_share": is_box.float().mean().item(),
        "box_width": loose.mean().item(),
        "box_width_spread": loose.std().item(),
        "fill": (data["region_targets"].float() / 255).mean().item(),
        "brightness": pixels.mean().item(),
        "contrast": pixels.std((1, 2, 3)).mean().item(),
        "empty": (pixels == 0).all(1).float().mean().item(),
        "whole": (pixels == 0).all(1).flatten(1).any(1).float().mean().item(),
    }


TOLERANCES = {
    "log_size": 0.12, "log_size_spread": 0.1, "box_share": 0.06, "box_width": 0.03, "box_width_spread": 0.03,
    "fill": 0.03, "brightness": 0.12, "contrast": 0.08, "empty": 0.04, "whole": 0.1,
}  # fmt: skip


def test_samples_are_distributed_like_those_of_the_data_loader(training, pack, pictures) -> None:
    device = sampler(training, pictures, batch=50, whole=0.4)
    samples = training["samples"].SampleSet([pack], device.spec, seed=1, length=1000)
    loader = torch.utils.data.DataLoader(samples, 50)
    expected = statistics(list(itertools.islice(loader, 4)))
    found = statistics([device.batch(number) for number in range(4)])
    for name, tolerance in TOLERANCES.items():
        assert found[name] == pytest.approx(expected[name], abs=tolerance), name


@needs_device
def test_a_device_renders_what_the_cpu_renders(training, pack, pictures) -> None:
    module = training["device_samples"]
    on_device = training["device_pictures"].DevicePictures([pack], DEVICE, 256)
    made = []
    host = sampler(training, pictures, batch=8)
    draw = module.Draw(CPU, 4)
    placed = host.place(draw, 8)
    pasted = host.paste(draw, placed)
    picks, _ = host.pick(draw, placed, pasted)
    for device in (host, sampler(training, on_device, batch=8)):
        there = [
            type(data)(**{name: value.to(device.device) for name, value in vars(data).items()})
            for data in (placed, pasted, picks)
        ]
        objects = device.objects(*there)
        crops = device.crops(objects)
        image = module.warp_images(
            device.pictures.images, there[0].image, there[0].matrix, WINDOW, device.border
        )
        made.append((image, device.targets(objects), device.boxes(crops, objects), crops.cover))
    image, targets, boxes, cover = ((a.float() - b.cpu().float()).abs() for a, b in zip(*made, strict=True))
    assert image.max() <= 1
    assert targets.max() <= 1
    assert boxes.max() < 0.01
    assert cover.max() < 0.01


@needs_device
def test_no_step_waits_for_the_device(training, pack, tmp_path) -> None:
    on_device = training["device_pictures"].DevicePictures([pack], DEVICE, 256)
    device = sampler(training, on_device, batch=2)
    run = training["train_gpu"].DeviceRun(tmp_path / "run", DEVICE, 1e-3)
    for step in range(2):
        if DEVICE.type == "cuda" and step == 1:  # the first step initializes libraries and the optimizer
            torch.cuda.set_sync_debug_mode("error")
        try:
            loss, _ = training["train"].batch_loss(run, device.batch(step), True)
            training["train"].update(run, loss, 1.0)
            run.update_average()
        finally:
            if DEVICE.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        run.step += 1
    assert loss.isfinite()


def test_small_objects_are_favored(training, pictures) -> None:
    sizes = []
    for small in (0.0, 1.0):
        batch = sampler(training, pictures, batch=24, small=small, window=128).batch(0)
        sizes.append((batch["targets"].float().sum((2, 3)) / 255 * 4).sqrt())
    shares = [(size <= 12).float().mean().item() for size in sizes]
    assert shares[1] > shares[0] + 0.15


def test_boxes_regions_and_points_match_the_mask(training) -> None:
    module, samples = training["device_samples"], training["samples"]
    rows, columns = np.mgrid[:96, :96]
    masks = np.stack([(columns - 40) ** 2 / 4 + (rows - 50) ** 2 < 15**2, (rows > 60) & (columns < 9)])
    masks = (masks | np.stack([rows < 4, rows < 0])).astype(np.float32)
    step = 1 / samples.FINE
    crops = module.Crops(torch.tensor(masks)[None], torch.zeros(1, 2, 2), torch.full((1, 2, 1), step))
    draw = module.Draw(CPU, 0)
    x0, x1 = module.profile_ends(crops.cover[0].amax(1))
    y0, y1 = module.profile_ends(crops.cover[0].amax(2))
    boxes = torch.stack([x0, y0, x1, y1], 1)[None] * step
    regions = module.surroundings(draw, boxes)
    inside = []
    for mask, box, region in zip(masks, boxes[0].numpy(), regions[0].numpy(), strict=True):
        assert box == pytest.approx(samples.subpixel_box((255 * mask).astype(np.uint8)), abs=1e-4)
        margin = np.stack([box[:2] - region[:2], region[2:] - box[2:]])
        share = margin / (box[2:] - box[:2])
        assert ((margin >= 1.5 - 1e-4) & ((share < 0.351) | (margin < 1.501))).all()
        same = SimpleNamespace(uniform=lambda *_: share)  # noqa: B023
        expected, cells = samples.cut_region(same, (255 * mask).astype(np.uint8), box)
        assert region == pytest.approx(expected, abs=1e-3)
        inside.append(torch.tensor(cells > 0))
    points = module.innermost(regions, torch.stack(inside)[None])[0]
    for mask, point in zip(masks, points.numpy(), strict=True):
        distance = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        x, y = (point * samples.FINE).astype(int)
        assert distance[y, x] > distance.max() - 2.5
    drawn = torch.stack([module.random_inside(draw, crops)[0] for _ in range(200)])
    at = (drawn * samples.FINE).long().numpy()
    assert masks[0, at[:, 0, 1], at[:, 0, 0]].all()
    assert masks[1, at[:, 1, 1], at[:, 1, 0]].all()
    assert (at[:, 0, 1] < 4).mean() == pytest.approx(masks[0, :4].sum() / masks[0].sum(), abs=0.1)


def test_a_pasted_object_hides_others(training, pictures) -> None:
    """With an opaque object over half of each window, nothing of the others remains there."""
    module, device = training["device_samples"], sampler(training, pictures, batch=8)
    draw = module.Draw(CPU, 1)
    placed = device.place(draw, 8)
    pasted = device.paste(draw, placed)
    side = training["samples"].FINE * WINDOW
    half = torch.ones(len(pasted.image), side, side)
    half[..., side // 2 :] = 0
    pasted = module.replace(pasted, cover=half)
    picks, _ = device.pick(draw, placed, pasted)
    picks = module.replace(picks, pasted=torch.zeros_like(picks.pasted))
    targets = device.targets(device.objects(placed, pasted, picks)).float()
    left = targets[..., : WINDOW // 4].flatten(1).amax(1)
    assert len(pasted.image) == 2
    assert left[:2].max() == 0
    assert left[2:].max() == 255


def test_the_blur_is_that_of_opencv(training) -> None:
    image = np.random.default_rng(0).uniform(0, 255, (40, 40, 3)).astype(np.float32)
    for sigma in (0.4, 0.8, 1.3):
        found = training["device_images"].blur(
            torch.tensor(image).permute(2, 0, 1)[None], torch.full((1, 1, 1, 1), sigma)
        )
        expected = cv2.GaussianBlur(image, (0, 0), sigma)
        assert np.abs(found[0].permute(1, 2, 0).numpy() - expected).max() < 0.2


def test_packs_of_one_source_are_joined(training, pack, pictures) -> None:
    joined = training["device_pictures"].DevicePictures([pack, pack], CPU, 256)
    assert joined.sources == ["scenes"]
    assert joined.lists.count.tolist() == [2 * len(pictures.size)]
    ends = joined.instance_first + joined.instance_count
    assert ends.tolist() == [*joined.instance_first[1:].tolist(), len(joined.side)]
    for first, end in zip(joined.instance_first, ends, strict=True):
        assert joined.side[first:end].diff().min() >= 0


def test_the_loop_takes_the_steps_of_the_data_loader_path(training, pictures, tmp_path) -> None:
    train = training["train"]
    batch = sampler(training, pictures, batch=2).batch(0)
    runs = [cls(tmp_path / cls.__name__, CPU, 1e-3) for cls in (train.Run, training["train_gpu"].DeviceRun)]
    loss, iou = train.train_step(runs[0], batch, True, 1.0)
    found, found_iou = train.batch_loss(runs[1], batch, True)
    train.update(runs[1], found, 1.0)
    assert (loss, iou) == (found.item() / 2, found_iou.item())
    for run in runs:
        run.step = 1
        run.update_average()
    for name in runs[0].average:
        torch.testing.assert_close(runs[0].average[name], runs[1].average[name], rtol=0, atol=0)


def test_a_state_is_split_into_small_files(training, pictures, tmp_path) -> None:
    train, module = training["train"], training["state_files"]
    batches = [sampler(training, pictures, batch=2).batch(number) for number in range(2)]
    run = training["train_gpu"].DeviceRun(tmp_path / "run", CPU, 1e-3)
    train.train_step(run, batches[0], False, 1.0)
    run.step, run.samples, run.seconds = 1, 2, 3.5
    run.update_average()
    run.save()
    files = sorted((tmp_path / "run").iterdir())
    assert [file.name for file in files] == [f"state_{number}.pt" for number in range(4)]
    assert max(file.stat().st_size for file in files) < 16 * 2**20
    assert sum(file.stat().st_size for file in files) < 60 * 2**20
    for cls in (train.Run, type(run)):
        resumed = cls(tmp_path / "run", CPU, 1e-3)
        assert (resumed.step, resumed.samples, resumed.seconds) == (1, 2, 3.5)
        for name, value in run.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], value)
            if name in run.average:
                assert torch.allclose(resumed.average[name], run.average[name], rtol=0, atol=2e-5)
        pairs = zip(run.optimizer.state.values(), resumed.optimizer.state.values(), strict=True)
        for moments, loaded in pairs:
            assert moments["step"] == loaded["step"]
            torch.testing.assert_close(loaded["exp_avg_sq"], moments["exp_avg_sq"], rtol=0.005, atol=1e-30)
        losses = [train.batch_loss(r, batches[1], False)[0].item() for r in (run, resumed)]
        assert losses[0] == losses[1]
    content = torch.load(files[1], weights_only=True)
    content["counters"]["step"] = 9
    torch.save(content, files[1])
    with pytest.raises(ValueError, match=r"of step 9, state_0\.pt of step 1"):
        module.load_state(tmp_path / "run")
    files[1].unlink()
    with pytest.raises(ValueError, match=r"state_1\.pt is missing: the state has 4 files"):
        module.load_state(tmp_path / "run")


def test_training_goes_on_without_a_compiler(training, pictures, tmp_path, monkeypatch, capsys) -> None:
    module = training["train_gpu"]

    def broken(*_: object, **__: object) -> object:
        def call(*_: object) -> None:
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    run = module.DeviceRun(tmp_path / "run", CPU, 1e-3)
    network = module.compile_network(run, {False: sampler(training, pictures)}, 0.1)
    assert network == module.Network()
    assert "RuntimeError: no compiler" in capsys.readouterr().out


def test_steps_are_shared_between_windows_and_frames(training) -> None:
    is_frame_step = training["train_gpu"].is_frame_step
    for share, expected in ((0, 0), (0.25, 25), (0.7, 70), (1, 100)):
        assert sum(is_frame_step(step, share) for step in range(100)) == expected


def test_a_run_resumes_after_an_interruption(training, pack_file, tmp_path, monkeypatch) -> None:
    module = training["train_gpu"]
    (tmp_path / "log").mkdir()
    (tmp_path / "held_back.json").write_text(json.dumps({"scenes": [0]}))
    (tmp_path / "log" / "curve.csv").write_text("step,samples,hours\n9,72,0.5\n")
    weights = Path(module.HERE).parent / "src" / "saqsam" / "models" / "sam_mini"
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "LOG_EVERY", 1)
    out = tmp_path / "run"
    options = f"--packs {pack_file} --out {out} --from {weights} --device cpu --window 64 --batch 2 --prompts 2 --decay"
    options += " --frames 0 --save-every 0 --minutes"
    monkeypatch.setattr("sys.argv", ["train_gpu.py", *options.split(), "5"])
    average = module.DeviceRun.update_average

    def interrupted(run) -> None:
        if run.step == 11:
            raise KeyboardInterrupt
        average(run)

    monkeypatch.setattr(module.DeviceRun, "update_average", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.main()
    monkeypatch.setattr(module.DeviceRun, "update_average", average)
    assert training["state_files"].load_state(out)["step"] == 10
    monkeypatch.setattr("sys.argv", ["train_gpu.py", *options.split(), "0.005"])
    module.main()

    def rows(name: str) -> list[dict[str, str]]:
        with (out / name).open(newline="") as file:
            return list(csv.DictReader(file))

    steps = [int(row["step"]) for row in rows("log.csv")]
    assert steps[:2] == [10, 11]
    assert steps[1:] == list(range(11, 11 + len(steps) - 1))
    curve = rows("curve.csv")
    assert [int(row["step"]) for row in curve] == [9, 10, steps[-1]]
    assert float(curve[0]["scenes_box"]) > 0.5
    assert {row["prompt"] for row in rows("sizes.csv")} == {"box", "point"}
    assert training["state_files"].load_state(out)["samples"] == 72 + 2 * (steps[-1] - 9)


def test_nothing_is_evaluated_every_zero_minutes(training, pack_file, tmp_path, monkeypatch) -> None:
    module, out = training["train_gpu"], tmp_path / "run"
    monkeypatch.setattr(module, "evaluate", pytest.fail)
    options = f"--packs {pack_file} --out {out} --device cpu --window 64 --batch 1 --prompts 1 --frames 0"
    options += " --minutes 0.001 --evaluate-every 0"
    monkeypatch.setattr("sys.argv", ["train_gpu.py", *options.split()])
    module.main()
    assert training["state_files"].load_state(out)["step"] > 0
    assert not {"curve.csv", "sizes.csv"} & {path.name for path in out.iterdir()}


def test_sizes_are_scored_by_class(training) -> None:
    module = training["evaluation"]
    scores = [module.Score("a", "box", iou, fill, size) for iou, fill, size in ((0.2, 0.5, 6), (0.4, 0.7, 3))]
    scores.append(module.Score("a", "box", 0.9, 0.8, 100))
    assert module.mean_iou(scores) == {"a_box": 0.5}
    rows = module.iou_by_size(scores)
    assert [(row["size_up_to"], row["objects"], row["iou"], row["box_fill"]) for row in rows] == [
        (6, 2, 0.3, 0.6), (math.inf, 1, 0.9, 0.8),
    ]  # fmt: skip


def test_parts_of_a_pack_cover_each_picture_once(training) -> None:
    selected = training["pack"].selected
    dataset = SimpleNamespace(image_ids=tuple(range(10, 20)))
    parts = [selected(dataset, {12, 15}, "training", f"{number}/3") for number in (1, 2, 3)]
    assert sorted(itertools.chain(*parts)) == [0, 1, 3, 4, 6, 7, 8, 9]
    assert selected(dataset, {12, 15}, "held-back", "1/1") == [2, 5]
    assert selected(dataset, {12}, None, "2/2") == [1, 3, 5, 7, 9]
    with pytest.raises(ValueError, match="1 <= I <= N"):
        selected(dataset, {12}, None, "3/2")


def test_a_pack_holds_jpeg_or_webp(training, tmp_path) -> None:
    scene = ScenesDataset(count=1, seed=5)
    sizes, pictures = [], []
    for image_format in ("jpeg", "webp"):
        arrays = training["pack"].pack(training["pack"].read(scene, "scenes"), 256, 75, image_format)
        np.savez(tmp_path / "pack.npz", **arrays)
        pictures.append(training["samples"].Pack(tmp_path / "pack.npz", {}).read(0).astype(int))
        sizes.append(len(arrays["jpeg"]))
    assert sizes[1] < sizes[0]
    assert np.abs(pictures[0] - pictures[1]).mean() < 8
