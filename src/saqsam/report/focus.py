"""Where the mask token of a box looks in the image, by a float and a quantized decoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import SamModel, SamProcessor

from saqsam.convert.prepare import prepare
from saqsam.inference.predictor import Predictor
from saqsam.models.parts import TOKEN_TO_IMAGE_PARTS
from saqsam.models.registry import structure_of
from saqsam.models.sam.attention import QuantDecoderAttention
from saqsam.models.structure import ModelStructure
from saqsam.recipes.recipe import Recipe

MASK_TOKEN = 1
"""Of the decoder's tokens: the first is that of the predicted IoU, the second that of the single mask."""
THETA = 0.5


def looking_attentions(structure: ModelStructure) -> list[str]:
    """Names of the attentions in which tokens look at the image."""
    return [site.name for site in structure.attentions if site.part in TOKEN_TO_IMAGE_PARTS]


def with_slots(model: SamModel, recipe: Recipe) -> SamModel:
    """A copy of a float model whose attentions give their probabilities; it computes the same."""
    copied = copy.deepcopy(model).eval()
    prepare(copied, structure_of(model.config), recipe)
    return copied


def probabilities(
    model: SamModel,
    processor: SamProcessor,
    image: NDArray[np.uint8],
    box: Sequence[float],
    attentions: Sequence[str],
) -> dict[str, Tensor]:
    """Probabilities [1, N, Q, K] of decoder attentions for one box.

    Args:
        model: A checkpoint, or a float model of `with_slots`.
        processor: Its processor.
        image: HWC uint8 RGB.
        box: xyxy in pixels of the image.
        attentions: Their names.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, tuple[Tensor, Tensor]], None]:
        def hook(_module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> None:
            found[name] = output[1].detach().cpu()

        return hook

    handles = []
    try:
        for name in attentions:
            attention = model.get_submodule(name)
            assert isinstance(attention, QuantDecoderAttention)
            handles.append(attention.register_forward_hook(keep(name)))
        predictor = Predictor(model, processor)
        predictor.set_image(image)
        predictor.predict(box=np.array(box), multimask_output=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def focus_deviation(exact: Tensor, found: Tensor, theta: float = THETA) -> float:
    """1 - IoU of two attentions' focus (`clipping.py`), mean over heads; both are probabilities [1, N, Q, K]."""
    masks = [p > theta * p.amax(-1, keepdim=True) for p in (exact, found)]
    both, union = (masks[0] & masks[1]).sum((-2, -1)), (masks[0] | masks[1]).sum((-2, -1))
    return float((1 - both / union).mean())


def token_map(attention: Tensor, image_size: tuple[int, int]) -> Tensor:
    """How much the mask token looks at each place, mean over heads, float [h, w] of the image without its padding.

    Args:
        attention: Probabilities [1, N, Q, K].
        image_size: (height, width) of the image.
    """
    side = math.isqrt(attention.shape[-1])
    scale = side / max(image_size)
    height, width = (math.ceil(length * scale) for length in image_size)
    mean: Tensor = attention[0, :, MASK_TOKEN].float().mean(0)
    return mean.reshape(side, side)[:height, :width]


def map_picture(values: Tensor, image_size: tuple[int, int], width: int) -> NDArray[np.uint8]:
    """A map as colours, dark to bright by its square root, HWC uint8 RGB at the image's aspect ratio."""
    import cv2

    root = values.clamp_min(0).sqrt()
    grey = (255 * root / root.max().clamp_min(1e-12)).round().to(torch.uint8).numpy()
    height = max(1, round(width * image_size[0] / image_size[1]))
    large = cv2.resize(grey, (width, height), interpolation=cv2.INTER_CUBIC)
    coloured = cv2.applyColorMap(large, cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(coloured[:, :, ::-1])
