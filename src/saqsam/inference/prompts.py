"""Point, box and mask prompts, checked against the image and scaled to the model's input."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from saqsam.utils.arrays import to_array
from saqsam.utils.errors import shorten, shorten_message


@dataclass(frozen=True)
class Prompts:
    """P prompts for one image, in pixels of the model's input. Each kind that is set has one entry per prompt.

    Attributes:
        boxes: [P, 4] float32 xyxy, or None.
        points: [P, N, 2] float32 x, y, or None.
        labels: [P, N] int64, 1 for a point on the object and 0 for one beside it; None without `points`.
        mask_inputs: [P, 4h, 4w] float32 logits of an earlier prediction, or None.
    """

    boxes: torch.Tensor | None = None
    points: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    mask_inputs: torch.Tensor | None = None

    @classmethod
    def from_image(
        cls,
        image_size: tuple[int, int],
        input_size: tuple[int, int],
        *,
        boxes: ArrayLike | None = None,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        mask_inputs: ArrayLike | None = None,
        mask_size: tuple[int, int],
        frame: str = "image",
    ) -> Self:
        """Check prompts in pixels of an image and scale them to the resized image, per axis.

        Each kind may be an array, a nested list or a tensor on any device.

        Args:
            image_size: (height, width) of the image.
            input_size: (height, width) after the processor resized it, without the padding.
            boxes: [P, 4] xyxy in the image, P may be 0; a box may reach over the border, but not lie wholly outside.
            points: [P, N, 2] x, y in the image, with 0 <= x < width and 0 <= y < height.
            labels: [P, N], 0 or 1, one per point.
            mask_inputs: [P, 4h, 4w] logits.
            mask_size: (4h, 4w), the required size of mask inputs.
            frame: Name of the image in error messages.

        Returns:
            The prompts in pixels of the resized image.

        Raises:
            ValueError: There is no prompt at all, or one of the wrong shape, range or place.
        """
        if boxes is None and points is None and mask_inputs is None:
            raise ValueError("prompt: expected at least one of box, points and mask input, got none")
        if (points is None) != (labels is None):
            present, missing = ("labels", "points") if points is None else ("points", "labels")
            raise ValueError(f"prompt: expected points and labels together, got {present} without {missing}")
        scale = np.array([input_size[1] / image_size[1], input_size[0] / image_size[0]])  # x, y
        checked: dict[str, NDArray[Any]] = {}
        if boxes is not None:
            array = _numbers(boxes, "boxes", (0, 4))
            _check_boxes(array, image_size, frame)
            checked["boxes"] = (array * np.tile(scale, 2)).astype(np.float32)
        if points is not None and labels is not None:
            array = _numbers(points, "points", (0, 1, 2))
            label_array = _numbers(labels, "labels", (0, *array.shape[1:2]))
            _check_points(array, image_size, frame)
            _check_labels(label_array, array.shape[:2])
            checked["points"] = (array * scale).astype(np.float32)
            checked["labels"] = label_array.astype(np.int64)
        if mask_inputs is not None:
            array = _numbers(mask_inputs, "mask input", (0, *mask_size))
            _check_masks(array, mask_size)
            checked["mask_inputs"] = array.astype(np.float32)
        counts = {name: len(values) for name, values in checked.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"prompt: expected the same number of each kind, got {counts}")
        return cls(**{name: torch.from_numpy(values) for name, values in checked.items()})

    def _kinds(self) -> dict[str, torch.Tensor]:
        kinds = {
            "boxes": self.boxes,
            "points": self.points,
            "labels": self.labels,
            "mask_inputs": self.mask_inputs,
        }
        return {name: tensor for name, tensor in kinds.items() if tensor is not None}

    def __len__(self) -> int:
        return len(next(iter(self._kinds().values())))

    def __getitem__(self, chunk: slice) -> "Prompts":
        return Prompts(**{name: tensor[chunk] for name, tensor in self._kinds().items()})

    def to(self, device: torch.device) -> "Prompts":
        """Return the prompts on another device."""
        return Prompts(**{name: tensor.to(device) for name, tensor in self._kinds().items()})


def _numbers(values: ArrayLike, name: str, empty: tuple[int, ...]) -> NDArray[np.float64]:
    """Convert to finite float64; an empty list, which has no shape, gets the shape `empty`."""
    array = to_array(values, name)
    if np.iscomplexobj(array):
        raise ValueError(f"{name}: expected real numbers, got {array.dtype}")
    try:
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected an array of numbers ({shorten_message(error)})") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return array.reshape(empty) if array.shape == (0,) else array


def _check_boxes(boxes: NDArray[np.float64], size: tuple[int, int], frame: str) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes: expected x0, y0, x1, y1 for each prompt, got shape {shorten(boxes.shape)}")
    height, width = size
    for box in boxes:
        x0, y0, x1, y1 = box.tolist()
        if x0 >= x1 or y0 >= y1:
            raise ValueError(f"box: expected x0 < x1 and y0 < y1, got {_show(box)}")
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            raise ValueError(
                f"box: expected one that meets the {width} x {height} px {frame}, got {_show(box)}"
            )


def _check_points(points: NDArray[np.float64], size: tuple[int, int], frame: str) -> None:
    if points.ndim != 3 or points.shape[2] != 2 or points.shape[1] == 0:
        raise ValueError(
            f"points: expected one or more x, y for each prompt, got shape {shorten(points.shape)}"
        )
    height, width = size
    outside = (points < 0).any(axis=2) | (points >= (width, height)).any(axis=2)
    if outside.any():
        point = _show(points[outside][0])
        raise ValueError(f"point: expected one inside the {width} x {height} px {frame}, got {point}")


def _check_labels(labels: NDArray[np.float64], shape: tuple[int, ...]) -> None:
    if labels.shape != shape:
        raise ValueError(f"labels: expected one per point, shape {shape}, got {labels.shape}")
    others = sorted(set(labels.ravel().tolist()) - {0.0, 1.0})
    if others:
        raise ValueError(f"labels: expected 0 or 1, got {others[0]:g}")


def _check_masks(masks: NDArray[np.float64], mask_size: tuple[int, int]) -> None:
    if masks.ndim != 3 or masks.shape[1:] != mask_size:
        raise ValueError(
            f"mask input: expected {mask_size[0]} x {mask_size[1]} logits, got shape {shorten(masks.shape)}"
        )


def _show(values: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values.tolist()) + ")"
