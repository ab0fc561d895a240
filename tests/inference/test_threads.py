"""One predictor or one model shared by threads: the mask of the right image or an error, never another mask."""

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from transformers import SamModel

from saqsam.inference.backend import TorchBackend
from saqsam.inference.encoded_image import CurrentImage, EncodedImage
from saqsam.inference.mask_generator import GeneratorOptions, MaskGenerator
from saqsam.inference.predictor import Predictor
from saqsam.models.family import Features
from saqsam.runtimes.torch_integer import use_integer_kernels
from support.coco_folder import picture
from support.tiny_quantized import quantized_tiny
from support.tiny_sam import tiny_processor, tiny_sam

IMAGES = {f"{seed}": picture((24 + 8 * seed, 40), seed=seed) for seed in range(4)}
BOX = [3, 3, 30, 20]


@pytest.fixture(scope="module")
def model() -> SamModel:
    return tiny_sam(seed=3)


@pytest.fixture
def predictor(model: SamModel) -> Predictor:
    return Predictor(model, tiny_processor())


def ask(predictor: Predictor) -> np.ndarray:
    return predictor.predict(box=BOX, multimask_output=False)[2]


def truth(model: SamModel) -> dict[str, np.ndarray]:
    found = {}
    for name, image in IMAGES.items():
        predictor = Predictor(model, tiny_processor())
        predictor.set_image(image)
        found[name] = ask(predictor)
    return found


def in_threads(work: Callable[[str], None]) -> None:
    with ThreadPoolExecutor(len(IMAGES)) as pool:
        for future in [pool.submit(work, name) for name in IMAGES]:
            future.result()


def in_thread(call: Callable[[], Any]) -> Any:
    """Run a call in a thread that ends with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_each_thread_predicts_on_the_image_that_it_set(model: SamModel, predictor: Predictor) -> None:
    expected = truth(model)
    together = threading.Barrier(len(IMAGES))

    def work(name: str) -> None:
        for _ in range(5):
            predictor.set_image(IMAGES[name])
            together.wait()  # every thread has set its image before one of them predicts
            np.testing.assert_allclose(ask(predictor), expected[name], atol=1e-4)
            assert predictor.original_size == IMAGES[name].shape[:2]
            together.wait()

    in_threads(work)


def test_handles_may_be_passed_to_any_thread(model: SamModel, predictor: Predictor) -> None:
    expected = truth(model)
    handles = {name: predictor.encode(image) for name, image in IMAGES.items()}
    assert not predictor.is_image_set

    def work(name: str) -> None:
        for _ in range(5):
            for other, handle in handles.items():
                masks, _, low_res = predictor.predict_batch(boxes=[BOX], multimask_output=False, image=handle)
                assert masks.shape[2:] == IMAGES[other].shape[:2] == handle.original_size
                np.testing.assert_allclose(low_res[0].numpy(), expected[other], atol=1e-4)

    in_threads(work)
    for name, handle in handles.items():
        np.testing.assert_allclose(
            predictor.predict(box=BOX, image=handle)[0].shape[1:], IMAGES[name].shape[:2]
        )
    with pytest.raises(AttributeError):
        handles["0"].original_size = (1, 1)  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"image: expected what Predictor\.encode returns, got ndarray"):
        predictor.predict(box=BOX, image=IMAGES["0"])  # type: ignore[arg-type]


def test_workers_predict_on_the_only_current_image(model: SamModel, predictor: Predictor) -> None:
    expected = truth(model)
    with ThreadPoolExecutor(2) as pool:
        for name in ("0", "1"):  # the second replaces the first
            predictor.set_image(IMAGES[name])
            for low_res in pool.map(lambda _: ask(predictor), range(4)):
                np.testing.assert_allclose(low_res, expected[name], atol=1e-4)


def test_an_image_set_by_a_thread_that_has_ended(model: SamModel, predictor: Predictor) -> None:
    expected = truth(model)
    for name in ("0", "1"):
        in_thread(lambda name=name: predictor.set_image(IMAGES[name]))
        np.testing.assert_allclose(ask(predictor), expected[name], atol=1e-4)


def test_a_thread_with_several_candidate_images_gets_an_error(predictor: Predictor) -> None:
    set_both, leave = threading.Event(), threading.Event()
    predictor.set_image(IMAGES["0"])

    def other() -> None:
        predictor.set_image(IMAGES["1"])
        set_both.set()
        leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    set_both.wait()
    try:
        with pytest.raises(RuntimeError, match="several threads have set one, and this thread has not"):
            in_thread(lambda: ask(predictor))
        assert predictor.original_size == IMAGES["0"].shape[:2]
    finally:
        leave.set()
        thread.join()


def test_reset_leaves_its_own_thread_without_an_image(predictor: Predictor) -> None:
    in_thread(lambda: predictor.set_image(IMAGES["0"]))
    assert predictor.is_image_set
    predictor.reset_image()
    with pytest.raises(RuntimeError, match="call set_image"):
        ask(predictor)
    in_thread(lambda: predictor.set_image(IMAGES["1"]))
    assert not predictor.is_image_set  # it was reset here, and not set since
    predictor.set_image(IMAGES["2"])
    assert predictor.original_size == IMAGES["2"].shape[:2]
    predictor.reset_image()
    assert not in_thread(lambda: predictor.is_image_set)


def test_tasks_of_one_event_loop_keep_their_images_apart(model: SamModel, predictor: Predictor) -> None:
    expected = truth(model)

    async def request(name: str, all_tasks: asyncio.Barrier) -> None:
        predictor.set_image(IMAGES[name])
        await all_tasks.wait()
        np.testing.assert_allclose(ask(predictor), expected[name], atol=1e-4)
        with pytest.raises(RuntimeError, match="several threads"):
            await asyncio.to_thread(ask, predictor)
        await all_tasks.wait()  # the images of ended tasks would not count

    async def serve() -> None:
        all_tasks = asyncio.Barrier(len(IMAGES))
        await asyncio.gather(*(request(name, all_tasks) for name in IMAGES))

    asyncio.run(serve())


def test_copies_keep_the_image_of_their_thread() -> None:
    current = CurrentImage()
    assert copy.deepcopy(current).get() is None
    current.set(EncodedImage(Features(torch.ones(1, 2, 3, 3)), (4, 5), (6, 7)))
    for other in (copy.deepcopy(current), pickle.loads(pickle.dumps(current))):
        image = other.get()
        assert image is not None
        assert (image.original_size, image.input_size) == ((4, 5), (6, 7))


@pytest.mark.parametrize("kind", ["float", "quantized", "integer"])
def test_predictors_of_one_model_in_several_threads(kind: str) -> None:
    model = tiny_sam(seed=3) if kind == "float" else copy.deepcopy(quantized_tiny())
    if kind == "integer":
        use_integer_kernels(model)
    expected = truth(model)

    def work(name: str) -> None:
        predictor = Predictor(TorchBackend(model), tiny_processor())
        for _ in range(8):
            predictor.set_image(IMAGES[name])
            np.testing.assert_allclose(ask(predictor), expected[name], atol=1e-4)

    in_threads(work)


def test_mask_generators_of_one_predictor_in_several_threads(model: SamModel, predictor: Predictor) -> None:
    options = GeneratorOptions(
        points_per_side=3, pred_iou_thresh=0, stability_score_thresh=0, crop_n_layers=1
    )
    alone = {
        name: MaskGenerator(Predictor(model, tiny_processor()), options).generate(image)
        for name, image in IMAGES.items()
    }

    def work(name: str) -> None:
        found = MaskGenerator(predictor, options).generate(IMAGES[name])
        assert [mask.rle for mask in found] == [mask.rle for mask in alone[name]]

    in_threads(work)
