"""Stand-in for the few names of torchvision that `segment_anything` and transformers' mask pipeline import.

torchvision is no dependency: its wheels do not match every build of torch. The functions here do what the
originals do, for the types that the callers pass, so that the official code can run as a reference.
"""

import importlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from support.stand_ins import stand_ins


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Indices of the boxes kept, by falling score: greedy non-maximum suppression within each category.

    `boxes` is float (n, 4) xyxy, `scores` float (n,), `idxs` the integer category of each box (n,).
    """
    kept: list[int] = []
    for i in torch.argsort(scores, descending=True, stable=True).tolist():
        rivals = [j for j in kept if idxs[j] == idxs[i]]
        if not rivals or _iou(boxes[i], boxes[rivals]).max() <= iou_threshold:
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    """Areas (n,) of xyxy boxes (n, 4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def resize(img: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bilinear resize to (height, width)."""
    return img.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def to_pil_image(pic: np.ndarray) -> Image.Image:
    """PIL image of an HWC uint8 array."""
    return Image.fromarray(pic)


def _iou(box: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    low = torch.maximum(box[:2], others[:, :2])
    high = torch.minimum(box[2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    return shared / (box_area(box[None]) + box_area(others) - shared)


_CONTENT: Mapping[str, Mapping[str, Any]] = {
    "torchvision": {},
    "torchvision.ops": {"batched_nms": batched_nms},
    "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
    "torchvision.transforms": {},
    "torchvision.transforms.functional": {"resize": resize, "to_pil_image": to_pil_image},
}


def torchvision_stub() -> AbstractContextManager[None]:
    """Inside the block `import torchvision...` finds the stand-in; on exit `sys.modules` is as before."""
    return stand_ins(_CONTENT)


def import_segment_anything() -> ModuleType:
    """The official package, imported past torchvision."""
    with torchvision_stub():
        return importlib.import_module("segment_anything")
