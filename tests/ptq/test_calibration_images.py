"""Which images and prompts a model is calibrated on: drawn by the seed, from labels, detections or the model."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import SamModel

from saqsam.data.detections import Detections, ImageDetections
from saqsam.data.open import open_dataset
from saqsam.data.types import Dataset, Sample
from saqsam.inference.predictor import Predictor
from saqsam.inference.processing import preprocess
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.ptq.box_proposals import propose_boxes
from saqsam.ptq.calibration_images import (
    CalibrationImages,
    CalibrationWarning,
    choose_calibration_images,
    choose_images,
)
from saqsam.recipes.recipe import Calibration
from support.coco_folder import annotation, make_coco
from support.listed import Listed, scenes, without_instances
from support.tiny_quantized import tiny_data
from support.tiny_sam import tiny_processor, tiny_sam


def choose(
    data: Dataset,
    model: SamModel | None = None,
    *,
    detections: Detections | None = None,
    images: int | None = None,
    prompts: int = 4,
    seed: int = 0,
) -> CalibrationImages:
    spec = Calibration(len(data) if images is None else images, prompts, seed)
    return choose_calibration_images(
        tiny_sam() if model is None else model, tiny_processor(), data, spec, detections=detections
    )


def boxes_of(images: CalibrationImages) -> list[list[list[float]]]:
    """Boxes of each image, in pixels of the input."""
    found = []
    for index in range(len(images)):
        boxes = images[index][1].boxes
        assert boxes is not None
        found.append(boxes.tolist())
    return found


def many_objects(count: int = 12, crowds: int = 0) -> Sample:
    """A scene with that many boxes, the last of them of crowds."""
    (sample,) = scenes(1)
    boxes = [(float(i), 2.0, 20.0 + i, 40.0 - i) for i in range(count)]
    objects = [
        dataclasses.replace(sample.instances[0], id=i, box=box, is_crowd=i >= count - crowds)
        for i, box in enumerate(boxes)
    ]
    return dataclasses.replace(sample, instances=tuple(objects))


def detected(
    samples: Sequence[Sample], boxes: Sequence[Sequence[float]], scores: Sequence[float]
) -> Detections:
    """The same boxes in each image."""
    found = ImageDetections(np.array(boxes), np.array(scores), np.ones(len(boxes), dtype=np.int64))
    return Detections({sample.image_id: found for sample in samples})


# ---- which images


def test_images_are_drawn_by_seed_without_repeats() -> None:
    chosen = choose_images(50, Calibration(images=20))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 20
    assert set(chosen) <= set(range(50))
    assert chosen == choose_images(50, Calibration(images=20))
    assert chosen != choose_images(50, Calibration(images=20, seed=1))
    assert choose_images(20, Calibration(images=20, seed=5)) == list(range(20))


def test_the_drawn_images_are_those_that_are_given() -> None:
    data = Listed(scenes(5))
    images = choose(data, images=2, seed=3)
    expected = choose_images(5, Calibration(images=2, seed=3))
    assert data.asked == expected
    data.asked.clear()
    for position, index in enumerate(expected):
        pixels, _ = images[position]
        assert torch.equal(pixels, preprocess(tiny_processor(), data.samples[index].image)[0])
        assert pixels.shape == (1, 3, 64, 64)
    # Pixels are not held, but read each time.
    assert data.asked == expected
    _ = images[0], images[0]
    assert data.asked == [*expected, expected[0], expected[0]]


def test_fewer_images_than_asked_for_are_taken_and_said() -> None:
    with pytest.warns(
        CalibrationWarning, match="the calibration set has 2 images, fewer than the recipe.s 5"
    ):
        images = choose(tiny_data(2), images=5)
    assert len(images) == 2


def test_data_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no image"):
        choose_images(0, Calibration())
    with pytest.raises(ValueError, match="holds no image"):
        choose(Listed([]), images=1)


def test_progress_is_told() -> None:
    steps: list[tuple[str, int, int]] = []
    choose_calibration_images(
        tiny_sam(),
        tiny_processor(),
        tiny_data(3),
        Calibration(images=3, prompts=2),
        progress=lambda *step: steps.append(step),
    )
    assert steps == [("choosing prompts", i, 3) for i in range(4)]


# ---- labels


def test_boxes_of_objects_are_scaled_to_the_input() -> None:
    (sample,) = scenes(1)
    assert sample.image.shape[:2] == (48, 64)
    for factor in (1, 2):
        big = np.repeat(np.repeat(sample.image, factor, 0), factor, 1)
        objects = [
            dataclasses.replace(instance, box=tuple(factor * x for x in instance.box))
            for instance in sample.instances
        ]
        data = Listed([dataclasses.replace(sample, image=big, instances=tuple(objects))])
        (boxes,) = boxes_of(choose(data, prompts=99))
        # The longest edge is 64 px in the input.
        assert boxes == [list(instance.box) for instance in sample.instances]


def test_crowds_are_no_prompts_and_prompts_are_limited() -> None:
    data = Listed([many_objects(9, crowds=3)])
    for limit, expected in ((4, 4), (6, 6), (16, 6)):
        (boxes,) = boxes_of(choose(data, prompts=limit))
        assert len(boxes) == expected
        assert all(box[0] < 6 for box in boxes)  # objects have their number as x


def test_which_prompts_are_kept_depends_on_seed_and_image_alone() -> None:
    sample = many_objects()
    first = boxes_of(choose(Listed([sample]), seed=1, prompts=3))
    assert first == boxes_of(choose(Listed([sample]), seed=1, prompts=3))
    assert first != boxes_of(choose(Listed([sample]), seed=2, prompts=3))
    other = dataclasses.replace(sample, image_id=sample.image_id + 1)
    assert first != boxes_of(choose(Listed([other]), seed=1, prompts=3))
    # In the order of the objects, whichever are drawn; and not according to where the image stands.
    assert first == [sorted(first[0])]
    both = boxes_of(choose(Listed([other, sample]), seed=1, prompts=3))
    assert both[1:] == first


def write_calibration_data(folder: Path, *annotations: dict[str, Any]) -> Dataset:
    return open_dataset(make_coco(folder, list(annotations)))


def test_text_ids_are_those_of_the_images(tmp_path: Path) -> None:
    box = (10, 5, 30, 25)
    expected = choose(write_calibration_data(tmp_path / "a", annotation(1, 1, box), annotation(2, 7, box)))
    changed = [annotation(1, 1, box) | {"image_id": "1"}, annotation(2, 7, box) | {"image_id": 7.0}]
    images = choose(write_calibration_data(tmp_path / "b", *changed))
    assert images.fingerprint() == expected.fingerprint()
    assert (images.skipped, expected.notes) == ({}, {})
    assert images.notes == {"id written as text": 1, "id written as a float": 1}


def test_the_model_s_own_boxes_never_stand_in_for_annotations(tmp_path: Path) -> None:
    usable, lost = annotation(1, 1, (10, 5, 30, 25)), annotation(2, 7, (0, 0, 8, 8), bbox=[0, 0, 0, 0])
    data = write_calibration_data(tmp_path, usable, lost)
    with pytest.warns(CalibrationWarning, match=r"1 of 2 .* gave no prompt; skipped: box without area \(1\)"):
        images = choose(data)
    assert len(images) == 1
    assert (images.skipped, images.notes) == ({"box without area": 1}, {})


def test_images_without_annotations_are_counted(tmp_path: Path) -> None:
    images = choose(write_calibration_data(tmp_path, annotation(1, 1, (10, 5, 30, 25))))
    assert len(images) == 2
    assert images.notes == {"image without annotations prompted with the model's own boxes": 1}


@pytest.mark.parametrize(
    "changes", [{"image_id": 99}, {"segmentation": [[1, 1]]}, {"bbox": [0, 0, -1, 5]}, {"iscrowd": "x"}]
)
def test_annotations_that_are_all_unusable_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = write_calibration_data(tmp_path, annotation(1, 1, (10, 5, 30, 25)) | changes)
    with pytest.raises(ValueError, match=r"none of its annotations can be used; skipped: .* \(1\)$"):
        choose(data)
    found = Detections(
        {1: ImageDetections(np.array([[1.0, 2, 30, 30]]), np.ones(1), np.ones(1, dtype=np.int64))}
    )
    with pytest.warns(CalibrationWarning, match=r"1 of 2 calibration images gave no prompt; skipped"):
        assert len(choose(data, detections=found)) == 1  # no annotation is needed


def test_label_maps_are_no_objects() -> None:
    (sample,) = without_instances(scenes(1))
    labels = np.zeros(sample.image.shape[:2], dtype=np.uint16)
    damaged = dataclasses.replace(sample, labels=labels, skipped={"damaged annotation": 1})
    images = choose(Listed([damaged]))
    assert (len(images), images.skipped) == (1, {"damaged annotation": 1})


# ---- detections


def test_detections_take_the_place_of_the_objects() -> None:
    samples = scenes(2)
    boxes = [[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 60.0, 20.0]]
    found = boxes_of(choose(Listed(samples), detections=detected(samples, boxes, [0.3, 0.9])))
    assert found == [boxes, boxes]


def test_the_best_detections_are_kept_in_their_order() -> None:
    samples = scenes(1)
    boxes = [[float(i), 0.0, 30.0 + i, 40.0] for i in range(6)]
    scores = [0.1, 0.9, 0.3, 0.9, 0.8, 0.2]
    for limit, kept in ((1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (6, range(6)), (9, range(6))):
        (found,) = boxes_of(
            choose(Listed(samples), detections=detected(samples, boxes, scores), prompts=limit)
        )
        assert found == [boxes[i] for i in kept]


def test_detections_are_scaled_to_the_input() -> None:
    (sample,) = scenes(1)
    big = dataclasses.replace(sample, image=np.repeat(np.repeat(sample.image, 2, 0), 2, 1))
    (found,) = boxes_of(choose(Listed([big]), detections=detected([big], [[8.0, 10.0, 100.0, 60.0]], [0.5])))
    assert found == [[4.0, 5.0, 50.0, 30.0]]


def test_images_without_detections_give_no_prompt() -> None:
    samples = scenes(3)
    found = detected(samples[1:2], [[1.0, 2.0, 30.0, 40.0]], [0.5])
    with pytest.warns(CalibrationWarning, match="2 of 3 calibration images gave no prompt"):
        images = choose(Listed(samples), detections=found)
    assert len(images) == 1
    assert torch.equal(images[0][0], preprocess(tiny_processor(), samples[1].image)[0])
    with pytest.raises(ValueError, match="none of the 3 calibration images of listed gives a prompt"):
        choose(Listed(samples), detections=Detections({}))


# ---- the fingerprint


@functools.cache
def known() -> tuple[Sample, ...]:
    return tuple(scenes(2))


def changed(index: int = 0, **changes: object) -> Listed:
    samples = list(known())
    samples[index] = dataclasses.replace(samples[index], **changes)  # type: ignore[arg-type]
    return Listed(samples)


def test_the_fingerprint_is_that_of_images_and_boxes() -> None:
    first = known()[0]
    pixel = first.image.copy()
    pixel[3, 5, 1] ^= 1
    box = dataclasses.replace(first.instances[0], box=(1.0, 2.0, 30.0, 40.0))
    prints = [
        choose(data, **changes).fingerprint()
        for data, changes in (
            (Listed(known()), {}),
            (changed(image=pixel), {}),
            (changed(1, image=known()[0].image), {}),
            (changed(instances=(box, *first.instances[1:])), {}),
            (changed(instances=first.instances[1:]), {}),
            (Listed(known()[:1]), {}),
            (Listed(known()[::-1]), {}),
            (Listed(known()), {"prompts": 1}),
            (Listed(known()), {"detections": detected(known(), [[1.0, 2.0, 30.0, 40.0]], [0.5])}),
        )
    ]
    assert len(set(prints)) == len(prints)
    assert all(len(text) == 64 for text in prints)


def test_the_fingerprint_knows_the_size_of_an_image() -> None:
    # The same bytes in another shape are another image.
    gray = np.full((48, 64, 3), 128, dtype=np.uint8)
    box = dataclasses.replace(known()[0].instances[0], box=(1.0, 2.0, 30.0, 40.0))
    prints = {
        choose(changed(image=gray.reshape(shape), instances=(box,))).fingerprint()
        for shape in ((48, 64, 3), (64, 48, 3), (96, 32, 3))
    }
    assert len(prints) == 3


def test_the_fingerprint_does_not_depend_on_names_or_on_what_was_read_before() -> None:
    images = choose(Listed(known()))
    expected = images.fingerprint()
    _ = images[1], images[0], images[1]
    assert images.fingerprint() == expected
    assert choose(Listed(known())).fingerprint() == expected
    renamed = changed(file_name="other.png", skipped={"crowd": 3})
    renamed.name = "renamed"
    assert choose(renamed).fingerprint() == expected


# ---- images without objects


def test_unlabeled_images_are_prompted_with_the_model_s_own_boxes() -> None:
    samples = scenes(2)
    predictor = Predictor(tiny_sam(), tiny_processor())
    expected = [propose_boxes(predictor, sample.image, 4).tolist() for sample in samples]
    assert all(1 <= len(boxes) <= 4 for boxes in expected)
    found = boxes_of(choose(Listed(without_instances(samples))))
    # 48x64 px images are not resized.
    assert found == [torch.tensor(boxes).tolist() for boxes in expected]
    # A crowd is no object.
    crowd = [dataclasses.replace(instance, is_crowd=True) for instance in samples[0].instances]
    only_crowds = Listed([dataclasses.replace(samples[0], instances=tuple(crowd))])
    assert boxes_of(choose(only_crowds)) == found[:1]


def blind(model: SamModel) -> SamModel:
    """The model with all logits zero: no mask has a pixel."""
    with torch.no_grad():
        for head in model.mask_decoder.output_hypernetworks_mlps:
            head.proj_out.weight.zero_()
            head.proj_out.bias.zero_()
    return model


def test_images_that_give_no_prompt_are_counted() -> None:
    labeled, unlabeled = scenes(2)
    data = Listed([labeled, *without_instances([unlabeled])])
    with pytest.warns(CalibrationWarning, match="1 of 2 calibration images gave no prompt"):
        images = choose(data, blind(tiny_sam()))
    assert len(images) == 1


def test_no_prompt_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of the 2 calibration images of listed gives a prompt"):
        choose(Listed(without_instances(scenes(2))), blind(tiny_sam()))


def test_choosing_leaves_the_model_as_it_was() -> None:
    model = tiny_sam()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    choose(Listed(without_instances(scenes(1))), model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Rectangles:
    """A backend that sees the same rectangles (rows and columns of the 32x32 mask) at every point."""

    def __init__(self, *rectangles: tuple[int, int, int, int], scores: Sequence[float] | None = None) -> None:
        self.logits = torch.full((3, 32, 32), -1.0)
        for mask, (top, bottom, left, right) in zip(self.logits, rectangles, strict=False):
            mask[top:bottom, left:right] = 1.0
        self.scores = torch.tensor([0.9, 0.8, 0.7] if scores is None else scores)

    def encode(self, pixel_values: Tensor) -> Features:
        return Features(torch.zeros(1, 32, 8, 8))

    def decode(self, features: Features, prompts: Prompts, multimask_output: bool) -> tuple[Tensor, Tensor]:
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
