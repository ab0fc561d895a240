"""Prompts of all kinds give the masks that the predictor gives for them."""

import numpy as np
import pytest

from saqsam.inference.predictor import Predictor
from saqsam.segmentation.prompts import MASK_LOGIT, Prompt, segment_prompts
from support.coco_folder import picture, rectangle
from support.fills_boxes import FillsBoxes
from support.tiny_sam import tiny_processor, tiny_sam

SIZE = (40, 60)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_sam(), tiny_processor())


def test_masks_come_in_the_order_of_their_prompts(predictor: Predictor) -> None:
    image = predictor.encode(picture(SIZE))
    mask = rectangle(SIZE, (10, 8, 30, 25))
    prompts = [
        Prompt(box=(2, 2, 28, 15)),
        Prompt(points=((29, 19),), labels=(1,)),
        Prompt(box=(20, 4, 40, 30), category_id=7, score=0.25),
        Prompt(points=((5, 6), (40, 30)), labels=(1, 0)),
        Prompt(mask=mask),
        Prompt(box=(10, 10, 50, 30), points=((30, 20),), labels=(1,)),
    ]
    found = segment_prompts(predictor, image, prompts)

    def expect(place: int, multimask: bool = False, **prompt: object) -> None:
        masks, ious, _ = predictor.predict(image=image, multimask_output=multimask, **prompt)
        logits, _, _ = predictor.predict(
            image=image, multimask_output=multimask, return_logits=True, **prompt
        )
        best = int(ious.argmax())
        np.testing.assert_array_equal(found[place].mask(), masks[best])
        assert found[place].predicted_iou == pytest.approx(float(ious[best]), rel=1e-5)
        inner, outer = (logits[best] > 1).sum(), (logits[best] > -1).sum()
        assert found[place].stability_score == pytest.approx(inner / outer)
        assert found[place].area == masks[best].sum()

    expect(0, box=[2, 2, 28, 15])
    expect(1, True, point_coords=[[29, 19]], point_labels=[1])
    expect(2, box=[20, 4, 40, 30])
    expect(3, point_coords=[[5, 6], [40, 30]], point_labels=[1, 0])
    logits = np.full((1, 32, 32), -MASK_LOGIT, np.float32)
    scale = 32 / 64 * 64 / 60  # from the image to the low-resolution mask
    x0, y0, x1, y1 = (round(value * scale) for value in (10, 8, 30, 25))
    logits[0, y0:y1, x0:x1] = MASK_LOGIT
    expected, _, _ = predictor.predict(
        image=image, box=[10, 8, 30, 25], mask_input=logits, multimask_output=False
    )
    union = (found[4].mask() | expected[0]).sum()
    assert (found[4].mask() & expected[0]).sum() / union > 0.8
    expect(5, box=[10, 10, 50, 30], point_coords=[[30, 20]], point_labels=[1])
    assert (found[2].category_id, found[2].score) == (7, 0.25)
    assert [one.prompt for one in found] == [
        "box 2,2,28,15",
        "point 29,19",
        "box 20,4,40,30",
        "points 5,6;40,30,0",
        "mask of 340 pixels",
        "box 10,10,50,30, point 30,20",
    ]


def test_the_box_of_an_object_is_that_of_its_mask() -> None:
    predictor = Predictor(FillsBoxes(), tiny_processor())
    image = predictor.encode(picture((64, 64)))
    (found,) = segment_prompts(predictor, image, [Prompt(box=(10, 20, 30, 44))])
    assert found.box == (10, 20, 30, 44)
    empty = Predictor(FillsBoxes(is_empty=True), tiny_processor())
    (nothing,) = segment_prompts(empty, image, [Prompt(box=(10, 20, 30, 44))])
    assert (nothing.box, nothing.area, nothing.stability_score) == ((0, 0, 0, 0), 0, 1.0)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (
            Prompt(mask=np.ones((5, 6), dtype=bool)),
            "expected the size of the image, 60 x 40 px, got 6 x 5 px",
        ),
        (Prompt(mask=np.zeros(SIZE, dtype=bool)), "at least one pixel"),
        (Prompt(box=(70, 2, 80, 15)), "60 x 40 px"),
        (Prompt(points=((60, 3),), labels=(1,)), "60 x 40 px"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(predictor: Predictor, prompt: Prompt, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        segment_prompts(predictor, predictor.encode(picture(SIZE)), [prompt])


def test_no_prompt_gives_no_mask(predictor: Predictor) -> None:
    assert segment_prompts(predictor, predictor.encode(picture(SIZE)), []) == []
