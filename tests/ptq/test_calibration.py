"""Calibration: what is seen of the model, by which kind of observer, and that nothing stays behind."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import SamModel

from saqsam.convert.prepare import prepare
from saqsam.convert.quantizer_kinds import Observer
from saqsam.data.types import Dataset, Sample
from saqsam.inference.backend import TorchBackend
from saqsam.models.parts import TOKEN_TO_IMAGE_PARTS
from saqsam.models.registry import structure_of
from saqsam.models.structure import PROBABILITIES, SLOTS
from saqsam.ptq.calibration import calibrate, observing
from saqsam.ptq.calibration_images import CalibrationImages, choose_calibration_images
from saqsam.quant.logarithmic import GranularityObserver, ValueTap
from saqsam.quant.range_observers import ChannelHistogramObserver, HistogramObserver
from saqsam.recipes.recipe import Calibration, ProbabilitySpec, Recipe
from support.listed import Listed, scenes
from support.tiny_quantized import tiny_data, tiny_plan, tiny_recipe
from support.tiny_sam import tiny_config, tiny_processor, tiny_sam

STRUCTURE = structure_of(tiny_config())
TOKEN_INPUT = "mask_decoder.transformer.layers.0.self_attn.q_proj.input_quantizer"
IMAGE_INPUT = "vision_encoder.layers.1.mlp.lin1.input_quantizer"
# One token for the IoU, four for the masks, two for the corners of a box; 32 channels.
VALUES_PER_PROMPT = 7 * 32
VALUES_PER_IMAGE = 64 * 32
LOG = ProbabilitySpec("log")


def recipe(images: int = 2, **changes: object) -> Recipe:
    return tiny_recipe(calibration=Calibration(images=images, prompts=4), **changes)


# Observers of every kind.
RECIPES = {
    "plain": recipe(),
    "log": recipe(probabilities=LOG),
    "bimodal": recipe(bimodal=True),
    "both": recipe(probabilities=LOG, bimodal=True),
}
recipes = pytest.mark.parametrize("made", RECIPES.values(), ids=RECIPES)


def prepared(seed: int = 0) -> SamModel:
    model = tiny_sam(seed)
    prepare(model, tiny_plan(recipe()))
    return model


def chosen(data: Dataset, made: Recipe | None = None) -> CalibrationImages:
    made = recipe(len(data)) if made is None else made
    return choose_calibration_images(tiny_sam(), tiny_processor(), data, made.calibration)


def run(data: Dataset, made: Recipe | None = None, model: SamModel | None = None) -> dict[str, Observer]:
    made = recipe(len(data)) if made is None else made
    model = prepared() if model is None else model
    observers = calibrate(model, tiny_plan(made), chosen(data))
    assert_empty(model)
    return observers


def assert_empty(model: SamModel) -> None:
    for slot in tiny_plan(recipe()).slots:
        assert type(model.get_submodule(slot.name)) is nn.Identity


def assert_same(a: dict[str, Observer], b: dict[str, Observer]) -> None:
    assert a.keys() == b.keys()
    for name, one in a.items():
        other = b[name]
        assert type(one) is type(other), name
        if isinstance(one, GranularityObserver):
            assert isinstance(other, GranularityObserver)
            assert torch.equal(one.errors, other.errors), name
            assert one.next_call == other.next_call
        else:
            assert isinstance(other, HistogramObserver | ChannelHistogramObserver)
            assert torch.equal(one.counts, other.counts), name
            if isinstance(one, ChannelHistogramObserver):
                assert torch.equal(one.sums, other.sums), name
            # A number or a tensor.
            assert torch.equal(torch.as_tensor(one.low), torch.as_tensor(other.low)), name
            assert torch.equal(torch.as_tensor(one.high), torch.as_tensor(other.high)), name


def seen(observers: dict[str, Observer], name: str) -> int:
    observer = observers[name]
    assert isinstance(observer, HistogramObserver)
    return int(observer.counts.sum())


# ---- observers come and go


@recipes
def test_observers_are_in_the_slots_inside_the_block_alone(made: Recipe) -> None:
    model = prepared()
    with observing(model, tiny_plan(made)) as observers:
        for name, observer in observers.items():
            found = model.get_submodule(name)
            # Where somebody looks at the values on their way to the probabilities, it goes before the observer.
            assert found is observer or (isinstance(found[0], ValueTap) and found[1] is observer)
    assert_empty(model)


@recipes
def test_each_slot_has_the_kind_of_observer_that_its_recipe_needs(made: Recipe) -> None:
    kinds = {}
    with observing(prepared(), tiny_plan(made)) as observers:
        kinds = {name: type(observer) for name, observer in observers.items()}
    assert set(kinds) == {slot.name for slot in tiny_plan(made).slots}
    for site in STRUCTURE.attentions:
        for kind in SLOTS:
            found = kinds.pop(f"{site.name}.{kind}")
            if kind == PROBABILITIES:
                expected: type = GranularityObserver if made.probabilities == LOG else HistogramObserver
            elif kind != "value_quantizer" and site.part in TOKEN_TO_IMAGE_PARTS and made.bimodal:
                expected = ChannelHistogramObserver
            else:
                expected = HistogramObserver
            assert found is expected
    assert set(kinds.values()) == {HistogramObserver}


def test_probabilities_are_judged_with_the_values_of_their_own_attention() -> None:
    model, made = prepared(), RECIPES["log"]
    taps = {}
    with observing(model, tiny_plan(made)) as observers:
        for site in STRUCTURE.attentions:
            observer = observers[f"{site.name}.{PROBABILITIES}"]
            assert isinstance(observer, GranularityObserver)
            assert observer.tap is model.get_submodule(f"{site.name}.value_quantizer")[0]
            taps[site.name] = observer.tap
            observer.tap.last = torch.zeros(1)
    assert len(set(map(id, taps.values()))) == len(STRUCTURE.attentions)
    # They keep no tensor when they are done.
    assert all(tap.last is None for tap in taps.values())


@recipes
def test_observers_are_gone_after_an_error(made: Recipe) -> None:
    model = prepared()
    with pytest.raises(KeyError), observing(model, tiny_plan(made)) as observers:  # noqa: PT012
        assert model.get_submodule(IMAGE_INPUT) is observers[IMAGE_INPUT]
        raise KeyError
    assert_empty(model)


def test_observers_are_gone_after_an_error_in_the_data() -> None:
    class Broken(Listed):
        is_broken = False

        def __getitem__(self, index: int) -> Sample:
            if self.is_broken and index == 1:
                raise OSError("unreadable")
            return super().__getitem__(index)

    model, data = prepared(), Broken(scenes(2))
    images = chosen(data)
    data.is_broken = True
    with pytest.raises(OSError, match="unreadable"):
        calibrate(model, tiny_plan(recipe()), images)
    assert_empty(model)


@recipes
def test_activations_that_are_not_finite_are_refused(made: Recipe) -> None:
    for layer in ("vision_encoder.neck.layer_norm2", "vision_encoder.layers.0.layer_norm1"):
        model = prepared()
        with torch.no_grad():
            model.get_submodule(layer).weight.fill_(float("inf"))
        with pytest.raises(ValueError, match="not finite while calibrating"):
            calibrate(model, tiny_plan(made), chosen(tiny_data()))
        assert_empty(model)


# ---- what is seen


def test_every_slot_sees_every_image_and_prompt() -> None:
    samples = scenes(2)
    observers = run(Listed(samples))
    assert set(observers) == {slot.name for slot in tiny_plan(recipe()).slots}
    assert all(
        isinstance(observer, HistogramObserver) and not observer.is_empty for observer in observers.values()
    )
    prompts = sum(min(4, len(sample.instances)) for sample in samples)
    assert seen(observers, TOKEN_INPUT) == prompts * VALUES_PER_PROMPT
    assert seen(observers, IMAGE_INPUT) == 2 * VALUES_PER_IMAGE


def test_image_tokens_are_seen_once_until_prompts_change_them() -> None:
    samples = scenes(2)
    observers = run(Listed(samples))
    prompts = sum(min(4, len(sample.instances)) for sample in samples)
    assert prompts > 2
    for layer, times in ((0, 2), (1, prompts)):
        for projection in ("cross_attn_token_to_image.k_proj", "cross_attn_image_to_token.q_proj"):
            name = f"mask_decoder.transformer.layers.{layer}.{projection}.input_quantizer"
            assert seen(observers, name) == times * VALUES_PER_IMAGE


def test_the_mask_head_is_run_only_for_slots_in_it() -> None:
    calls: list[int] = []
    for made, expected in ((recipe(), 0), (recipe(extra={"upscaling": 8, "iou_head": 8}), 2)):
        model = tiny_sam()
        prepare(model, tiny_plan(made))
        handle = model.mask_decoder.iou_prediction_head.register_forward_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        observers = calibrate(model, tiny_plan(made), chosen(tiny_data(2), made))
        handle.remove()
        assert len(calls) == expected
        assert not any(o.is_empty for o in observers.values() if isinstance(o, HistogramObserver))


def test_what_is_seen_is_what_the_model_computes() -> None:
    """Outside the image tokens that prompts share, the ranges are those of plain forward passes."""
    model, made = prepared(), recipe()
    images = chosen(tiny_data(2), made)
    found = calibrate(model, tiny_plan(made), images)
    with observing(model, tiny_plan(made)) as expected, torch.inference_mode():
        backend = TorchBackend(model)
        for index in range(2):
            pixels, prompts = images[index]
            backend.decode(backend.encode(pixels), prompts, multimask_output=False)
    for name, observer in expected.items():
        other = found[name]
        assert isinstance(observer, HistogramObserver)
        assert isinstance(other, HistogramObserver)
        assert (other.low, other.high) == pytest.approx((observer.low, observer.high), rel=1e-4, abs=1e-5)


@recipes
def test_calibration_in_shards_adds_up_to_the_whole(made: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    images = chosen(Listed(scenes(3)))
    whole = calibrate(prepared(), tiny_plan(made), images)
    shards = []
    for rank in range(2):
        monkeypatch.setattr("saqsam.utils.ranks.share", lambda count, rank=rank: range(rank, count, 2))
        shards.append(calibrate(prepared(), tiny_plan(made), images))
    merged, other = shards
    for name, observer in merged.items():
        observer.merge(other[name])  # type: ignore[arg-type]
    assert_same(merged, whole)


def test_kinds_of_observers_see_the_same() -> None:
    plain, both = run(tiny_data(2)), run(tiny_data(2), RECIPES["both"])
    for name, observer in both.items():
        expected = plain[name]
        assert isinstance(expected, HistogramObserver)
        if isinstance(observer, ChannelHistogramObserver):
            observer = observer.pooled()
        if isinstance(observer, HistogramObserver):
            assert torch.equal(observer.counts, expected.counts), name
        else:
            assert sorted(observer.errors_by_call) == [0, 1]


@recipes
def test_memory_does_not_grow_with_the_number_of_images(made: Recipe) -> None:
    def size(observers: dict[str, Observer]) -> int:
        tensors = [
            t for observer in observers.values() for t in vars(observer).values() if torch.is_tensor(t)
        ]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    assert size(run(tiny_data(1), made)) == size(run(tiny_data(3), made)) > 0


def test_images_are_read_one_by_one() -> None:
    data = Listed(scenes(3))
    images = chosen(data)
    data.asked.clear()
    steps = []
    calibrate(prepared(), tiny_plan(recipe(3)), images, lambda *step: steps.append((*step, *data.asked)))
    assert steps == [
        ("calibrating", 0, 3),
        ("calibrating", 1, 3, 0),
        ("calibrating", 2, 3, 0, 1),
        ("calibrating", 3, 3, 0, 1, 2),
    ]


def test_the_model_is_left_as_it_was() -> None:
    model = prepared()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = {name: type(module) for name, module in model.named_modules()}
    run(tiny_data(2), RECIPES["both"], model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name: type(module) for name, module in model.named_modules()} == modules


def test_which_images_are_seen_matters() -> None:
    first, second = scenes(2)
    assert not torch.equal(
        run(Listed([first]))[IMAGE_INPUT].counts,  # type: ignore[union-attr]
        run(Listed([replace(first, image=second.image)]))[IMAGE_INPUT].counts,  # type: ignore[union-attr]
    )


def test_calibration_does_not_warn_on_its_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tiny_data(2))
