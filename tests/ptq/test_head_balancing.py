"""Balanced heads: the same masks in a basis that has no outliers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from saqsam.convert.pack import round_float_parameters
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepare, prepared_copy
from saqsam.models.family import Features
from saqsam.models.registry import family_of
from saqsam.ptq import calibration
from saqsam.ptq.calibration import encode_image
from saqsam.ptq.calibration_images import CalibrationImages, choose_calibration_images
from saqsam.ptq.equalization import equalize, observe_channels, scale_inputs
from saqsam.ptq.head_balancing import HeadMoments, balance_heads, balancing_matrices, observe_heads
from saqsam.ptq.pipeline import prepare_equalized
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam import tiny_pixels, tiny_processor, tiny_sam

RECIPE = tiny_recipe("saq-sam-plus")


def images_of(model: object) -> CalibrationImages:
    plan = plan_quantization(model.config, RECIPE)
    return choose_calibration_images(
        prepared_copy(model, plan), tiny_processor(), tiny_data(), RECIPE.calibration
    )


def random_moments(heads: int, size: int, seed: int) -> Tensor:
    root = torch.randn(
        heads, size, 2 * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return root @ root.mT / (2 * size)


@pytest.mark.parametrize("size", [4, 6])
def test_moments_become_equal_and_even(size: int) -> None:
    queries, keys = random_moments(3, size, 0), random_moments(3, size, 1)
    queries[:, 0, 0] += 1e4  # an outlier
    for_queries, for_keys = balancing_matrices(queries, keys)
    assert torch.allclose(
        for_queries @ for_keys.mT, torch.eye(size, dtype=torch.float64).expand(3, -1, -1), atol=1e-8
    )
    balanced = [
        matrix @ moments @ matrix.mT for matrix, moments in ((for_queries, queries), (for_keys, keys))
    ]
    assert torch.allclose(*balanced, rtol=1e-6, atol=1e-9)
    diagonal = balanced[0].diagonal(dim1=1, dim2=2)
    assert (diagonal.amax(1) / diagonal.mean(1)).max() < (1.01 if size == 4 else 2)


def test_a_huge_direction_that_keys_do_not_have_becomes_small() -> None:
    queries, keys = torch.eye(4, dtype=torch.float64)[None], torch.eye(4, dtype=torch.float64)[None].clone()
    direction = torch.full((4,), 0.5, dtype=torch.float64)  # oblique: every channel has a share
    queries = queries + 1e6 * torch.outer(direction, direction)
    keys -= (1 - 1e-9) * torch.outer(direction, direction)
    for_queries, _ = balancing_matrices(queries, keys)
    assert float((for_queries @ queries @ for_queries.mT).diagonal(dim1=1, dim2=2).max()) < 2


def test_masks_stay_as_they_are_and_outliers_go() -> None:
    model = tiny_sam()
    plan = plan_quantization(model.config, RECIPE)
    structure, family = plan.structure, family_of(model.config)
    site = structure.decoder_attentions[1]
    with torch.no_grad():  # an outlier: a large constant direction of all queries of one head
        model.get_submodule(site.query).bias[:4] += 50.0
        model.get_submodule(site.key).bias += 3.0
    images = images_of(model)

    def masks() -> Tensor:
        features = family.encode(model, tiny_pixels())
        boxes = torch.tensor([[2.0, 2.0, 20.0, 20.0], [5.0, 1.0, 30.0, 12.0]])
        return family.decode(
            model, features, points=None, labels=None, boxes=boxes, mask_inputs=None, multimask_output=True
        )[0]

    with torch.inference_mode():
        before = masks()
    moments = observe_heads(prepared_copy(model, plan), structure, images)
    assert set(moments) == {name for s in structure.decoder_attentions for name in (s.query, s.key)}
    balance_heads(model, structure, moments)
    with torch.inference_mode():
        assert torch.allclose(masks(), before, atol=2e-3 * float(before.abs().max()))
    after = observe_heads(prepared_copy(model, plan), structure, images)
    for attention in structure.decoder_attentions:
        queries, keys = (
            after[attention.query].second(centered=False),
            after[attention.key].second(centered=True),
        )
        size = queries.diagonal(dim1=1, dim2=2).mean()
        assert torch.allclose(queries, keys, atol=0.02 * float(size))
        assert after[attention.key].mean.abs().max() < 0.05 * float(size.sqrt()) + 1e-3


def test_moments_of_parts_add_up() -> None:
    values = torch.randn(2, 3, 5, 4)
    whole, parts = HeadMoments.of(values), HeadMoments.of(values[:1]) + HeadMoments.of(values[1:])
    assert whole.count == parts.count == 10
    assert torch.allclose(whole.squares, parts.squares)
    centered = values.double().movedim(1, 0).flatten(1, 2)
    centered = centered - centered.mean(1, keepdim=True)
    assert torch.allclose(whole.second(centered=True), centered.mT @ centered / 10, atol=1e-5)


def test_balancing_and_equalizing_share_the_runs_of_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def counted(*arguments: Any) -> Features:
        calls.append(arguments)
        return encode_image(*arguments)

    plan = plan_quantization(tiny_sam().config, RECIPE)
    assert plan.recipe.balanced_heads
    assert plan.recipe.equalized
    images = images_of(tiny_sam())
    apart = tiny_sam()
    balance_heads(apart, plan.structure, observe_heads(prepared_copy(apart, plan), plan.structure, images))
    ranges = observe_channels(prepared_copy(apart, plan), plan.structure, images)
    equalize(apart, plan.structure, ranges, plan.recipe.equalization)
    prepare(apart, plan)
    scale_inputs(apart, plan.structure, ranges)
    round_float_parameters(apart, plan)
    monkeypatch.setattr(calibration, "encode_image", counted)
    shared = tiny_sam()
    prepare_equalized(shared, plan, images)
    assert len(calls) == len(images)
    expected = apart.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in shared.state_dict().items())
