"""Reconstruction: what is learned, what it is compared by, and that nothing temporary stays behind."""

import copy
import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import SamModel

import saqsam.ptq.learning
from saqsam.convert.pack import round_float_parameters, round_weight
from saqsam.convert.prepare import fill_slots, prepare
from saqsam.inference.backend import TorchBackend
from saqsam.models.family import flatten_image
from saqsam.models.sam.family import SamFamily
from saqsam.ptq import reconstruction
from saqsam.ptq.calibration import calibrate
from saqsam.ptq.calibration_images import CalibrationImages, choose_calibration_images
from saqsam.ptq.log import UnitLog
from saqsam.ptq.losses import mask_error
from saqsam.ptq.pipeline import prepare_equalized
from saqsam.ptq.relaxation import relaxed
from saqsam.ptq.resume import FinishedSteps
from saqsam.ptq.states import PromptTokens
from saqsam.ptq.tensor_store import MemoryBudget
from saqsam.ptq.unit_parameters import UnitParameters, unit_parameters
from saqsam.ptq.units import EncoderUnit, JointUnit, reconstruction_units
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import PackedTensor
from saqsam.quant.learned import RandomDrop
from saqsam.quant.logarithmic import LogQuantizer
from saqsam.recipes.methods import METHODS
from saqsam.recipes.recipe import Recipe, Reconstruction
from support.tiny_quantized import quantize_tiny, tiny_data, tiny_plan, tiny_recipe
from support.tiny_sam import tiny_processor, tiny_sam

FAMILY = SamFamily()
LEARNED = [name for name, function in METHODS.items() if function(4, 4).reconstruction is not None]


def reconstruct(*arguments: Any, memory: int, **options: Any) -> list[UnitLog]:
    """Learn all units with a memory budget of their own."""
    with MemoryBudget(memory) as budget:
        return reconstruction.reconstruct(*arguments, budget, **options)


def learned_recipe(method: str = "saq-sam", bits: str = "w3a4", **changes: object) -> Recipe:
    recipe = tiny_recipe(method, bits)
    assert recipe.reconstruction is not None
    few = {"steps": 4, "final_steps": 1, "prompts": 2, "rounding_rate": 0.05, **changes}
    return dataclasses.replace(recipe, reconstruction=dataclasses.replace(recipe.reconstruction, **few))


def calibrated(recipe: Recipe) -> tuple[SamModel, SamModel, CalibrationImages]:
    """Model, its float reference, and images."""
    model = tiny_sam()
    images = choose_calibration_images(model, tiny_processor(), tiny_data(), recipe.calibration)
    prepare(model, tiny_plan(recipe))
    reference = copy.deepcopy(model)
    fill_slots(model, tiny_plan(recipe), calibrate(model, tiny_plan(recipe), images))
    return model, reference, images


def first_state(model: SamModel, images: CalibrationImages) -> tuple[tuple[Tensor, ...], PromptTokens]:
    pixels, boxes = max((images[i] for i in range(len(images))), key=lambda pair: len(pair[1]))
    assert boxes.boxes is not None
    tokens, dense = FAMILY.embed_boxes(model, boxes.boxes)
    prompts = PromptTokens(tokens, flatten_image(dense), FAMILY.image_positions(model))
    return FAMILY.embed_patches(model, pixels), prompts


def units(**changes: object) -> list:
    recipe = dataclasses.replace(tiny_recipe("saq-sam"), reconstruction=Reconstruction(**changes))
    return reconstruction_units(tiny_plan(recipe))


# ---- units


def test_units_cover_every_quantized_layer_and_slot_once() -> None:
    recipe = tiny_recipe("saq-sam")
    for unit in ("stage", "block"):
        parts = [unit_parameters(u, tiny_sam(), tiny_plan(recipe)) for u in units(unit=unit)]
        layers = [site.name for part in parts for site, _ in part.layers]
        slots = [slot for part in parts for slot in part.slots]
        assert sorted(layers) == sorted(site.name for site, _ in tiny_plan(recipe).weights)
        assert sorted(slots) == sorted(slot.name for slot in tiny_plan(recipe).slots)


def test_stages_end_at_global_attention() -> None:
    assert [u.name for u in units()] == [
        "encoder stage 1",
        "encoder stage 2",
        "neck",
        "decoder layer 1",
        "decoder layer 2",
        "final attention",
    ]
    assert [list(u.blocks) for u in units()[:2]] == [[0, 1], [2, 3]]
    assert [list(u.blocks) for u in units(unit="block")[:4]] == [[0], [1], [2], [3]]
    counted = units(encoder_steps=0.2, final_steps=7)
    assert [u.relative_steps for u in counted] == [0.2, 0.2, 0.2, 1, 1, 7]


@torch.no_grad()
def test_running_all_units_gives_the_model_s_own_transformer() -> None:
    model, _, images = calibrated(tiny_recipe("saq-sam"))
    state, prompts = first_state(model, images)
    seen = {}
    final = model.mask_decoder.transformer.final_attn_token_to_image
    handle = final.register_forward_hook(lambda _m, _a, out: seen.update(out=out[0]))
    pixels, boxes = max((images[i] for i in range(len(images))), key=lambda pair: len(pair[1]))
    assert boxes.boxes is not None
    model(pixel_values=pixels, input_boxes=boxes.boxes[None], multimask_output=False)
    handle.remove()
    for unit in units():
        state = unit.run(model, state, prompts)
    torch.testing.assert_close(state[0].flatten(0, 1), seen["out"].flatten(0, 1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_layer_skipping_leaves_out_the_later_blocks_alone() -> None:
    _, reference, images = calibrated(tiny_recipe("saq-sam"))
    state, prompts = first_state(reference, images)
    skipping, running = units()[0], units(skip_layers=False)[0]
    direct = skipping.response(reference, reference, state, prompts)[0]
    whole = running.response(reference, reference, state, prompts)[0]
    broken = copy.deepcopy(reference)
    broken.vision_encoder.layers[3].mlp.lin2.weight.zero_()
    assert torch.equal(skipping.response(broken, broken, state, prompts)[0], direct)
    assert not torch.equal(running.response(broken, broken, state, prompts)[0], whole)
    # Without skipping, the response of the first unit is that of the last one to the float prefix.
    (after,) = skipping.run(reference, state, prompts)
    torch.testing.assert_close(units()[1].response(reference, reference, (after,), prompts)[0], whole)


@torch.no_grad()
def test_the_prompt_decides_about_the_response() -> None:
    _, reference, images = calibrated(tiny_recipe("saq-sam"))
    state, prompts = first_state(reference, images)
    assert len(prompts.tokens) > 1
    (image,) = units()[0].response(reference, reference, state, prompts)
    assert image.shape == (len(prompts.tokens), 1, 64, 32)
    assert not torch.equal(image[0], image[1])
    (alone,) = units()[0].response(reference, reference, state, prompts[torch.tensor([1])])
    torch.testing.assert_close(alone[0], image[1])
    (own,) = units(loss="output")[0].response(reference, reference, state, prompts)
    assert own.shape == (1, 8, 8, 32)


def test_the_loss_is_summed_over_channels_and_averaged_over_the_rest() -> None:
    unit = units()[0]
    found, target = torch.zeros(2, 1, 64, 32), torch.zeros(2, 1, 64, 32)
    found[0, 0, 5] = 2.0
    assert float(unit.error((found,), (target,))) == pytest.approx(32 * 4 / 128)
    layer = next(u for u in units(token_weight=0.01) if u.name == "decoder layer 1")
    tokens, one = torch.zeros(2, 1, 7, 32), torch.ones(2, 1, 7, 32)
    assert float(layer.error((one, target, tokens), (tokens, target, tokens))) == pytest.approx(0.32)
    assert float(layer.error((tokens, target, one), (tokens, target, tokens))) == pytest.approx(32.0)
    assert float(layer.error((tokens, found, tokens), (tokens, target, tokens))) == pytest.approx(1.0)


# ---- learning


@torch.no_grad()
def test_with_the_mask_loss_every_unit_answers_the_model_s_own_masks() -> None:
    _, reference, images = calibrated(tiny_recipe("saq-sam"))
    state, prompts = first_state(reference, images)
    backend = TorchBackend(reference)
    pixels, boxes = max((images[i] for i in range(len(images))), key=lambda pair: len(pair[1]))
    masks, ious = backend.decode(backend.encode(pixels), boxes, multimask_output=False)
    for unit in units(loss="mask", skip_layers=False):
        answer = unit.response(reference, reference, state, prompts)
        torch.testing.assert_close(answer[0][:, :1], masks, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(answer[1][:, :1], ious, rtol=1e-4, atol=1e-4)
        assert float(unit.error(answer, answer)) == pytest.approx(0, abs=1e-6)
        state = unit.run(reference, state, prompts)


def test_the_mask_error_counts_pixels_that_could_go_either_way() -> None:
    target = (torch.tensor([[[[0.0, 8.0]]]]), torch.tensor([[0.5]]))
    undecided = (torch.tensor([[[[2.0, 8.0]]]]), torch.tensor([[0.5]]))
    decided = (torch.tensor([[[[0.0, 10.0]]]]), torch.tensor([[0.5]]))
    assert float(mask_error(undecided, target)) > 100 * float(mask_error(decided, target)) > 0
    probability = torch.tensor(2.0).sigmoid()
    divergence = -0.5 * (torch.log(2 * probability) + torch.log(2 * (1 - probability)))
    inside = torch.tensor(8.0).sigmoid()
    common, both = probability / 2 + inside**2, probability**2 + 0.25 + 2 * inside**2
    expected = float(divergence / 2 + 1 - 2 * common / both)
    assert float(mask_error(undecided, target)) == pytest.approx(expected, rel=1e-4)
    other_iou = (target[0], torch.tensor([[0.8]]))
    assert float(mask_error(other_iou, target)) == pytest.approx(0.09, rel=1e-4)


def test_the_mask_error_of_a_small_object_weighs_as_much_as_that_of_a_large_one() -> None:
    def missed(side: int) -> float:
        wanted = torch.full((1, 1, 64, 64), -20.0)
        wanted[..., :side, :side] = 20.0
        found = wanted.clone()
        found[..., : side // 2, :side] = -2.0  # one half is not seen
        return float(mask_error((found, torch.ones(1, 1)), (wanted, torch.ones(1, 1))))

    assert missed(4) > 0.2
    assert missed(32) < 3 * missed(4)


@torch.no_grad()
def test_the_joint_unit_reads_the_embedding_and_answers_the_masks() -> None:
    _, reference, images = calibrated(tiny_recipe("saq-sam"))
    pixels, boxes = max((images[i] for i in range(len(images))), key=lambda pair: len(pair[1]))
    _, prompts = first_state(reference, images)
    unit = units(joint_steps=3)[-1]
    assert isinstance(unit, JointUnit)
    assert unit.relative_steps == 3
    backend = TorchBackend(reference)
    encoded = backend.encode(pixels)
    masks, ious = backend.decode(encoded, boxes, multimask_output=False)
    embedding = flatten_image(encoded.embedding)
    found = unit.response(reference, reference, (embedding,), prompts)
    torch.testing.assert_close(found[0][:, :1], masks, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1][:, :1], ious, rtol=1e-4, atol=1e-4)


def gradient_of_masks(recipe: Recipe) -> Tensor:
    """Return the gradient of the joint unit's loss for the biases and normalizations of the two-way transformer."""
    model, reference, images = calibrated(recipe)
    _, prompts = first_state(reference, images)
    plan = tiny_plan(recipe)
    unit = JointUnit(plan, relative_steps=1)
    names = [
        name for name, p in model.named_parameters() if name.startswith(unit.modules[0]) and p.dim() == 1
    ]
    slots = tuple(slot.name for slot in plan.slots if slot.name.startswith(unit.modules[0]))
    parts = UnitParameters((), slots, tuple(names), passed_slots=unit.passed_slots)
    embedding = flatten_image(TorchBackend(reference).encode(images[0][0]).embedding).detach()
    before = kinds(model)
    with torch.no_grad():  # far from the response, so that rounding errors do not decide about the gradient
        target = tuple(map(torch.zeros_like, unit.response(reference, reference, (embedding,), prompts)))
    with relaxed(model, parts, recipe, 0.0, torch.Generator()) as learned:
        unit.error(unit.response(model, reference, (embedding,), prompts), target).backward()
        found = torch.cat([learned.float_parameters[name].grad.flatten() for name in names])
    assert kinds(model) == before
    return found


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_joint_unit_learns_through_a_quantized_mask_head(dynamic: bool) -> None:
    """Rounding has no useful gradient: the head's static quantizers stopped it, its dynamic ones misdirected it."""
    head = {"upscaling": 8, "hypernetworks": 8, "iou_head": 8}
    recipe = dataclasses.replace(learned_recipe(bits="w8a8", affine=True), clipping=None)
    activations = dataclasses.replace(recipe.activations, dynamic=dynamic)
    products = "float" if dynamic else "quantized"
    recipe = dataclasses.replace(
        recipe, activations=activations, bimodal=False, encoder_products=products, decoder_products=products
    )
    wanted = gradient_of_masks(recipe)
    found = gradient_of_masks(dataclasses.replace(recipe, extra=head))
    assert torch.cosine_similarity(found, wanted, dim=0) > 0.9
    assert 0.8 < found.norm() / wanted.norm() < 1.25


@pytest.mark.slow
def test_the_joint_unit_brings_the_masks_nearer_to_float_and_leaves_the_codes() -> None:
    few = {"steps": 2, "scale_rate": 0.01, "affine_rate": 3e-3, "affine": True}
    kept = {}
    for joint_steps in (0, 60):
        recipe = learned_recipe(bits="w4a4", joint_steps=joint_steps, **few)
        kept[joint_steps] = quantize_tiny(recipe)
    before, after = kept[0], kept[60]
    original = tiny_sam()
    images = choose_calibration_images(original, tiny_processor(), tiny_data(), recipe.calibration)
    errors = []
    for model in (before, after):
        total = 0.0
        for index in range(len(images)):
            pixels, boxes = images[index]
            backends = TorchBackend(model), TorchBackend(original)
            with torch.no_grad():
                answers = [b.decode(b.encode(pixels), boxes, multimask_output=True) for b in backends]
                total += float(mask_error(*answers))
        errors.append(total)
    assert errors[1] < 0.9 * errors[0]
    for site, _ in tiny_plan(recipe).weights:
        codes = [model.get_submodule(f"{site.name}.weight").unpack() for model in (before, after)]
        assert torch.equal(*codes)


def test_biases_and_normalizations_are_learned_as_float16_or_left_as_they_were() -> None:
    recipe = learned_recipe(affine=True)
    model, _, _ = calibrated(recipe)
    parts = unit_parameters(units()[0], model, tiny_plan(recipe))
    assert "vision_encoder.layers.0.layer_norm1.weight" in parts.float_parameters
    assert "vision_encoder.layers.1.attn.qkv.bias" in parts.float_parameters
    assert not any("rel_pos" in name or "layers.2." in name for name in parts.float_parameters)
    name = parts.float_parameters[0]
    before = model.get_parameter(name).clone()
    with pytest.raises(ZeroDivisionError), relaxed(model, parts, recipe, 0.5, torch.Generator()):  # noqa: PT012
        with torch.no_grad():
            model.get_parameter(name).add_(0.1234567)
        raise ZeroDivisionError
    assert torch.equal(model.get_parameter(name), before)
    assert not model.get_parameter(name).requires_grad
    with torch.no_grad(), relaxed(model, parts, recipe, 0.5, torch.Generator()) as learned:
        assert learned.float_parameters.keys() == set(parts.float_parameters)
        learned.float_parameters[name].add_(0.1234567)
    after = model.get_parameter(name)
    assert torch.equal(after, (before + 0.1234567).half().float())
    assert not after.requires_grad


def kinds(model: nn.Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules()}


def test_a_unit_is_packed_after_learning_and_as_it_was_after_an_error() -> None:
    recipe = learned_recipe()
    model, _, _ = calibrated(recipe)
    parts = unit_parameters(units()[0], model, tiny_plan(recipe))
    before = kinds(model)
    with pytest.raises(ZeroDivisionError), relaxed(model, parts, recipe, 0.5, torch.Generator()):  # noqa: PT012
        assert any(isinstance(module, RandomDrop) for module in model.modules())
        raise ZeroDivisionError
    assert kinds(model) == before
    with relaxed(model, parts, recipe, 0.5, torch.Generator()) as learned:
        assert learned.roundings.keys() == {site.name for site, _ in parts.layers}
        assert learned.scales
    after = kinds(model)
    assert {after[site.name] for site, _ in parts.layers} == {"PackedLinear"}
    assert {after[slot] for slot in parts.slots} == {"AffineQuantizer", "LogQuantizer"}
    assert not any(isinstance(module, RandomDrop) for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("method", [*LEARNED, "saq-sam with masks"])
def test_every_weight_is_one_of_its_two_neighbors_on_a_grid_of_b_bits(method: str) -> None:
    name, _, with_masks = method.partition(" ")
    recipe = learned_recipe(
        name, decoder_steps=1.0, encoder_steps=1.0, **({"loss": "mask"} if with_masks else {})
    )
    # Compensation changes the weights that rounding starts from.
    recipe = dataclasses.replace(recipe, compensation=None)
    quantized = quantize_tiny(recipe)
    original = tiny_sam()
    if recipe.equalized:
        round_float_parameters(original, tiny_plan(recipe))
        images = choose_calibration_images(original, tiny_processor(), tiny_data(), recipe.calibration)
        prepare_equalized(original, tiny_plan(recipe), images)
    moved = 0
    for site, bits in tiny_plan(recipe).weights:
        packed = quantized.get_submodule(f"{site.name}.weight")
        assert isinstance(packed, PackedTensor)
        codes = packed.unpack()
        channels = codes.movedim(packed.axis, 0).flatten(1)
        assert max(len(row.unique()) for row in channels) <= 2**bits == 8
        layer = original.get_submodule(site.name)
        nearest = round_weight(layer, bits, recipe)
        # Learned at the end, jointly, with codes that stay.
        is_learned = bool(recipe.reconstruction.joint_steps) and site.part.startswith("decoder")
        assert torch.equal(nearest.scale, packed.scale) != is_learned, site.name
        assert (codes.int() - nearest.unpack().int()).abs().max() <= 1
        moved += int((codes != nearest.unpack()).sum())
    assert moved > 0
    allowed = {"AffineQuantizer", "DynamicQuantizer", "LogQuantizer", "TableQuantizer"}
    assert {type(quantized.get_submodule(s.name)).__name__ for s in tiny_plan(recipe).slots} <= allowed


def response_error(
    model: SamModel, reference: SamModel, images: CalibrationImages, unit: EncoderUnit
) -> float:
    state, prompts = first_state(reference, images)
    with torch.no_grad():
        target = unit.response(reference, reference, state, prompts)
        return float(unit.error(unit.response(model, reference, state, prompts), target))


@pytest.mark.slow
def test_learning_answers_prompts_better_than_rounding_to_nearest() -> None:
    recipe = learned_recipe(bits="w3a8", steps=80, drop=0.5, warmup=0.1)
    model, reference, images = calibrated(recipe)
    nearest = copy.deepcopy(model)
    for site, bits in tiny_plan(recipe).weights:
        if site.name.startswith("vision_encoder.layers"):
            layer = nearest.get_submodule(site.name)
            layer.weight.data = round_weight(layer, bits, recipe)()
    reconstruct(model, reference, tiny_plan(recipe), images, memory=2**30)
    unit = units()[0]
    assert response_error(model, reference, images, unit) < 0.75 * response_error(
        nearest, reference, images, unit
    )


def test_scales_are_learned_only_if_wanted_and_zero_points_never() -> None:
    for scales in (True, False):
        recipe = learned_recipe("qdrop", scales=scales)
        model, reference, images = calibrated(recipe)
        before = {s.name: copy.deepcopy(model.get_submodule(s.name)) for s in tiny_plan(recipe).slots}
        reconstruct(model, reference, tiny_plan(recipe), images, memory=2**30)
        changed = 0
        for name, old in before.items():
            new = model.get_submodule(name)
            assert isinstance(old, AffineQuantizer)
            assert isinstance(new, AffineQuantizer)
            assert torch.equal(new.zero_point, old.zero_point)
            changed += not torch.equal(new.scale, old.scale)
        assert changed > 0.9 * len(before) if scales else changed == 0


def test_logarithmic_probabilities_keep_what_calibration_chose() -> None:
    recipe = learned_recipe("saq-sam")
    model, reference, images = calibrated(recipe)
    before = {
        n: copy.deepcopy(m.state_dict()) for n, m in model.named_modules() if isinstance(m, LogQuantizer)
    }
    assert len(before) == len(tiny_plan(recipe).structure.attentions)
    reconstruct(model, reference, tiny_plan(recipe), images, memory=2**30)
    for name, state in before.items():
        after = model.get_submodule(name).state_dict()
        assert all(torch.equal(after[key], state[key]) for key in state)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["quantized", "float"])
def test_two_runs_are_equal_and_the_memory_budget_changes_nothing(target: str) -> None:
    recipe = learned_recipe(target=target)
    states = []
    for memory in (2**30, 2**30, 150_000):
        model, reference, images = calibrated(recipe)
        logs = reconstruct(model, reference, tiny_plan(recipe), images, memory=memory)
        states.append((model.state_dict(), [log.losses for log in logs]))
    for state, losses in states[1:]:
        assert losses == states[0][1]
        assert all(torch.equal(state[key], states[0][0][key]) for key in state)


def test_too_little_memory_for_one_image_is_said() -> None:
    recipe = learned_recipe()
    model, reference, images = calibrated(recipe)
    with pytest.raises(
        ValueError, match=r"memory of 0\.0 MiB is too little for .*: one image needs 0\.\d MiB"
    ):
        reconstruct(model, reference, tiny_plan(recipe), images, memory=100)


def test_a_loss_that_is_not_finite_stops_with_the_unit_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = learned_recipe(steps=8)
    saved = []
    original = EncoderUnit.error

    def error(self: EncoderUnit, found: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
        value = original(self, found, target)
        return value * float("nan") if self.name == "encoder stage 2" else value

    class Recorder(FinishedSteps):
        def save_unit(self, number: int, log: UnitLog, model: SamModel, parameters: UnitParameters) -> None:
            saved.append(log.unit)

    monkeypatch.setattr(EncoderUnit, "error", error)
    model, reference, images = calibrated(recipe)
    before = kinds(model.vision_encoder.layers[2])
    with pytest.raises(ValueError, match=re.escape("the loss of encoder stage 2 became nan at step 1")):
        reconstruct(
            model,
            reference,
            tiny_plan(recipe),
            images,
            memory=2**30,
            steps=Recorder(),
        )
    assert saved == ["encoder stage 1"]
    assert kinds(model.vision_encoder.layers[2]) == before


def test_progress_names_unit_loss_and_steps() -> None:
    recipe = learned_recipe()
    model, reference, images = calibrated(recipe)
    seen = []
    reconstruct(
        model, reference, tiny_plan(recipe), images, memory=2**30, progress=lambda *step: seen.append(step)
    )
    assert [step[:3] for step in seen if step[0].startswith("2/6")] == [
        ("2/6 encoder stage 2", done, 4) for done in range(5)
    ]
    assert all(re.fullmatch(r"loss [\d.e+-]+", step[3]) for step in seen if step[1])


@pytest.mark.slow
def test_the_regularizer_waits_for_the_warm_up_and_then_decides() -> None:
    """With it alone at work, soft rounding ends hard; without it, it does not."""
    ends = {}
    for weight in (0.0, 1e3):
        recipe = learned_recipe("brecq", steps=60, regularizer=weight, rounding_rate=0.1)
        model, reference, images = calibrated(recipe)
        shares: list[Tensor] = []
        original = saqsam.ptq.learning._regularizer

        def watch(roundings, spec, progress, shares=shares, original=original):
            shares[:] = [rounding.soft_rounding().detach().flatten() for rounding in roundings]
            return original(roundings, spec, progress)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saqsam.ptq.learning, "_regularizer", watch)
            reconstruct(model, reference, tiny_plan(recipe), images, memory=2**30)
        share = torch.cat(shares)
        ends[weight] = float(((share < 0.01) | (share > 0.99)).float().mean())
    assert ends[1e3] > 0.8 > 2 * ends[0.0]


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_units_without_steps_are_rounded_to_nearest(part: str) -> None:
    recipe = tiny_recipe("saq-sam")
    assert recipe.reconstruction is not None
    spec = dataclasses.replace(recipe.reconstruction, rounding_rate=0.3, **{f"{part}_steps": 0})
    learned = quantize_tiny(dataclasses.replace(recipe, reconstruction=spec)).state_dict()
    nearest = quantize_tiny(dataclasses.replace(recipe, reconstruction=None)).state_dict()
    for other, prefix in (("encoder", "vision_encoder."), ("decoder", "mask_decoder.transformer.")):
        codes = [name for name in learned if name.startswith(prefix) and name.endswith(".codes")]
        same = [torch.equal(learned[name], nearest[name]) for name in codes]
        assert all(same) if other == part else not any(same)


def test_learning_needs_steps_somewhere() -> None:
    with pytest.raises(ValueError, match="reconstruction needs steps"):
        Reconstruction(encoder_steps=0, decoder_steps=0, joint_steps=0)
