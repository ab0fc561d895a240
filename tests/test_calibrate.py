"""Calibration: what is shown to the model, what is seen of it, and that nothing stays behind."""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.calibrate import calibrate, choose_images, observing, paused, propose_boxes
from saqsam.data.datasets import Sample
from saqsam.data.scenes import ScenesDataset
from saqsam.models.structure import SamStructure
from saqsam.predictor import Predictor
from saqsam.prepare import activation_slots, prepare
from saqsam.prompts import Prompts
from saqsam.quant.observers import HistogramObserver
from saqsam.recipe import Calibration, Recipe
from tiny_quantized import tiny_data, tiny_recipe
from tiny_sam import tiny_config, tiny_processor, tiny_sam

STRUCTURE = SamStructure(tiny_config())
TOKEN_INPUT = "mask_decoder.transformer.layers.0.self_attn.q_proj.input_quantizer"
IMAGE_INPUT = "vision_encoder.layers.1.mlp.lin1.input_quantizer"
# One token for the IoU, four for the masks, two for the corners of a box; 32 channels.
VALUES_PER_PROMPT = 7 * 32
VALUES_PER_IMAGE = 64 * 32


class Listed:
    """Samples as a data set."""

    name = "listed"

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        self.asked.append(index)
        return self.samples[index]


def scenes(count: int) -> list[Sample]:
    data = tiny_data(count)
    return [data[i] for i in range(count)]


def without_instances(samples: Sequence[Sample]) -> list[Sample]:
    return [dataclasses.replace(sample, instances=()) for sample in samples]


def recipe(images: int = 2, **changes: object) -> Recipe:
    return tiny_recipe(calibration=Calibration(**{"images": images, "prompts": 4, **changes}))  # type: ignore[arg-type]


def prepared(seed: int = 0) -> SamModel:
    model = tiny_sam(seed)
    prepare(model, STRUCTURE, recipe())
    return model


def run(
    data: Listed | ScenesDataset, made: Recipe | None = None, model: SamModel | None = None
) -> dict[str, HistogramObserver]:
    made = recipe(len(data)) if made is None else made
    model = prepared() if model is None else model
    observers = calibrate(model, tiny_processor(), STRUCTURE, made, data)
    assert_empty(model)
    return observers


def assert_empty(model: SamModel) -> None:
    for slot in activation_slots(STRUCTURE, recipe()):
        assert type(model.get_submodule(slot.name)) is nn.Identity


def assert_same(a: dict[str, HistogramObserver], b: dict[str, HistogramObserver]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].counts, b[name].counts), name
        assert (a[name].low, a[name].high) == (b[name].low, b[name].high), name


def seen(observers: dict[str, HistogramObserver], name: str) -> int:
    return int(observers[name].counts.sum())


# ---- observers come and go


def test_observers_are_in_the_slots_inside_the_block_alone() -> None:
    model = prepared()
    with observing(model, STRUCTURE, recipe()) as observers:
        for name, observer in observers.items():
            assert model.get_submodule(name) is observer
        with paused(model, observers):
            assert_empty(model)
        for name, observer in observers.items():
            assert model.get_submodule(name) is observer
    assert_empty(model)


def test_observers_are_gone_after_an_error() -> None:
    model = prepared()
    with pytest.raises(KeyError), observing(model, STRUCTURE, recipe()) as observers:  # noqa: PT012
        with pytest.raises(ZeroDivisionError), paused(model, observers):
            raise ZeroDivisionError
        assert model.get_submodule(IMAGE_INPUT) is observers[IMAGE_INPUT]
        raise KeyError
    assert_empty(model)


def test_observers_are_gone_after_an_error_in_the_data() -> None:
    class Broken(Listed):
        def __getitem__(self, index: int) -> Sample:
            if index == 1:
                raise OSError("unreadable")
            return super().__getitem__(index)

    model = prepared()
    with pytest.raises(OSError, match="unreadable"):
        calibrate(model, tiny_processor(), STRUCTURE, recipe(), Broken(scenes(2)))
    assert_empty(model)


def test_activations_that_are_not_finite_are_refused() -> None:
    model = prepared()
    with torch.no_grad():
        model.vision_encoder.neck.layer_norm2.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite while calibrating"):
        calibrate(model, tiny_processor(), STRUCTURE, recipe(), tiny_data())
    assert_empty(model)


# ---- what is seen


def test_every_slot_sees_every_image_and_prompt() -> None:
    samples = scenes(2)
    observers = run(Listed(samples))
    assert set(observers) == {slot.name for slot in activation_slots(STRUCTURE, recipe())}
    assert all(not observer.is_empty for observer in observers.values())
    prompts = sum(min(4, len(sample.instances)) for sample in samples)
    assert seen(observers, TOKEN_INPUT) == prompts * VALUES_PER_PROMPT
    assert seen(observers, IMAGE_INPUT) == 2 * VALUES_PER_IMAGE


def test_calibration_in_shards_adds_up_to_the_whole() -> None:
    samples = scenes(3)
    whole = run(Listed(samples))
    merged = run(Listed(samples[:1]))
    for name, observer in run(Listed(samples[1:])).items():
        merged[name].merge(observer)
    assert_same(merged, whole)


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    def size(observers: dict[str, HistogramObserver]) -> int:
        return sum(observer.counts.untyped_storage().nbytes() for observer in observers.values())

    assert size(run(tiny_data(1))) == size(run(tiny_data(3)))


def test_images_are_read_one_by_one() -> None:
    data = Listed(scenes(3))
    steps = []
    calibrate(
        prepared(),
        tiny_processor(),
        STRUCTURE,
        recipe(3),
        data,
        lambda *step: steps.append((*step, *data.asked)),
    )
    assert steps == [
        ("calibrating", 1, 3, 0),
        ("calibrating", 2, 3, 0, 1),
        ("calibrating", 3, 3, 0, 1, 2),
    ]


def test_crowds_are_no_prompts_and_prompts_are_limited() -> None:
    (sample,) = scenes(1)
    objects = [dataclasses.replace(sample.instances[0], id=i, is_crowd=i >= 6) for i in range(9)]
    data = Listed([dataclasses.replace(sample, instances=tuple(objects))])
    for limit, expected in ((4, 4), (6, 6), (16, 6)):
        assert seen(run(data, recipe(1, prompts=limit)), TOKEN_INPUT) == expected * VALUES_PER_PROMPT


def test_which_prompts_are_kept_depends_on_the_seed_alone() -> None:
    (sample,) = scenes(1)
    boxes = [(float(i), 2.0, 20.0 + i, 40.0 - i) for i in range(12)]
    objects = [dataclasses.replace(sample.instances[0], id=i, box=box) for i, box in enumerate(boxes)]
    data = Listed([dataclasses.replace(sample, instances=tuple(objects))])
    first = run(data, recipe(1, seed=1, prompts=2))
    assert_same(first, run(data, recipe(1, seed=1, prompts=2)))
    other = run(data, recipe(1, seed=2, prompts=2))
    assert not torch.equal(first[TOKEN_INPUT].counts, other[TOKEN_INPUT].counts)


# ---- which images


def test_images_are_drawn_by_seed_without_repeats() -> None:
    chosen = choose_images(50, Calibration(images=20))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 20
    assert set(chosen) <= set(range(50))
    assert chosen == choose_images(50, Calibration(images=20))
    assert chosen != choose_images(50, Calibration(images=20, seed=1))
    assert choose_images(20, Calibration(images=20, seed=5)) == list(range(20))


def test_fewer_images_than_asked_for_are_taken_and_said() -> None:
    with pytest.warns(UserWarning, match="calibrating on 2 images, not 5: there are no more"):
        observers = run(tiny_data(2), recipe(5))
    assert seen(observers, IMAGE_INPUT) == 2 * VALUES_PER_IMAGE


def test_data_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no image"):
        choose_images(0, Calibration())
    with pytest.raises(ValueError, match="holds no image"):
        run(Listed([]), recipe(1))


# ---- images without objects


def test_unlabelled_images_are_prompted_with_the_model_s_own_boxes() -> None:
    samples = scenes(2)
    model = prepared()
    predictor = Predictor(tiny_sam(), tiny_processor())
    labelled = []
    for sample in samples:
        boxes = propose_boxes(predictor, sample.image, 4)
        assert 1 <= len(boxes) <= 4
        some = sample.instances[0]
        instances = tuple(
            dataclasses.replace(some, id=i, box=tuple(box)) for i, box in enumerate(boxes.tolist())
        )
        labelled.append(dataclasses.replace(sample, instances=instances))
    # The grid of points that finds the boxes leaves no trace in the histograms.
    found = run(Listed(without_instances(samples)), model=model)
    assert_same(found, run(Listed(labelled)))
    assert seen(found, IMAGE_INPUT) == 2 * VALUES_PER_IMAGE


def blind(model: SamModel) -> SamModel:
    """The model with all logits zero: no mask has a pixel."""
    with torch.no_grad():
        for head in model.mask_decoder.output_hypernetworks_mlps:
            head.proj_out.weight.zero_()
            head.proj_out.bias.zero_()
    return model


def test_images_that_give_no_prompt_are_counted() -> None:
    labelled, unlabelled = scenes(2)
    data = Listed([labelled, *without_instances([unlabelled])])
    with pytest.warns(UserWarning, match="1 of 2 calibration images gave no prompt"):
        observers = run(data, model=blind(prepared()))
    assert seen(observers, IMAGE_INPUT) == VALUES_PER_IMAGE


def test_no_prompt_at_all_is_an_error() -> None:
    model = blind(prepared())
    with pytest.raises(ValueError, match="none of the 2 calibration images of listed gives a prompt"):
        calibrate(model, tiny_processor(), STRUCTURE, recipe(), Listed(without_instances(scenes(2))))
    assert_empty(model)


class Rectangles:
    """A backend that sees the same rectangles (rows and columns of the 32x32 mask) at every point."""

    def __init__(self, *rectangles: tuple[int, int, int, int], scores: Sequence[float] | None = None) -> None:
        self.logits = torch.full((3, 32, 32), -1.0)
        for mask, (top, bottom, left, right) in zip(self.logits, rectangles, strict=False):
            mask[top:bottom, left:right] = 1.0
        self.scores = torch.tensor([0.9, 0.8, 0.7] if scores is None else scores)

    def encode(self, pixel_values: Tensor) -> Tensor:
        return torch.zeros(1, 32, 8, 8)

    def decode(self, embedding: Tensor, prompts: Prompts, multimask_output: bool) -> tuple[Tensor, Tensor]:
        assert multimask_output
        assert prompts.points is not None
        return self.logits.repeat(len(prompts), 1, 1, 1), self.scores.repeat(len(prompts), 1)


def proposals(backend: Rectangles, size: tuple[int, int] = (48, 64), most: int = 16) -> list[list[float]]:
    image = np.zeros((*size, 3), dtype=np.uint8)
    found = propose_boxes(Predictor(backend, tiny_processor()), image, most)
    assert found.dtype == np.float64
    assert found.shape == (len(found), 4)
    return found.tolist()


def test_boxes_are_in_pixels_of_the_image() -> None:
    backend = Rectangles((4, 10, 6, 20))  # cells of 2 px
    assert proposals(backend) == [[12.0, 8.0, 40.0, 20.0]]
    assert proposals(backend, (96, 128)) == [[24.0, 16.0, 80.0, 40.0]]
    assert proposals(backend, (24, 32)) == [[6.0, 4.0, 20.0, 10.0]]
    assert proposals(backend, (64, 48)) == [[12.0, 8.0, 40.0, 20.0]]


def test_what_lies_in_the_padding_is_cut_off() -> None:
    assert proposals(Rectangles((20, 32, 0, 32))) == [[0.0, 40.0, 64.0, 48.0]]
    assert proposals(Rectangles((20, 32, 0, 32)), (64, 48)) == [[0.0, 40.0, 48.0, 64.0]]
    assert proposals(Rectangles((26, 30, 2, 9))) == []


def test_the_most_confident_come_first_and_near_doubles_are_dropped() -> None:
    apart = Rectangles((2, 8, 2, 8), (12, 20, 12, 20), (2, 8, 20, 30), scores=[0.2, 0.9, 0.5])
    boxes = proposals(apart)
    assert boxes == [[24, 24, 40, 40], [40, 4, 60, 16], [4, 4, 16, 16]]
    assert proposals(apart, most=2) == boxes[:2]
    doubles = Rectangles((2, 12, 2, 12), (2, 12, 3, 12), (2, 9, 2, 9), scores=[0.5, 0.6, 0.4])
    assert proposals(doubles) == [[6, 4, 24, 24], [4, 4, 18, 18]]


def test_specks_are_no_objects() -> None:
    assert proposals(Rectangles((5, 6, 5, 8))) == []
    assert proposals(Rectangles((5, 7, 5, 7))) == [[10, 10, 14, 14]]


def test_calibration_does_not_warn_on_its_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tiny_data(2))
