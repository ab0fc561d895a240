"""The model step by step: each step is what the model's own forward computes there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SamModel

from saqsam.checkpoint import quantization_config_of
from saqsam.inference.backend import TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.family import flatten_image
from saqsam.models.registry import structure_of
from saqsam.models.sam.family import SamFamily
from support.tiny_quantized import quantized_tiny
from support.tiny_sam import tiny_config, tiny_pixels, tiny_sam

FAMILY = SamFamily()
BOXES = torch.tensor([[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0], [20.0, 20.0, 30.0, 60.0]])
TRANSFORMER = "mask_decoder.transformer"
BLOCKS = range(4)  # windowed, global, windowed, global


@pytest.fixture(scope="module", params=["float", "quantized"])
def model(request: pytest.FixtureRequest) -> SamModel:
    return tiny_sam(2) if request.param == "float" else quantized_tiny(bits="w4a8")


@contextmanager
def outputs_of(model: SamModel, *names: str) -> Iterator[dict[str, Any]]:
    """What modules give while the block runs, by name."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_module: object, _args: object, output: Any) -> None:
            found[name] = output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def start_decoder(model: SamModel, boxes: Tensor = BOXES) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, image tokens and positions before the first two-way layer.

    All prompts share the image tokens, where the model itself gives each its own. In a quantized model they are given
    here too: products of other shapes sum in another order, and a last bit can make a step of a quantizer.
    """
    embedding = FAMILY.run_neck(
        model, FAMILY.run_blocks(model, BLOCKS, FAMILY.embed_patches(model, tiny_pixels()))
    ).embedding
    tokens, dense = FAMILY.embed_boxes(model, boxes)
    image = flatten_image(embedding) + flatten_image(dense)
    if quantization_config_of(model) is not None:
        image = image.expand(len(boxes), -1, -1, -1)
    return tokens, image, FAMILY.image_positions(model)


@torch.inference_mode()
def test_each_encoder_block_gives_what_it_gives_in_the_model(model: SamModel) -> None:
    assert [layer.window_size for layer in model.vision_encoder.layers] == [3, 0, 3, 0]
    names = [f"vision_encoder.layers.{index}" for index in BLOCKS]
    with outputs_of(model, *names) as expected:
        embedding = TorchBackend(model).encode(tiny_pixels()).embedding
    state = FAMILY.embed_patches(model, tiny_pixels())
    assert state[0].shape == (1, 8, 8, 32)
    for index, name in zip(BLOCKS, names, strict=True):
        state = FAMILY.run_blocks(model, [index], state)
        assert torch.equal(state[0], expected[name])
    assert torch.equal(FAMILY.run_neck(model, state).embedding, embedding)


@torch.inference_mode()
def test_stages_one_after_another_are_the_encoder(model: SamModel) -> None:
    state = FAMILY.embed_patches(model, tiny_pixels(seed=1))
    for stage in structure_of(model.config).stages:
        state = FAMILY.run_blocks(model, stage, state)
    assert torch.equal(
        FAMILY.run_neck(model, state).embedding, TorchBackend(model).encode(tiny_pixels(seed=1)).embedding
    )


@torch.inference_mode()
def test_an_encoder_without_position_embedding() -> None:
    config = tiny_config()
    config.vision_config.use_abs_pos = False
    model = tiny_sam(0, config)
    state = FAMILY.run_blocks(model, BLOCKS, FAMILY.embed_patches(model, tiny_pixels()))
    assert torch.equal(
        FAMILY.run_neck(model, state).embedding, TorchBackend(model).encode(tiny_pixels()).embedding
    )


@torch.inference_mode()
def test_prompts_are_embedded_as_the_model_does(model: SamModel) -> None:
    seen: dict[str, Tensor] = {}

    def keep(_module: object, _args: object, kwargs: dict[str, Tensor]) -> None:
        seen.update(kwargs)

    handle = model.get_submodule(TRANSFORMER).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        backend = TorchBackend(model)
        backend.decode(backend.encode(tiny_pixels()), Prompts(boxes=BOXES), multimask_output=False)
    finally:
        handle.remove()
    tokens, image, positions = start_decoder(model)
    assert tokens.shape == (3, 1, 7, 32)
    assert torch.equal(tokens, seen["point_embeddings"])
    assert image.shape[1:] == positions.shape[1:] == (1, 64, 32)
    for shared, each in ((image, "image_embeddings"), (positions, "image_positional_embeddings")):
        # A packed model gets the image once for all prompts.
        assert torch.equal(shared.expand(3, -1, -1, -1), flatten_image(seen[each]).expand(3, -1, -1, -1))


@torch.inference_mode()
def test_each_decoder_step_gives_what_it_gives_in_the_model(model: SamModel) -> None:
    layers = [f"{TRANSFORMER}.layers.{index}" for index in range(2)]
    final = f"{TRANSFORMER}.final_attn_token_to_image"
    with outputs_of(model, TRANSFORMER, final, *layers) as expected:
        backend = TorchBackend(model)
        backend.decode(backend.encode(tiny_pixels()), Prompts(boxes=BOXES), multimask_output=False)
    prompt, image, positions = start_decoder(model)
    tokens = prompt
    for index, name in enumerate(layers):
        before = [t.clone() for t in (tokens, image, prompt, positions)]
        results = FAMILY.run_decoder_layer(model, index, tokens, image, prompt, positions)
        # Inputs are captured once and read many times: nothing may change them.
        assert all(map(torch.equal, before, (tokens, image, prompt, positions)))
        tokens, image = results
        close(tokens, expected[name][0])
        close(image, expected[name][1])
    close(FAMILY.run_final_attention(model, tokens, image, prompt, positions), expected[final][0])
    for first, start in ((0, start_decoder(model)), (1, None), (2, (tokens, image))):
        if start is None:
            start = FAMILY.run_decoder_layer(model, 0, prompt, start_decoder(model)[1], prompt, positions)
        found = FAMILY.run_transformer(model, first, *start[:2], prompt, positions, with_final=True)
        close(found[0], expected[TRANSFORMER][0])
        close(found[1], expected[TRANSFORMER][1])
    # Without the final attention: what the last layer gave.
    found = FAMILY.run_transformer(model, 0, *start_decoder(model)[:2], prompt, positions, with_final=False)
    assert torch.equal(found[0], tokens)
    assert torch.equal(found[1], image)


@torch.inference_mode()
def test_the_whole_path_is_the_model_s_forward() -> None:
    model = tiny_sam(2)
    with outputs_of(model, TRANSFORMER) as expected:
        model(pixel_values=tiny_pixels(), input_boxes=BOXES[None], multimask_output=False)
    prompt, image, positions = start_decoder(model)
    tokens, image = FAMILY.run_transformer(model, 0, prompt, image, prompt, positions, with_final=True)
    # There prompts are the second axis, not the first.
    close(tokens.transpose(0, 1), expected[TRANSFORMER][0])
    close(image[:, 0], expected[TRANSFORMER][1].reshape(3, 64, 32))


@torch.inference_mode()
def test_the_mask_head_gives_all_masks_and_ious_of_the_model(model: SamModel) -> None:
    backend = TorchBackend(model)
    features = backend.encode(tiny_pixels())
    prompt, image, positions = start_decoder(model)
    found = FAMILY.run_mask_head(
        model, *FAMILY.run_transformer(model, 0, prompt, image, prompt, positions, with_final=True)
    )
    single = backend.decode(features, Prompts(boxes=BOXES), multimask_output=False)
    several = backend.decode(features, Prompts(boxes=BOXES), multimask_output=True)
    for index in range(2):
        close(found[index], torch.cat([single[index], several[index]], 1))


@torch.inference_mode()
def test_a_prompt_s_answer_does_not_depend_on_the_others() -> None:
    model = tiny_sam(2)
    prompt, image, positions = start_decoder(model)
    together = FAMILY.run_transformer(model, 0, prompt, image, prompt, positions, with_final=True)
    for i in range(3):
        alone, image, positions = start_decoder(model, BOXES[i : i + 1])
        found = FAMILY.run_transformer(model, 0, alone, image, alone, positions, with_final=True)
        close(found[0], together[0][i : i + 1])
        close(found[1], together[1][i : i + 1])


def test_gradients_reach_every_layer_on_the_path() -> None:
    model = tiny_sam()
    prompt, image, positions = start_decoder(model)
    tokens, image = FAMILY.run_transformer(model, 0, prompt, image, prompt, positions, with_final=True)
    (tokens.sum() + image.sum()).backward()
    structure = structure_of(model.config)
    for site in structure.layers:
        assert model.get_submodule(site.name).weight.grad.abs().sum() > 0, site.name
