"""Masks from prompts for one image at a time: encode the image once, then ask as often as wanted.

`Predictor` has the calls of `segment_anything.SamPredictor` (`set_image`, `predict`) and, for many prompts in
one image, `predict_batch` and `predict_low_res`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import SamModel, SamProcessor

from saqsam.backend import Backend, TorchBackend
from saqsam.models.loading import build_processor
from saqsam.prompts import Prompts

MASK_THRESHOLD = 0.0
"""A pixel belongs to a mask where its logit is above this, as in the original SAM."""

_PIXELS_AT_ONCE = 2**25
"""Logits upscaled in one go: 128 MiB of float32, whatever the number of masks."""


class Predictor:
    """Segments one image at a time from points, boxes and mask prompts.

    The image is encoded once, by `set_image`; each call of a `predict` method then only runs the prompt
    encoder and the mask decoder. Pre- and post-processing are the processor's: longest edge resized, padded
    to a square; logits upscaled to that square, cropped, resized to the image, thresholded at 0.

    Args:
        model: The float or quantized model, or another `Backend`. Its training mode is left as it is.
        processor: Its processor; None builds the one that fits the model (a `Backend` needs one).
        prompts_at_once: Prompts per decoder call, which bounds the memory whatever the number of prompts.

    Raises:
        ValueError: A `Backend` without a processor, or `prompts_at_once` below 1.
    """

    def __init__(
        self,
        model: SamModel | Backend,
        processor: SamProcessor | None = None,
        *,
        prompts_at_once: int = 16,
    ) -> None:
        if prompts_at_once < 1:
            raise ValueError(f"prompts_at_once: expected at least 1, got {prompts_at_once}")
        if isinstance(model, SamModel):
            self.backend: Backend = TorchBackend(model)
            self.processor = build_processor(model.config) if processor is None else processor
        elif processor is None:
            raise ValueError("processor: expected a SamProcessor, which a backend does not bring along")
        else:
            self.backend = model
            self.processor = processor
        self.prompts_at_once = prompts_at_once
        self._features: torch.Tensor | None = None
        self._original_size = (0, 0)
        self._input_size = (0, 0)

    def set_image(self, image: NDArray[np.uint8], image_format: str = "RGB") -> None:
        """Encode an image; the predict methods then refer to it.

        Args:
            image: HWC uint8 in [0, 255], three channels, of any size.
            image_format: Order of the channels, `RGB` or `BGR`.

        Raises:
            ValueError: Another shape, dtype or order.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format: expected 'RGB' or 'BGR', got {image_format!r}")
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(f"image: expected HWC uint8 with 3 channels, got {image.dtype} {image.shape}")
        self.reset_image()
        if image_format == "BGR":
            image = np.ascontiguousarray(image[:, :, ::-1])
        pixel_values, (height, width) = preprocess(self.processor, image)
        with torch.inference_mode():
            self._features = self.backend.encode(pixel_values)
        self._original_size = (image.shape[0], image.shape[1])
        self._input_size = (height, width)

    def share_image(self, other: Predictor) -> None:
        """Take over the image of another predictor, encoded as it is there: for decoders of one encoder.

        Raises:
            RuntimeError: No image is set there.
        """
        self._features = other.features
        self._original_size, self._input_size = other.original_size, other.input_size

    def reset_image(self) -> None:
        """Forget the image."""
        self._features = None
        self._original_size = (0, 0)
        self._input_size = (0, 0)

    @property
    def is_image_set(self) -> bool:
        """Whether `set_image` has been called since the start or the last `reset_image`."""
        return self._features is not None

    @property
    def features(self) -> torch.Tensor:
        """Embedding of the image, [1, C, h, w] on the model's device.

        Raises:
            RuntimeError: No image is set.
        """
        if self._features is None:
            raise RuntimeError("no image: call set_image before this")
        return self._features

    def get_image_embedding(self) -> torch.Tensor:
        """The same as `features`, under the name that `segment_anything` gives it."""
        return self.features

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the image; (0, 0) when none is set."""
        return self._original_size

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the resized image within the padded square; (0, 0) when none is set."""
        return self._input_size

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[np.bool_] | NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Masks for one prompt.

        Args:
            point_coords: [N, 2] points x, y in pixels of the original image.
            point_labels: [N], 1 for a point on the object and 0 for one beside it.
            box: [4] xyxy in pixels of the original image; it may reach over the border.
            mask_input: [1, 4h, 4w] logits of an earlier call, one of its `low_res_masks`.
            multimask_output: Three masks if true, for prompts as ambiguous as a single point; else one.
            return_logits: Return the masks before thresholding.

        Returns:
            masks: [C, H, W] bool, or float32 logits, at the size of the original image.
            iou_predictions: [C] float32, the model's own estimate of each mask's IoU.
            low_res_masks: [C, 4h, 4w] float32 logits (256 x 256 for SAM-B/L/H), fit for `mask_input`.

        Raises:
            RuntimeError: No image is set.
            ValueError: No prompt at all, points without labels or outside the image, labels other than 0 and
                1, a box that is inverted, empty, not finite or outside the image, a mask of another size.
        """
        masks, ious, low_res = self.predict_batch(
            boxes=None if box is None else np.reshape(np.asarray(box, dtype=np.float64), (1, -1)),
            points=None if point_coords is None else np.asarray(point_coords)[None],
            labels=None if point_labels is None else np.asarray(point_labels)[None],
            mask_inputs=mask_input,
            multimask_output=multimask_output,
            return_logits=return_logits,
        )
        return masks[0].cpu().numpy(), ious[0].cpu().numpy(), low_res[0].cpu().numpy()

    def predict_batch(
        self,
        *,
        boxes: ArrayLike | None = None,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        mask_inputs: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masks for P prompts in the image, all held at once; `predict_low_res` gives them chunk by chunk.

        Args:
            boxes: [P, 4] xyxy in pixels of the original image.
            points: [P, N, 2] x, y in pixels of the original image.
            labels: [P, N], 1 on the object and 0 beside it.
            mask_inputs: [P, 4h, 4w] logits.
            multimask_output: Three masks a prompt if true, else one.
            return_logits: Return the masks before thresholding.

        Returns:
            masks: [P, C, H, W] bool, or float32 logits, at the size of the original image.
            iou_predictions: [P, C] float32.
            low_res_masks: [P, C, 4h, 4w] float32 logits.

        Raises:
            RuntimeError: No image is set.
            ValueError: As for `predict`, or the numbers of prompts differ.
        """
        chunks = list(
            self.predict_low_res(
                boxes=boxes,
                points=points,
                labels=labels,
                mask_inputs=mask_inputs,
                multimask_output=multimask_output,
            )
        )
        low_res = torch.cat([logits for logits, _ in chunks])
        ious = torch.cat([predicted for _, predicted in chunks])
        return self.upscale(low_res, return_logits=return_logits), ious, low_res

    def predict_low_res(
        self,
        *,
        boxes: ArrayLike | None = None,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        mask_inputs: ArrayLike | None = None,
        multimask_output: bool = True,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logits for P prompts, at most `prompts_at_once` of them at a time.

        Arguments and errors are those of `predict_batch`; the prompts are checked before the first chunk.

        Returns:
            An iterator over logits [p, C, 4h, 4w] and predicted IoUs [p, C], both float32, in the order of
            the prompts. `upscale` makes masks of the logits.
        """
        features = self.features
        prompts = Prompts.from_image(
            self._original_size,
            self._input_size,
            boxes=boxes,
            points=points,
            labels=labels,
            mask_inputs=mask_inputs,
            mask_size=(4 * features.shape[2], 4 * features.shape[3]),
        )
        return self._decode_chunks(features, prompts, multimask_output)

    def _decode_chunks(
        self, features: torch.Tensor, prompts: Prompts, multimask_output: bool
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(prompts), self.prompts_at_once):
            chunk = prompts[start : start + self.prompts_at_once]
            # Not around the yield: the caller's code would run in inference mode too.
            with torch.inference_mode():
                decoded = self.backend.decode(features, chunk, multimask_output)
            yield decoded

    @torch.inference_mode()
    def upscale(self, low_res_masks: torch.Tensor, *, return_logits: bool = False) -> torch.Tensor:
        """Masks at the size of the original image.

        Args:
            low_res_masks: [P, C, 4h, 4w] float32 logits.
            return_logits: Return logits instead of masks.

        Returns:
            [P, C, H, W], bool (logit > 0) or float32.

        Raises:
            RuntimeError: No image is set.
        """
        if not self.is_image_set:
            raise RuntimeError("no image: call set_image before this")
        height, width = self._original_size
        pad = self.processor.image_processor.pad_size
        at_once = max(1, _PIXELS_AT_ONCE // max(height * width, pad["height"] * pad["width"]))
        flat = low_res_masks.flatten(0, 1)[:, None]  # [P * C, 1, 4h, 4w]
        result = torch.empty(
            (len(flat), height, width),
            dtype=torch.float32 if return_logits else torch.bool,
            device=flat.device,
        )
        for start in range(0, len(flat), at_once):
            (masks,) = self.processor.image_processor.post_process_masks(
                [flat[start : start + at_once]],
                [self._original_size],
                [self._input_size],
                mask_threshold=MASK_THRESHOLD,
                binarize=not return_logits,
            )
            result[start : start + at_once] = masks[:, 0]
        return result.reshape(*low_res_masks.shape[:2], height, width)


def check_finite(low_res: torch.Tensor, predicted: torch.Tensor) -> None:
    """Raise ValueError if a model's logits or predicted IoUs hold NaN or infinity."""
    if not (torch.isfinite(low_res).all() and torch.isfinite(predicted).all()):
        raise ValueError("model: expected finite masks and predicted IoUs, got NaN or infinity")


def preprocess(processor: SamProcessor, image: NDArray[np.uint8]) -> tuple[torch.Tensor, tuple[int, int]]:
    """What the model is given of an image.

    Args:
        processor: The model's processor.
        image: HWC uint8 RGB in [0, 255], of any size.

    Returns:
        Pixel values [1, 3, S, S] float32, normalised and padded, and (height, width) of the resized image in them.
    """
    image_processor = processor.image_processor
    inputs = image_processor(
        _thicken(image, image_processor.size["longest_edge"]),
        input_data_format="channels_last",  # else a height of 1 or 3 px passes for channels
        return_tensors="pt",
    )
    height, width = inputs["reshaped_input_sizes"][0].tolist()
    return inputs["pixel_values"], (height, width)


def _thicken(image: NDArray[np.uint8], longest_edge: int) -> NDArray[np.uint8]:
    """Repeat the rows or columns of an image so thin that the processor would resize its short side to 0.

    The processor rounds `short * longest_edge / long` to the nearest integer, so the short side has to be at
    least `long / (2 * longest_edge)`. Prompts and masks refer to the image as given: scales are per axis.
    """
    needed = max(image.shape[:2]) // (2 * longest_edge) + 1
    for axis in (0, 1):
        if image.shape[axis] < needed:
            image = np.repeat(image, -(-needed // image.shape[axis]), axis=axis)
    return image
