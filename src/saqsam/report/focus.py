"""Attention of the mask token to the image, in a float and a quantized decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import SamModel, SamProcessor

from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepared_copy
from saqsam.inference.predictor import Predictor
from saqsam.models.parts import TOKEN_TO_IMAGE_PARTS
from saqsam.models.structure import ModelStructure
from saqsam.recipes.recipe import Recipe

THETA = 0.5


def looking_attentions(structure: ModelStructure) -> list[str]:
    """Return the names of the attentions from tokens to the image."""
    return [site.name for site in structure.attentions if site.part in TOKEN_TO_IMAGE_PARTS]


def with_slots(model: SamModel, recipe: Recipe) -> SamModel:
    """Return a copy of a float model whose attentions expose their probabilities; its outputs are unchanged.

    The copy shares the parameters of the model: a second SAM-H would take 2.6 GB.
    """
    return prepared_copy(model, plan_quantization(model.config, recipe)).eval()


def probabilities(
    model: SamModel,
    processor: SamProcessor,
    image: NDArray[np.uint8],
    box: Sequence[float],
    attentions: Sequence[str],
) -> dict[str, Tensor]:
    """Return the probabilities [1, N, Q, K] of decoder attentions for one box, by name.

    Args:
        model: Model of a checkpoint, or a float model from `with_slots`.
        processor: Processor of the model.
        image: HWC uint8 RGB.
        box: xyxy in pixels of the image.
        attentions: Names of the attentions.
    """
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, tuple[Tensor, Tensor]], None]:
        def hook(_module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> None:
            kept[name] = output[1].detach().cpu()

        return hook

    handles = []
    try:
        for name in attentions:
            attention = model.get_submodule(name)
            handles.append(attention.register_forward_hook(keep(name)))
        predictor = Predictor(model, processor)
        predictor.set_image(image)
        predictor.predict(box=np.array(box), multimask_output=False)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def focus_deviation(exact: Tensor, quantized: Tensor, theta: float = THETA) -> float:
    """Return 1 - IoU of the focus of two attentions, mean over heads; both are probabilities [1, N, Q, K]."""
    masks = [p > theta * p.amax(-1, keepdim=True) for p in (exact, quantized)]
    both, union = (masks[0] & masks[1]).sum((-2, -1)), (masks[0] | masks[1]).sum((-2, -1))
    return float((1 - both / union).mean())


def token_map(
    attention: Tensor, token: int, image_size: tuple[int, int], *, stretched: bool = False
) -> Tensor:
    """Return where a token looks: its mean probabilities over heads, float [h, w] of the image without its padding.

    Args:
        attention: Probabilities [1, N, Q, K].
        token: Index of the token among the Q queries.
        image_size: (height, width) of the image.
        stretched: The image fills the square input, as in SAM 2, so that there is no padding.
    """
    side = math.isqrt(attention.shape[-1])
    mean: Tensor = attention[0, :, token].float().mean(0).reshape(side, side)
    if stretched:
        return mean
    scale = side / max(image_size)
    height, width = (math.ceil(length * scale) for length in image_size)
    return mean[:height, :width]


def map_picture(values: Tensor, image_size: tuple[int, int], width: int) -> NDArray[np.uint8]:
    """Draw a map in colors by its square root, HWC uint8 RGB at the aspect ratio of the image."""
    import cv2

    root = values.clamp_min(0).sqrt()
    gray = (255 * root / root.max().clamp_min(1e-12)).round().to(torch.uint8).numpy()
    height = max(1, round(width * image_size[0] / image_size[1]))
    large = cv2.resize(gray, (width, height), interpolation=cv2.INTER_CUBIC)
    colored = cv2.applyColorMap(large, cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(colored[:, :, ::-1])
