"""The training of sam-mini and sam2-mini goes on where it stopped, and starts from exported weights."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import SamModel

import saqsam
from saqsam.data.scenes.dataset import ScenesDataset
from support.script_modules import scripts

MODULES = (
    "train",
    "losses",
    "trainees",
    "sam2_mini",
    "export",
    "evaluation",
    "forward",
    "samples",
    "pack",
    "widen",
)


@pytest.fixture(scope="module")
def training() -> Iterator[dict[str, ModuleType]]:
    with scripts("training", MODULES) as found:
        yield found


@pytest.fixture(scope="module")
def pack(training, tmp_path_factory):
    """Three packed scenes."""
    path = tmp_path_factory.mktemp("packs") / "scenes.npz"
    read = training["pack"].read(ScenesDataset(count=3, seed=5), "scenes")
    np.savez(path, **training["pack"].pack(itertools.chain(read), 256, 80))
    return training["samples"].Pack(path, {})


@pytest.fixture(scope="module")
def samples(training, pack):
    """Windows of 64 px."""
    spec = training["samples"].SampleSpec(64, 256, 2, {"scenes": 1.0})
    return training["samples"].SampleSet([pack], spec, seed=1, length=100)


@pytest.fixture(scope="module")
def stretched_samples(training, pack):
    """Windows of 128 px as sam2-mini sees them."""
    spec = training["samples"].SampleSpec(128, 512, 2, {"scenes": 1.0}, canvas="stretch", mask_stride=4)
    return training["samples"].SampleSet([pack], spec, seed=1, length=100)


@pytest.fixture(scope="module")
def teacher(training):
    """sam-mini in float32."""
    folder = training["train"].HERE.parent / "src" / "saqsam" / "models" / "sam_mini"
    return SamModel.from_pretrained(folder, dtype=torch.float32).eval()


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


def test_small_objects_are_favored(training, pack) -> None:
    module = training["samples"]
    shares = []
    for small in (0.0, 1.0):
        spec = module.SampleSpec(128, 256, 3, {"scenes": 1.0}, small=small)
        samples = module.SampleSet([pack], spec, seed=1, length=100)
        covered = batch(samples, *range(24))["targets"].float().sum((2, 3)) / 255
        shares.append((4 * covered <= 12**2).float().mean().item())
    assert shares[1] > shares[0] + 0.15


def test_packs_of_one_source_are_joined(training, pack) -> None:
    """Pictures of both packs are seen, and pasted, and their small objects are favored."""
    module = training["samples"]
    first, second = (module.Pack.__new__(module.Pack) for _ in range(2))
    for part, numbers in ((first, [0]), (second, [1, 2])):
        part.__dict__.update(pack.__dict__)
        part.images_of = {"scenes": np.array(numbers)}
    spec = module.SampleSpec(64, 256, 2, {"scenes": 1.0}, small=0.5)
    joined = module.SampleSet([first, second], spec, seed=1, length=10)
    rng = np.random.default_rng(0)
    choices = [joined._pick(rng, "scenes") for _ in range(60)]
    seen = {(id(choice.pack), choice.number) for choice in choices if choice.limit == 0}
    assert seen == {(id(first), 0), (id(second), 1), (id(second), 2)}
    assert {id(choice.pack) for choice in choices if choice.limit > 0} == {id(first), id(second)}
    read = []
    for part in (first, second):
        part.read = lambda number: read.append(number) or pack.read(number)
    for _ in range(20):
        joined._paste(rng, np.zeros((64, 64, 3), np.uint8), [], (64, 64))
    assert set(read) == {0, 1, 2}


def test_a_pack_without_pictures_of_a_source_changes_no_sample(training, pack, samples) -> None:
    module = training["samples"]
    empty = module.Pack.__new__(module.Pack)
    empty.__dict__.update(pack.__dict__)
    empty.images_of = {"scenes": np.array([], int)}
    joined = module.SampleSet([empty, pack], samples.spec, seed=1, length=100)
    assert all(torch.equal(value, joined[3][name]) for name, value in samples[3].items())
    with_small = dataclasses.replace(samples.spec, small=1.0)
    assert module.SampleSet([empty, pack], with_small, seed=1, length=100)[3]["pixels"].shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--model sam2-mini",
            "--model sam2-mini starts and learns from a sam-mini: pass its folder as --teacher",
        ),
        ("--model sam2-mini --embedding-only", "pass its folder as --teacher"),
        ("--embedding-only", "expected --model sam2-mini"),
        ("--teacher-weight 1", "expected --model sam2-mini"),
        ("--teacher sam", "expected --model sam2-mini"),
    ],
)
def test_options_without_a_teacher_are_refused(training, capsys, options: str, message: str) -> None:
    with pytest.raises(SystemExit):
        training["train"].parse_arguments(["--packs", "p", "--out", "o", "--minutes", "1", *options.split()])
    assert message in capsys.readouterr().err


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
    truth = training["losses"].Truth(
        covered[None], torch.from_numpy(region)[None] / 2, torch.from_numpy(samples)[None].float() / 255
    )
    y, x = torch.meshgrid(*[(torch.arange(cells) + 0.5) * 2 * fine - 0.5] * 2, indexing="ij")
    logits = (12 - ((x - 30) ** 2 + (y - 26) ** 2).sqrt())[None, None]
    found = truth.sample(logits) > 0
    assert (found == (truth.samples > 0.5)).float().mean() > 0.97
    assert training["losses"].true_iou(logits, truth).item() > 0.93
    far = logits.clone()
    far[..., 0, 0] = 9.0  # a cell beyond the region counts with its area
    share = float(training["losses"].true_iou(logits, truth) / training["losses"].true_iou(far, truth))
    assert share == pytest.approx(1 + 1 / (np.count_nonzero(mask) / (2 * fine) ** 2), rel=0.05)
    losses = training["losses"].mask_loss(torch.cat([logits, far, -logits], 1), truth, balance=0.0)[0]
    assert losses[0] < losses[1] < losses[2]


def sam2_mini(training, teacher):
    torch.manual_seed(0)
    model = training["trainees"].SAM2_MINI.build()
    training["sam2_mini"].initialize(model, teacher)
    return model.eval()


@torch.inference_mode()
def test_the_training_of_sam2_mini_computes_what_transformers_does(training, teacher) -> None:
    module, model = training["sam2_mini"], sam2_mini(training, teacher)
    assert sum(parameter.numel() for parameter in model.parameters()) < 8e6
    for conv in (model.mask_decoder.conv_s0, model.mask_decoder.conv_s1):
        torch.nn.init.normal_(conv.weight, std=0.1)
    model.no_memory_embedding.normal_()
    pixels = torch.randn(1, 3, module.FRAME, module.FRAME)
    box = torch.tensor([[[30.0, 40, 200, 300], [5, 7, 90, 60]]])
    expected = model(pixel_values=pixels, input_boxes=box, multimask_output=True)
    sparse = module.embed_prompts(model, box.reshape(1, 2, 2, 2), torch.tensor([[[2, 3], [2, 3]]]))
    positions = model.get_image_wide_positional_embeddings()
    features = module.encode(module.prepare(model), pixels, 0, 0)
    logits, ious = module.decode(model, features, positions, sparse, None)
    torch.testing.assert_close(logits[:, :, 1:], expected.pred_masks, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ious[:, :, 1:], expected.iou_scores)


@torch.inference_mode()
def test_the_first_decoder_of_sam2_mini_is_sam_minis(training, teacher) -> None:
    """Without the object token, which is new, masks are equal; the IoU keeps its order and its middle."""
    model = sam2_mini(training, teacher)
    features = torch.randn(1, 256, 32, 32), torch.zeros(1, 32, 128, 128), torch.zeros(1, 64, 64, 64)
    sparse = torch.randn(1, 1, 3, 256)
    positions = teacher.get_image_wide_positional_embeddings()
    torch.testing.assert_close(model.get_image_wide_positional_embeddings(), positions)
    expected, scores = training["forward"].decode(teacher, features[0], positions, sparse, None)
    tokens = training["sam2_mini"].FAMILY.output_tokens(model)
    logits, ious = training["sam2_mini"].decode(model, features, positions, sparse, None)
    assert tokens.shape == (6, 256)
    assert logits.shape == expected.shape
    assert torch.corrcoef(torch.stack([logits.flatten(), expected.flatten()]))[0, 1] > 0.95
    torch.testing.assert_close(ious, (4 * scores - 2).sigmoid(), atol=0.2, rtol=0.0)


def test_a_window_of_sam2_mini_has_the_positions_of_its_place(training, teacher) -> None:
    module, model = training["sam2_mini"], sam2_mini(training, teacher)
    blocks = model.vision_encoder.backbone.blocks
    seen = []
    handle = blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.randn(1, 3, module.FRAME, module.FRAME)
    window = pixels[:, :, 64:192, 32:160]
    with torch.inference_mode():
        module.encode(model, pixels, 0, 0)
        module.encode(model, window, 4, 2)
    handle.remove()
    inner = seen[1][:, 1:-1, 1:-1]  # the border's patches reach beyond the window
    torch.testing.assert_close(inner, seen[0][:, 17:47, 9:39])


def test_a_stretched_picture_fills_the_frame(training, pack) -> None:
    """Turned or not, a picture of another aspect is placed as SAM 2's processor places it."""
    module = training["samples"]
    spec = module.SampleSpec(512, 512, 1, {"scenes": 1.0}, whole=1.0, canvas="stretch", mask_stride=4)
    wide = module.Pack.__new__(module.Pack)
    wide.__dict__.update(pack.__dict__)
    wide.image = pack.image.copy()
    wide.image[:, 0] //= 2  # twice as wide as high
    samples = module.SampleSet([wide], spec, seed=0, length=10)
    height, width = wide.image[0, :2]
    for draw in range(8):
        choice = module.Choice(wide, 0, wide.instances_of[0])
        matrix, content = samples._placement(np.random.default_rng(draw), choice, "scenes")
        corners = matrix[:, :2] @ np.array([[0, width, 0, width], [0, 0, height, height]]) + matrix[:, 2:]
        assert content == (512, 512)
        assert corners.min() == pytest.approx(0, abs=1e-6)
        assert corners.max() == pytest.approx(512, abs=1e-6)
        assert np.abs(np.linalg.det(matrix[:, :2])) == pytest.approx(512**2 / (width * height))


def test_a_click_lies_in_the_middle_of_a_wrong_cell(training) -> None:
    logits, target = torch.full((1, 8, 8), -1.0), torch.zeros(1, 8, 8)
    target[0, 3, 5] = 1
    coords, labels = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, dtype=torch.long)
    for side in (2.0, 4.0):
        points, signs, _ = training["losses"].corrected_prompts(logits, target, coords, labels, side)
        assert points[0, 0, 1].tolist() == [5.5 * side - 0.5, 3.5 * side - 0.5]
        assert signs[0, 0].tolist() == [1, 1]


def test_sam2_mini_learns_resumes_and_is_exported(
    training, teacher, stretched_samples, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, trainee = training["train"], training["trainees"].SAM2_MINI
    run = train.Run(tmp_path / "run", torch.device("cpu"), 1e-4, trainee, teacher)
    one = batch(stretched_samples, 0)
    assert one["targets"].shape == (1, 2, 32, 32)
    before, _ = train.embedding_step(run, one, 1.0)
    for _ in range(3):
        after, _ = train.embedding_step(run, one, 1.0)
    assert after < 0.8 * before
    run.step, run.samples = 4, 4
    run.update_average()
    run.save()
    resumed = train.Run(tmp_path / "run", torch.device("cpu"), 1e-4, trainee, teacher)
    assert (resumed.step, resumed.samples) == (4, 4)
    losses = [train.train_step(r, one, True, 1.0, 0.5) for r in (run, resumed)]
    assert losses[0] == losses[1]
    monkeypatch.setattr(
        "sys.argv", ["export.py", str(run.folder), str(tmp_path / "out"), "--model", "sam2-mini"]
    )
    training["export"].main()
    model, processor = saqsam.load(tmp_path / "out")
    again = train.Run(tmp_path / "again", torch.device("cpu"), 1e-4, trainee, teacher)
    again.start_from(tmp_path / "out", None)
    assert again.step == 0
    assert all(torch.equal(value, again.state()["model"][name]) for name, value in model.state_dict().items())
    assert model.config.model_type == "sam2"
    assert processor.image_processor.size["height"] == 512
    weights, averaged = model.state_dict(), resumed.averaged_model().state_dict()
    assert all(torch.equal(weights[name], value.half().float()) for name, value in averaged.items())


def test_held_back_pictures_are_placed_as_the_processor_places_them(training, teacher, pack) -> None:
    packs = [pack]
    scores = training["evaluation"].held_back_scores(sam2_mini(training, teacher), packs, 2, canvas="stretch")
    same = training["evaluation"].held_back_scores(teacher, packs, 2)
    assert len(scores) == len(same) > 4
    assert [score.box_fill for score in scores] == [score.box_fill for score in same]
    height, width = pack.image[0, :2]
    stretch = max(height, width) / (height * width) ** 0.5
    ratios = [score.size / other.size for score, other in zip(scores[:4], same, strict=False)]
    assert ratios == pytest.approx([2 * stretch] * 4)
