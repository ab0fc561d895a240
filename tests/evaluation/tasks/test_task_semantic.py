"""Task `semantic`: the vote by hand, figures from records, and maps that cannot be used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saqsam.data.ade20k import AdeDataset
from saqsam.data.label_maps import FolderLabels, Unusable, truth_labels
from saqsam.data.label_png import IGNORE, LabelMap
from saqsam.data.open import open_dataset
from saqsam.data.rle import decode_mask, encode_mask
from saqsam.data.simulated_labels import SimulatedLabels
from saqsam.data.types import Sample
from saqsam.evaluation import Evaluation, evaluate
from saqsam.evaluation.task import ImageSession
from saqsam.evaluation.tasks.everything import EverythingTask
from saqsam.evaluation.tasks.semantic import SemanticTask, refine
from saqsam.inference.mask_generator import GeneratedMask, GeneratorOptions, MaskGenerator
from saqsam.inference.predictor import Predictor
from support.ade_folder import make_ade
from support.blobs import Blobs
from support.coco_folder import SIZES, annotation, make_coco, picture
from support.tiny_sam import tiny_processor

OPTIONS = GeneratorOptions(9, 0.6, 0.5)


class Given:
    """One label map for every image."""

    def __init__(self, labels: LabelMap) -> None:
        self.labels = labels

    def options(self) -> dict[str, Any]:
        return {"labels": "given"}

    def find(self, sample: Sample, truth: LabelMap) -> LabelMap | Unusable:
        return self.labels


def rectangle(size: tuple[int, int], x0: int, y0: int, x1: int, y1: int) -> GeneratedMask:
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return GeneratedMask(encode_mask(mask), (x0, y0, x1, y1), 0.9, 0.9, (x0, y0), (0, 0, *size[::-1]))


def test_a_mask_takes_the_label_of_its_majority_and_smaller_ones_go_last() -> None:
    coarse = np.array(
        [
            [1, 1, 1, 2, 2, 2],
            [1, 1, 1, 2, 2, 2],
            [3, 3, 1, 1, 2, 4],
        ],
        dtype=np.uint16,
    )
    size = (3, 6)
    large = rectangle(size, 0, 0, 5, 3)  # 7 of 1, 5 of 2, 2 of 3
    small = rectangle(size, 3, 0, 6, 2)  # all of 2: votes are those of the coarse map
    tie = rectangle(size, 4, 2, 6, 3)  # one of 2, one of 4: the lower
    expected = np.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 2, 2]])
    for order in ([small, large, tie], [tie, large, small]):
        np.testing.assert_array_equal(refine(coarse, order), expected)
    assert coarse[2, 0] == 3
    np.testing.assert_array_equal(refine(coarse, []), coarse)


def test_pixels_without_a_label_do_not_vote_and_get_one() -> None:
    coarse = np.full((4, 4), IGNORE, dtype=np.uint16)
    coarse[0, 0] = 6
    refined = refine(coarse, [rectangle((4, 4), 0, 0, 3, 3), rectangle((4, 4), 3, 3, 4, 4)])
    assert (refined == 6).sum() == 9
    assert refined[3, 3] == IGNORE


def test_votes_are_counted_within_the_mask_not_its_box() -> None:
    mask = np.eye(5, dtype=bool)
    one = GeneratedMask(encode_mask(mask), (0, 0, 5, 5), 0.9, 0.9, (0, 0), (0, 0, 5, 5))
    coarse = np.where(np.eye(5), 8, 1).astype(np.uint16)
    coarse[4, 4] = 1
    refined = refine(coarse, [one])
    assert (refined[mask] == 8).all()
    assert (refined[~mask] == 1).all()


def test_a_record_counts_pixels(tmp_path: Path) -> None:
    dataset = open_dataset(make_coco(tmp_path, [annotation(1, 1, (10, 5, 30, 25))]))
    sample = dataset[0]
    coarse = np.zeros(SIZES[1], dtype=np.uint16)
    coarse[5:25, 10:20] = 3  # half of the object
    coarse[30:35, 50:60] = 9  # nothing is there
    coarse[0, :10] = IGNORE
    none = GeneratorOptions(2, pred_iou_thresh=1.0)  # no mask passes
    task = SemanticTask(Given(coarse), none)
    record = task.score(ImageSession(Predictor(Blobs(), tiny_processor()), sample))
    pixels = 40 * 60
    background = {"truth": pixels - 400, "coarse": pixels - 260, "coarse_hits": pixels - 460}
    assert record["masks_found"] == 0
    for label, expected in (
        ("0", background),
        ("3", {"truth": 400, "coarse": 200, "coarse_hits": 200}),
        ("9", {"truth": 0, "coarse": 50, "coarse_hits": 0}),
    ):
        counts = record["classes"][label]
        refined = {k.replace("coarse", "refined"): v for k, v in expected.items()}
        assert counts == expected | refined
    assert record["classes"].keys() == {"0", "3", "9"}
    figures = task.reduce([record])
    background_iou = (pixels - 460) / (pixels - 200)
    assert figures["unrefined_miou"] == figures["semantic_miou"] == pytest.approx((background_iou + 0.5) / 2)
    assert figures["pixel_accuracy"] == (pixels - 260) / pixels
    assert (figures["classes"], figures["label_maps"], figures["masks_per_image"]) == (2, 1, 0)
    assert task.values(record) == {"0": pytest.approx(background_iou), "3": 0.5}


def test_classes_are_added_up_over_images() -> None:
    def counts(truth: int, found: int, hits: int) -> dict[str, int]:
        return {"truth": truth, "coarse": 0, "coarse_hits": 0, "refined": found, "refined_hits": hits}

    first = {"masks_found": 4, "classes": {"1": counts(100, 50, 50), "2": counts(0, 50, 0)}}
    second = {"masks_found": 1, "classes": {"1": counts(10, 10, 10), "2": counts(90, 90, 90)}}
    left_out = {"left_out": "x.png: ...", "classes": {}}
    task = SemanticTask(SimulatedLabels())
    figures = task.reduce([first, left_out, second])
    assert figures["semantic_miou"] == pytest.approx((60 / 110 + 90 / 140) / 2)
    assert (figures["pixel_accuracy"], figures["unrefined_pixel_accuracy"]) == (150 / 200, 0)
    assert (figures["classes"], figures["label_maps"], figures["masks_per_image"]) == (2, 2, 2.5)
    assert task.values(first) == {"1": 0.5}
    assert task.values(left_out) == {}


def test_masks_correct_a_map() -> None:
    """The truth is what the masks show, the map has holes in it: the vote fills them."""
    image = picture((110, 150))
    apart = GeneratorOptions(9, 0.6, 0.5, box_nms_thresh=0.0)  # masks that do not overlap
    predictor = Predictor(Blobs(flaws=False), tiny_processor())
    masks = MaskGenerator(predictor, apart).generate(image)
    assert len(masks) > 3
    truth = np.zeros((110, 150), dtype=np.uint16)
    for label, one in enumerate(masks, start=1):
        truth[one.mask()] = label
    rng = np.random.default_rng(0)
    coarse = np.where(rng.random(truth.shape) < 0.2, 0, truth).astype(np.uint16)
    task = SemanticTask(Given(coarse), apart, keep_masks=True)
    record = task.score(ImageSession(predictor, Sample(1, "1.png", image, labels=truth)))
    figures = task.reduce([record])
    assert figures["unrefined_miou"] is not None
    assert figures["unrefined_miou"] < 0.85
    assert figures["semantic_miou"] is not None
    assert figures["semantic_miou"] > figures["unrefined_miou"] + 0.1
    kept = task.masks(record)
    refined = refine(coarse, masks)
    for label, counts in kept.items():
        mask = decode_mask({"size": [110, 150], "counts": counts.encode()})
        np.testing.assert_array_equal(mask, refined == int(label))
    assert {int(label) for label in kept} == set(np.unique(refined).tolist())


def test_images_without_a_usable_map_are_counted_and_left_out(tmp_path: Path) -> None:
    dataset = open_dataset(make_coco(tmp_path / "coco"))
    maps = tmp_path / "maps"
    maps.mkdir()
    Image.fromarray(np.zeros(SIZES[1], dtype=np.uint8)).save(maps / "1.png")
    task = SemanticTask(FolderLabels(maps, dataset), OPTIONS)
    result = evaluate(Blobs(), tiny_processor(), dataset, tasks=[task])
    assert result.skipped == {"missing label map": 1}
    assert result.metrics["semantic"]["label_maps"] == 1
    Image.fromarray(np.full(SIZES[1], 5, dtype=np.uint8)).save(maps / "1.png")
    with pytest.raises(
        ValueError,
        match=r"none for 2; the first: 1\.png: expected labels .* got 5; skipped: .*missing label map \(1\)",
    ):
        evaluate(
            Blobs(), tiny_processor(), dataset, tasks=[SemanticTask(FolderLabels(maps, dataset), OPTIONS)]
        )


def test_ade20k_in_an_evaluation(tmp_path: Path) -> None:
    dataset = AdeDataset(make_ade(tmp_path))
    result = evaluate(Blobs(), tiny_processor(), dataset, tasks=[SemanticTask(SimulatedLabels(1), OPTIONS)])
    assert result.skipped == {"missing annotation": 1}
    assert result.metrics["semantic"]["classes"] == 2
    pixels = sum(c["truth"] for r in result.records for c in r["semantic"]["classes"].values())
    assert pixels == sum((truth_labels(dataset[k]) != IGNORE).sum() for k in range(3))


def test_annotations_that_are_all_damaged_say_why(tmp_path: Path) -> None:
    make_ade(tmp_path)
    for path in (tmp_path / "annotations" / "validation").iterdir():
        path.write_bytes(b"damaged")
    task = SemanticTask(SimulatedLabels(1), OPTIONS)
    message = r"expected labeled pixels to score, found none in 3 images; skipped: damaged annotation \(3\), missing"
    with pytest.raises(ValueError, match=message):
        evaluate(Blobs(), tiny_processor(), AdeDataset(tmp_path), tasks=[task])


def test_everything_is_found_once_for_both_tasks(tmp_path: Path) -> None:
    class Counting(Blobs):
        decoded = 0

        def decode(self, *arguments: Any) -> Any:
            self.decoded += 1
            return super().decode(*arguments)

    dataset = open_dataset(make_coco(tmp_path), limit=1)
    alone, both = Counting(), Counting()
    semantic = SemanticTask(SimulatedLabels(), OPTIONS)
    one = evaluate(alone, tiny_processor(), dataset, tasks=[semantic])
    two = evaluate(both, tiny_processor(), dataset, tasks=[EverythingTask(OPTIONS), semantic])
    assert alone.decoded == both.decoded
    assert one.metrics["semantic"] == two.metrics["semantic"]


def test_an_interrupted_run_with_an_unusable_map_resumes(tmp_path: Path) -> None:
    dataset = open_dataset(make_coco(tmp_path / "coco"))
    maps = tmp_path / "maps"
    maps.mkdir()
    Image.fromarray(np.zeros(SIZES[1], dtype=np.uint8)).save(maps / "1.png")

    def run() -> Evaluation:
        task = SemanticTask(FolderLabels(maps, dataset), OPTIONS)
        return evaluate(Blobs(), tiny_processor(), dataset, tasks=[task], resume_dir=tmp_path / "records")

    first = run()
    assert any("left_out" in record["semantic"] for record in first.records)
    assert run().to_json() == first.to_json()
