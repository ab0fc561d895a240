"""Checks that every model family passes: its forward pass, whole and in parts, is that of its model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from saqsam.inference.backend import TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.family import flatten_image
from saqsam.models.registry import family_of
from saqsam.models.structure import replace_module

POINTS, LABELS = torch.tensor([[[30.0, 40.0], [90.0, 20.0]]] * 3), torch.tensor([[1, 0]] * 3)
PROMPT_KINDS = ("boxes", "points", "points and boxes", "masks")


def in_parts(model: Any, pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return all masks and predicted IoUs of box prompts, computed part by part."""
    family = family_of(model.config)
    features = family.encode(model, pixels)
    tokens, dense = family.embed_boxes(model, boxes)
    image = flatten_image(features.embedding + dense)
    found = family.run_transformer(
        model, 0, tokens, image, tokens, family.image_positions(model), with_final=True
    )
    return family.run_mask_head(model, *found, features.extras)


def with_quantizable_attentions(model: Any, *, row_scaled: bool = False) -> Any:
    """Return a copy of a model with attentions that have empty slots."""
    quantizable, family = copy.deepcopy(model), family_of(model.config)
    for site in family.structure(model.config).attentions:
        attention = quantizable.get_submodule(site.name)
        new = family.quantizable_attention(attention, quantized_rel_pos_query=False, row_scaled=row_scaled)
        replace_module(quantizable, site.name, new)
    return quantizable


def check_masks(model: Any, pixels: Tensor, boxes: Tensor, kind: str, *, multimask: bool) -> None:
    """Check that a backend gives the masks of the model's own forward pass, for three prompts of a kind."""
    given = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(3)) if kind == "masks" else None
    box_prompts = boxes[:1] if kind == "masks" else boxes if "boxes" in kind else None
    points = POINTS if "points" in kind else None
    expected = model(
        pixel_values=pixels,
        input_points=None if points is None else points[None],
        input_labels=None if points is None else LABELS[None],
        input_boxes=None if box_prompts is None else box_prompts[None],
        input_masks=given,
        multimask_output=multimask,
    )
    prompts = Prompts(
        boxes=box_prompts,
        points=points,
        labels=None if points is None else LABELS,
        mask_inputs=None if given is None else given[:, 0],
    )
    backend = TorchBackend(model)
    logits, ious = backend.decode(backend.encode(pixels), prompts, multimask)
    torch.testing.assert_close(logits, expected.pred_masks[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ious, expected.iou_scores[0], rtol=1e-4, atol=1e-4)


def check_selected_masks(model: Any, pixels: Tensor, boxes: Tensor) -> None:
    """Check that masks computed part by part and then selected are those of the model's own decoder."""
    logits, ious = in_parts(model, pixels, boxes)
    assert logits.shape == (3, 4, 32, 32)
    backend = TorchBackend(model)
    for multimask in (False, True):
        expected = backend.decode(backend.encode(pixels), Prompts(boxes=boxes), multimask)
        found = family_of(model.config).select_masks(model.config, logits, ious, multimask)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
