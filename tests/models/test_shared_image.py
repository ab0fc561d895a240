"""A packed decoder projects the image once for prompts that share it, and its masks stay the same bit for bit."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saqsam.convert.pack import pack_without_calibration
from saqsam.inference.backend import TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.registry import family_of
from saqsam.recipes.presets import recipe_for
from support.tiny_mobile_sam import pixels as tiny_mobile_pixels
from support.tiny_mobile_sam import tiny_mobile_sam
from support.tiny_quantized import quantized_tiny
from support.tiny_sam import tiny_pixels
from support.tiny_sam2 import tiny_sam2, tiny_sam2_pixels
from support.tiny_sam3_tracker import tiny_sam3_tracker, tiny_sam3_tracker_pixels
from support.tiny_sam_hq import tiny_sam_hq

FLOAT_MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Tensor]]] = {
    "mobile_sam": (tiny_mobile_sam, tiny_mobile_pixels),
    "sam2": (tiny_sam2, tiny_sam2_pixels),
    "sam3_tracker": (tiny_sam3_tracker, tiny_sam3_tracker_pixels),
    "sam_hq": (tiny_sam_hq, tiny_pixels),
}
BOXES = torch.tensor([[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0], [2.0, 20.0, 30.0, 44.0]])


def packed(name: str) -> tuple[Any, Tensor]:
    """A packed model of its own for each test, and pixels for it."""
    if name == "sam":
        return copy.deepcopy(quantized_tiny()), tiny_pixels()
    make, pixels = FLOAT_MODELS[name]
    model = make()
    pack_without_calibration(model, recipe_for("weight-only", "w4"))
    return model, pixels()


def first_layer_batches(model: Any) -> list[int]:
    """Record the batch size at each projection of the image tokens in the first two-way layer."""
    batches: list[int] = []

    def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        batches.append(len(inputs[0]))

    layer = model.mask_decoder.transformer.layers[0]
    for projection in (
        *layer.cross_attn_token_to_image.input_projections[1:],
        layer.cross_attn_image_to_token.input_projections[0],
    ):
        projection.register_forward_pre_hook(record)
    return batches


def without_sharing(model: Any) -> Any:
    """A copy whose decoder computes everything for each prompt."""
    plain = copy.deepcopy(model)
    plain.mask_decoder.transformer._forward_pre_hooks.clear()
    plain.mask_decoder.transformer._forward_pre_hooks_with_kwargs.clear()
    return plain


@torch.no_grad()
def decode(model: Any, pixels: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    backend = TorchBackend(model)
    return backend.decode(backend.encode(pixels), prompts, multimask_output=True)


@pytest.mark.parametrize("name", ["sam", *FLOAT_MODELS])
def test_boxes_share_the_image(name: str) -> None:
    model, pixels = packed(name)
    plain, batches = without_sharing(model), first_layer_batches(model)
    found = decode(model, pixels, Prompts(boxes=BOXES))
    assert batches == [1, 1, 1]
    for one, other in zip(found, decode(plain, pixels, Prompts(boxes=BOXES)), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(found[0][0], found[0][1])


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_mask_inputs_have_image_tokens_of_their_own(name: str) -> None:
    model, pixels = packed(name)
    side = family_of(model.config).input_spec(model.config).mask_size
    masks = torch.randn(3, 1, side, side, generator=torch.Generator().manual_seed(0))
    plain, batches = without_sharing(model), first_layer_batches(model)
    prompts = Prompts(boxes=BOXES, mask_inputs=masks[:, 0])
    found = decode(model, pixels, prompts)
    assert batches == [3, 3, 3]
    assert torch.equal(found[0], decode(plain, pixels, prompts)[0])


def test_a_batch_of_images_keeps_each_image() -> None:
    model, _ = packed("sam")
    pixels, boxes = tiny_pixels(2), BOXES[None].repeat(2, 1, 1)
    batches = first_layer_batches(model)
    with torch.no_grad():
        both = model(pixel_values=pixels, input_boxes=boxes).pred_masks
        alone = model(pixel_values=pixels[1:], input_boxes=boxes[1:]).pred_masks
    assert batches == [6, 6, 6, 1, 1, 1]
    torch.testing.assert_close(both[1:], alone)


def test_gradients_take_the_plain_path() -> None:
    model, pixels = packed("sam")
    batches = first_layer_batches(model)
    model(pixel_values=pixels, input_boxes=BOXES[None])
    assert batches == [3, 3, 3]
