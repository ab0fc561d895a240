"""`Predictor` against the official `SamPredictor`, against `SamModel.forward`, and on images of any size."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SamModel

from saqsam.data.image_input import as_rgb
from saqsam.data.images import ImageNote
from saqsam.inference.backend import TorchBackend
from saqsam.inference.predictor import Predictor
from saqsam.inference.prompts import Prompts
from saqsam.models.building import build_model
from saqsam.models.family import Features
from saqsam.models.sam.official import from_official
from support.coco_folder import picture
from support.tiny_sam import GRID, IMAGE_SIZE, fill_random, tiny_processor, tiny_sam
from support.torchvision_stub import import_segment_anything

LOW_RES = (4 * GRID, 4 * GRID)


@pytest.fixture(scope="module")
def model() -> SamModel:
    return tiny_sam(seed=3)


@pytest.fixture
def predictor(model: SamModel) -> Predictor:
    predictor = Predictor(model, tiny_processor())
    predictor.set_image(picture((48, 80)))
    return predictor


def random_prompts(size: tuple[int, int], count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.5, (count, 2)) * size[::-1]
    extent = rng.uniform(0.2, 0.5, (count, 2)) * size[::-1]
    return {
        "boxes": np.concatenate([corner, corner + extent], axis=1),
        "points": rng.uniform(0, 1, (count, 3, 2)) * size[::-1],
        "labels": rng.integers(0, 2, (count, 3)),
        "mask_inputs": rng.normal(size=(count, *LOW_RES)),
    }


KINDS = [
    ("boxes",),
    ("points", "labels"),
    ("mask_inputs",),
    ("boxes", "points", "labels"),
    ("boxes", "mask_inputs"),
    ("points", "labels", "mask_inputs"),
    ("boxes", "points", "labels", "mask_inputs"),
]


@pytest.fixture(scope="module")
def official_pair() -> tuple[Any, SamModel]:
    """The official predictor of a small model with random weights, and the same model converted."""
    import_segment_anything()
    from segment_anything import SamPredictor
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    width, size, patch = 32, 64, 8
    official = Sam(
        image_encoder=ImageEncoderViT(
            depth=2,
            embed_dim=width,
            img_size=size,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=2,
            patch_size=patch,
            use_rel_pos=True,
            global_attn_indexes=(1,),
            window_size=3,
            out_chans=width,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(size // patch, size // patch),
            input_image_size=(size, size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=64, num_heads=8),
            iou_head_hidden_dim=24,
        ),
    )
    generator = torch.Generator().manual_seed(5)
    fill_random(official, generator)
    gaussian = official.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    gaussian.copy_(torch.randn(gaussian.shape, generator=generator))
    config, tensors = from_official(official.state_dict())
    return SamPredictor(official.eval()), build_model(config, tensors, source="test")


@pytest.mark.parametrize("size", [(48, 80), (90, 31), (64, 64), (7, 5)])
@pytest.mark.parametrize("kinds", KINDS)
def test_predict_agrees_with_the_official_predictor(
    official_pair: tuple[Any, SamModel], size: tuple[int, int], kinds: tuple[str, ...]
) -> None:
    official, model = official_pair
    image = picture(size, seed=1)
    ours = Predictor(model)
    official.set_image(image, "BGR")
    ours.set_image(image, "BGR")
    assert ours.original_size == official.original_size
    assert ours.input_size == tuple(official.input_size)
    torch.testing.assert_close(ours.features.clone(), official.features, atol=1e-4, rtol=0)

    given = random_prompts(size, 1)
    arguments = {
        "point_coords": given["points"][0] if "points" in kinds else None,
        "point_labels": given["labels"][0] if "labels" in kinds else None,
        "box": given["boxes"][0] if "boxes" in kinds else None,
        "mask_input": given["mask_inputs"].astype(np.float32) if "mask_inputs" in kinds else None,
    }
    for multimask, logits in ((True, True), (False, False)):
        options = {"multimask_output": multimask, "return_logits": logits}
        expected = official.predict(**arguments, **options)
        actual = ours.predict(**arguments, **options)
        for one, other in zip(actual, expected, strict=True):
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            if one.dtype == bool:
                assert (one != other).mean() < 1e-3  # a logit of 1e-5 may fall on either side
            else:
                np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)
                assert other.std() > 0 or other.size == 1


@pytest.mark.parametrize("kinds", [kinds for kinds in KINDS if "mask_inputs" not in kinds])
def test_many_prompts_agree_with_one_forward_of_the_model(
    model: SamModel, predictor: Predictor, kinds: tuple[str, ...]
) -> None:
    size = (48, 80)
    given = {name: values for name, values in random_prompts(size, 5).items() if name in kinds}
    names = {"boxes": "input_boxes", "points": "input_points", "labels": "input_labels"}
    inputs = predictor.processor(
        images=picture(size),
        return_tensors="pt",
        **{names[name]: [values.tolist()] for name, values in given.items()},
    )
    with torch.no_grad():
        expected = model(
            pixel_values=inputs["pixel_values"],
            **{
                name: inputs[name].float() if inputs[name].is_floating_point() else inputs[name]
                for name in names.values()
                if name in inputs
            },
        )
    masks, ious, low_res = predictor.predict_batch(**given)
    torch.testing.assert_close(low_res.clone(), expected.pred_masks[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(ious.clone(), expected.iou_scores[0], atol=1e-4, rtol=1e-5)
    (whole,) = predictor.processor.post_process_masks(
        expected.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    assert masks.shape == whole.shape == (5, 3, *size)
    assert (masks != whole).float().mean() < 1e-3


@pytest.mark.parametrize("kinds", KINDS)
def test_chunks_change_nothing(model: SamModel, predictor: Predictor, kinds: tuple[str, ...]) -> None:
    given = {name: values for name, values in random_prompts((48, 80), 5).items() if name in kinds}
    small = Predictor(model, tiny_processor(), prompts_at_once=2)
    small.set_image(picture((48, 80)))
    chunks = list(small.predict_low_res(**given))
    assert [len(low_res) for low_res, _ in chunks] == [2, 2, 1]
    masks, ious, low_res = predictor.predict_batch(**given)
    torch.testing.assert_close(torch.cat([chunk for chunk, _ in chunks]), low_res, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(torch.cat([chunk for _, chunk in chunks]), ious, atol=1e-4, rtol=1e-5)
    # and every prompt is answered by itself
    alone = predictor.predict_batch(**{name: values[3:4] for name, values in given.items()})
    torch.testing.assert_close(alone[2][0], low_res[3], atol=1e-4, rtol=1e-5)
    assert masks.dtype == torch.bool


def test_upscaling_in_parts_changes_nothing(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = random_prompts((48, 80), 3)["boxes"]
    whole = predictor.predict_batch(boxes=boxes, return_logits=True)[0]
    monkeypatch.setattr("saqsam.inference.processing.MAX_UPSCALED_PIXELS", 1)
    parts = predictor.predict_batch(boxes=boxes, return_logits=True)[0]
    assert torch.equal(whole, parts)
    assert whole.dtype == torch.float32
    assert torch.equal(whole > 0, predictor.predict_batch(boxes=boxes)[0])


def test_the_image_is_encoded_once(model: SamModel) -> None:
    class Counting(TorchBackend):
        encoded = decoded = 0

        def encode(self, pixel_values: torch.Tensor) -> Features:
            Counting.encoded += 1
            return super().encode(pixel_values)

        def decode(
            self, features: Features, prompts: Prompts, multimask_output: bool
        ) -> tuple[torch.Tensor, torch.Tensor]:
            Counting.decoded += 1
            return super().decode(features, prompts, multimask_output)

    predictor = Predictor(Counting(model), tiny_processor())
    predictor.set_image(picture((20, 30)))
    for _ in range(3):
        predictor.predict(box=[1, 1, 9, 9])
    assert (Counting.encoded, Counting.decoded) == (1, 3)


def test_a_backend_needs_a_processor(model: SamModel) -> None:
    with pytest.raises(ValueError, match="expected a SamProcessor"):
        Predictor(TorchBackend(model))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Predictor(model, prompts_at_once=0)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 7), (3, 3), (3, 1), (10, 1000), (1000, 10), (1, 10_000), (10_000, 3), (2000, 1500)]
)
def test_images_of_any_size(model: SamModel, size: tuple[int, int]) -> None:
    predictor = Predictor(model, tiny_processor())
    predictor.set_image(np.full((*size, 3), 77, dtype=np.uint8))
    assert predictor.original_size == size
    assert min(predictor.input_size) >= 1
    assert max(predictor.input_size) == IMAGE_SIZE
    box = [0, 0, size[1], size[0]]
    masks, ious, low_res = predictor.predict(box=box, multimask_output=False)
    assert masks.shape == (1, *size)
    assert (masks.dtype, ious.shape, low_res.shape) == (np.bool_, (1,), (1, *LOW_RES))
    point = [[size[1] - 1, size[0] - 1]]
    assert predictor.predict(point, [1], mask_input=low_res)[0].shape == (3, *size)


def test_bgr_is_the_mirror_of_rgb(model: SamModel) -> None:
    image = picture((20, 30))
    first, second = Predictor(model), Predictor(model)
    first.set_image(image)
    second.set_image(image[:, :, ::-1], "BGR")
    assert torch.equal(first.features, second.features)


REFUSED = [
    (None, "RGB", "got None; cv2.imread returns None for a file that it cannot read"),
    ("photo.jpg", "RGB", r"expected pixels, got the path 'photo.jpg'; read it with saqsam.data.read_image"),
    (
        np.zeros((3, 40, 50), np.uint8),
        "RGB",
        r"channels last .* found shape \(3, 40, 50\): call image.transpose",
    ),
    (torch.zeros(1, 40, 50), "RGB", r"channels last .* image.permute"),
    (np.zeros((3, 4, 4), np.uint8), "RGB", "channels last"),
    (np.zeros((1, 3, 40, 50), np.uint8), "RGB", "HWC or HW layout and 1, 3 or 4 channels, found shape"),
    (np.zeros((40, 50, 2), np.uint8), "RGB", "1, 3 or 4 channels"),
    (np.zeros(7, np.uint8), "RGB", "HWC or HW"),
    (np.float32(1), "RGB", "HWC or HW"),
    (np.zeros((0, 4, 3), np.uint8), "RGB", r"at least one pixel, found shape \(0, 4, 3\)"),
    (np.full((4, 4, 3), 255.0), "RGB", r"floating point values in \[0, 1\], found 255 to 255: divide"),
    (np.full((4, 4), np.nan), "RGB", "found nan to nan"),
    (np.full((4, 4), -1024, np.int16), "RGB", "from 0 to 65535, found -1024 to -1024: add an offset"),
    (np.full((4, 4), 70_000), "RGB", "at most 16 bits"),
    (np.zeros((4, 4), complex), "RGB", "values of type complex128"),
    ([[1, 2], [3]], "RGB", "image: expected an array of numbers"),
    (np.array([[None]]), "RGB", "values of type object"),
    (np.zeros((1, 10_001), np.uint8), "RGB", "ratio of at most 10000, found 1 x 10001"),
    (np.zeros((4, 4, 3), np.uint8), "HSV", "expected 'RGB' or 'BGR', got 'HSV'"),
    (Image.new("RGB", (4, 4)), "BGR", "image_format='RGB' with a PIL image"),
]


@pytest.mark.parametrize(("image", "image_format", "message"), REFUSED)
def test_a_refused_image_leaves_no_current_image(
    predictor: Predictor, image: Any, image_format: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        predictor.set_image(image, image_format)
    assert len(str(caught.value)) < 300
    assert not predictor.is_image_set
    with pytest.raises(RuntimeError, match="no image"):
        predictor.predict(box=[2, 2, 10, 10])


def pixels_seen(image: Any, image_format: str = "RGB") -> np.ndarray:
    return as_rgb(image, image_format)[0]


PHOTO = picture((20, 30))
GREY = PHOTO[:, :, 0]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (PHOTO[:, ::-1], PHOTO[:, ::-1]),
        (PHOTO.tolist(), PHOTO),
        (PHOTO.astype(np.int64), PHOTO),
        (np.dstack([PHOTO, GREY]), PHOTO),
        (GREY, np.dstack([GREY] * 3)),
        (GREY[:, :, None], np.dstack([GREY] * 3)),
        (PHOTO / 255, PHOTO),
        ((PHOTO / 255).astype(np.float16), PHOTO),
        (torch.from_numpy(PHOTO), PHOTO),
        (torch.from_numpy(PHOTO / 255).float().requires_grad_(), PHOTO),
        (torch.from_numpy(PHOTO / 255).bfloat16(), (PHOTO / 255 * 256).round() / 256 * 255),
        (GREY > 99, np.dstack([(GREY > 99) * 255] * 3)),
        (Image.fromarray(PHOTO), PHOTO),
        (Image.fromarray(GREY), np.dstack([GREY] * 3)),
        (Image.fromarray(np.dstack([PHOTO, GREY])), PHOTO),
        (Image.fromarray(GREY).convert("LA"), np.dstack([GREY] * 3)),
        (Image.fromarray(PHOTO).convert("CMYK"), PHOTO),
        (Image.fromarray(GREY.astype(np.uint16) * 257), np.dstack([GREY] * 3)),
        (Image.fromarray((GREY / 255).astype(np.float32)), np.dstack([GREY] * 3)),
    ],
)
def test_images_of_every_type_are_seen_as_rgb(image: Any, expected: np.ndarray) -> None:
    seen = pixels_seen(image)
    assert seen.dtype == np.uint8
    assert seen.flags.c_contiguous
    np.testing.assert_allclose(seen, expected, atol=1)


@pytest.mark.parametrize("mode", ["1", "P", "PA", "RGBX", "YCbCr", "HSV", "LAB"])
def test_other_modes_of_pillow(predictor: Predictor, mode: str) -> None:
    image = Image.new(mode, (30, 20))
    predictor.set_image(image)
    assert predictor.original_size == (20, 30)
    np.testing.assert_array_equal(pixels_seen(image), np.asarray(image.convert("RGB")))


def test_alpha_follows_the_order_of_the_channels() -> None:
    bgra = np.dstack([PHOTO[:, :, ::-1], GREY])
    np.testing.assert_array_equal(pixels_seen(bgra, "BGR"), PHOTO)


def test_16_bit_arrays_are_scaled_by_bit_depth_with_a_note(predictor: Predictor) -> None:
    values = (GREY.astype(np.uint16) << 4) | (GREY >> 4)  # 12 bits
    values[0, 0] = 4095
    with pytest.warns(ImageNote, match="image: pixel values scaled as 12-bit data") as caught:
        predictor.set_image(values)
    assert caught[0].filename == __file__
    with pytest.warns(ImageNote, match="12-bit"):
        seen = predictor.encode(values)
    assert torch.equal(seen.features, predictor.features)
    np.testing.assert_allclose(pixels_seen(values)[1:, :, 0], GREY[1:], atol=1)


def test_a_pillow_image_of_a_damaged_file(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(PHOTO).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with Image.open(path) as image, pytest.raises(ValueError, match="image: expected a readable PIL image"):
        predictor.set_image(image)


def test_prompts_may_be_tensors_with_gradients(predictor: Predictor) -> None:
    box = torch.tensor([5.0, 5.0, 40.0, 30.0], requires_grad=True)
    mask = torch.randn(1, *LOW_RES, generator=torch.Generator().manual_seed(0), requires_grad=True)
    arguments: dict[str, Any] = {
        "point_coords": box[None, :2],
        "point_labels": torch.tensor([1]),
        "box": box,
        "mask_input": mask,
    }
    arrays = {name: value.detach().numpy() for name, value in arguments.items()}
    for one, other in zip(predictor.predict(**arguments), predictor.predict(**arrays), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize(
    "nothing",
    [
        {"boxes": np.zeros((0, 4))},
        {"boxes": []},
        {"points": np.zeros((0, 2, 2)), "labels": np.zeros((0, 2))},
        {"mask_inputs": np.zeros((0, *LOW_RES))},
    ],
)
def test_no_prompts_give_empty_results(
    predictor: Predictor, nothing: dict[str, Any], multimask: bool
) -> None:
    count = 3 if multimask else 1
    masks, ious, low_res = predictor.predict_batch(**nothing, multimask_output=multimask)
    assert (masks.shape, masks.dtype) == ((0, count, 48, 80), torch.bool)
    assert (ious.shape, ious.dtype) == ((0, count), torch.float32)
    assert (low_res.shape, low_res.dtype) == ((0, count, *LOW_RES), torch.float32)
    logits, _, _ = predictor.predict_batch(**nothing, multimask_output=multimask, return_logits=True)
    assert (logits.shape, logits.dtype) == ((0, count, 48, 80), torch.float32)
    ((chunk, _),) = predictor.predict_low_res(**nothing, multimask_output=multimask)
    assert chunk.shape == (0, count, *LOW_RES)
    with pytest.raises(ValueError, match="x0, y0, x1, y1"):
        predictor.predict(box=[])


def test_no_image(model: SamModel) -> None:
    predictor = Predictor(model)
    for call in (
        lambda: predictor.predict(box=[0, 0, 1, 1]),
        lambda: predictor.predict_low_res(boxes=[[0, 0, 1, 1]]),
        lambda: predictor.upscale(torch.zeros(1, 1, *LOW_RES)),
        predictor.get_image_embedding,
    ):
        with pytest.raises(RuntimeError, match="call set_image"):
            call()
    predictor.set_image(picture((5, 5)))
    assert predictor.get_image_embedding() is predictor.features
    assert predictor.features.shape[0] == 1
    assert predictor.features.shape[2:] == (GRID, GRID)
    predictor.reset_image()
    assert not predictor.is_image_set
    with pytest.raises(RuntimeError, match="call set_image"):
        predictor.predict(box=[0, 0, 1, 1])


def test_prompts_are_checked_at_the_call(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        predictor.predict()
    with pytest.raises(ValueError, match="expected x0 < x1"):
        predictor.predict(box=[9, 9, 1, 1])
    with pytest.raises(ValueError, match="x0, y0, x1, y1"):
        predictor.predict(box=[9, 9, 1])
    with pytest.raises(ValueError, match="inside the 80 x 48 px image"):
        predictor.predict_low_res(points=[[[80, 0]]], labels=[[1]])  # before the first chunk is asked for
    with pytest.raises(ValueError, match="32 x 32 logits"):
        predictor.predict(mask_input=np.zeros((1, 256, 256)))


def test_gradients_stay_enabled_for_the_caller(predictor: Predictor) -> None:
    for _ in predictor.predict_low_res(boxes=[[0, 0, 9, 9]] * 2):
        assert not torch.is_inference_mode_enabled()


def test_half_precision_models_answer_in_float32() -> None:
    predictor = Predictor(tiny_sam(seed=3).bfloat16(), tiny_processor())
    predictor.set_image(picture((20, 30)))
    _, ious, low_res = predictor.predict(box=[1, 1, 9, 9])
    assert ious.dtype == low_res.dtype == np.float32
    assert predictor.predict([[3, 3]], [1], mask_input=low_res[:1])[0].shape == (3, 20, 30)


def test_masks_that_are_not_finite_are_refused() -> None:
    model = tiny_sam()
    model.mask_decoder.upscale_conv2.bias.data.fill_(float("inf"))
    predictor = Predictor(model, tiny_processor())
    predictor.set_image(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(ValueError, match="expected finite masks"):
        predictor.predict(box=[2, 2, 10, 10])


def test_a_batch_of_images_of_different_sizes_is_encoded_as_one_by_one() -> None:
    predictor = Predictor(tiny_sam(), tiny_processor())
    images = [picture(size) for size in ((40, 60), (60, 40), (33, 33))]
    together = predictor.encode_batch(images)
    for one, image in zip(together, images, strict=True):
        alone = predictor.encode(image)
        assert (one.original_size, one.input_size) == (alone.original_size, alone.input_size)
        torch.testing.assert_close(one.features, alone.features, rtol=1e-4, atol=1e-5)
    assert predictor.encode_batch([]) == []
