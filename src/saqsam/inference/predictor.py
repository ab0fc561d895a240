"""Masks from prompts: encode an image once, then predict as often as wanted.

`Predictor` has the calls of `segment_anything.SamPredictor` (`set_image`, `predict`) and, for many prompts in
one image, `predict_batch` and `predict_low_res`. `encode` returns an image as a handle that the same calls accept, for
programs that work on several images at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import SamModel, SamProcessor

from saqsam.data.image_input import ImageInput, as_rgb
from saqsam.data.images import ImageNote
from saqsam.inference.backend import Backend, TorchBackend
from saqsam.inference.encoded_image import CurrentImage, EncodedImage
from saqsam.inference.prompts import Prompts
from saqsam.models.loading import build_processor
from saqsam.utils.arrays import to_array

MASK_THRESHOLD = 0.0
"""A pixel belongs to a mask where its logit is above this, as in the original SAM."""

_PIXELS_AT_ONCE = 2**25
"""Logits upscaled in one go: 128 MiB of float32, whatever the number of masks."""


class Predictor:
    """Segments images from points, boxes and mask prompts.

    An image is encoded once, by `set_image` or `encode`; each call of a `predict` method then only runs the prompt
    encoder and the mask decoder. Pre- and post-processing are the processor's: longest edge resized, padded
    to a square; logits upscaled to that square, cropped, resized to the image, thresholded at 0.

    Several threads may share a predictor, and several predictors a model. `set_image` sets the image of the calling
    thread (or asyncio task) alone: a `predict` call refers to the image that its own thread set last. A thread that
    has set none, such as the worker of a pool, refers to the image of another thread while there is only one; if there
    are several, the call raises RuntimeError. Programs whose work moves between threads pass handles instead:

        image = predictor.encode(array)
        masks, ious, low_res = predictor.predict(box=box, image=image)

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
        self._current = CurrentImage()

    def encode(self, image: ImageInput, image_format: str = "RGB") -> EncodedImage:
        """Encode an image and return it as a handle for the `image` argument of the other methods.

        Arguments, errors and warnings are those of `set_image`. The image that is set does not change.
        """
        return self._encode(image, image_format)

    def set_image(self, image: ImageInput, image_format: str = "RGB") -> None:
        """Encode an image; the calls of this thread then refer to it. After an error they have none.

        Args:
            image: An array, a tensor on any device or a nested list of layout HW, HWx1 (grey), HWx3 or HWx4 (alpha is
                dropped), or a PIL image of any mode, taken as it is stored, without its EXIF orientation. uint8 is
                used as it is, larger integers are scaled by their bit depth as in `saqsam.data.read_image`, floats
                are in [0, 1], booleans are black and white.
            image_format: Order of the channels of an array, `RGB` or `BGR`.

        Raises:
            ValueError: The image has another layout, type or range, no pixel, or sides of a ratio above 10,000.

        Warns:
            ImageNote: The integers have more than 8 bits, and their bit depth was assumed.
        """
        # A program that ignores the error must not get masks of the image before.
        self._current.clear()
        self._current.set(self._encode(image, image_format))

    def _encode(self, image: ImageInput, image_format: str) -> EncodedImage:
        rgb, notes = as_rgb(image, image_format)
        if notes:
            warnings.warn(f"image: {'; '.join(notes)}", ImageNote, stacklevel=3)
        pixel_values, (height, width) = preprocess(self.processor, rgb)
        with torch.inference_mode():
            features = self.backend.encode(pixel_values)
        return EncodedImage(features, (rgb.shape[0], rgb.shape[1]), (height, width))

    def share_image(self, other: Predictor) -> None:
        """Take over the image of another predictor, encoded as it is there: for decoders of one encoder.

        Raises:
            RuntimeError: No image is set there.
        """
        self._current.set(other.image)

    def reset_image(self) -> None:
        """Forget the image; the calls of this thread then have none until it sets another."""
        self._current.clear()

    @property
    def image(self) -> EncodedImage:
        """The encoded image that the calls of this thread refer to.

        Raises:
            RuntimeError: No image is set, or several threads have set one and this thread has not.
        """
        image = self._current.get()
        if image is None:
            raise RuntimeError("no image: call set_image before this")
        return image

    @property
    def is_image_set(self) -> bool:
        """Whether `set_image` has been called since the start or the last `reset_image`."""
        return self._current.get() is not None

    @property
    def features(self) -> torch.Tensor:
        """Embedding of the image, [1, C, h, w] on the model's device.

        Raises:
            RuntimeError: No image is set.
        """
        return self.image.features

    def get_image_embedding(self) -> torch.Tensor:
        """The same as `features`, under the name that `segment_anything` gives it."""
        return self.features

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the image; (0, 0) when none is set."""
        image = self._current.get()
        return (0, 0) if image is None else image.original_size

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the resized image within the padded square; (0, 0) when none is set."""
        image = self._current.get()
        return (0, 0) if image is None else image.input_size

    def _chosen(self, image: EncodedImage | None) -> EncodedImage:
        """Return the image that a call was given, or the one that is set."""
        if image is None:
            return self.image
        if not isinstance(image, EncodedImage):
            raise ValueError(f"image: expected what Predictor.encode returns, got {type(image).__name__}")
        return image

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        image: EncodedImage | None = None,
    ) -> tuple[NDArray[np.bool_] | NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Predict the masks of one prompt.

        Prompts are arrays, nested lists, or tensors on any device, with or without gradients.

        Args:
            point_coords: [N, 2] points x, y in pixels of the original image.
            point_labels: [N], 1 for a point on the object and 0 for one beside it.
            box: [4] xyxy in pixels of the original image; it may reach over the border.
            mask_input: [1, 4h, 4w] logits of an earlier call, one of its `low_res_masks`.
            multimask_output: Three masks if true, for prompts as ambiguous as a single point; else one.
            return_logits: Return the masks before thresholding.
            image: The image, from `encode`; None for the one that is set.

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
            boxes=None if box is None else to_array(box, "box").reshape(1, -1),
            points=None if point_coords is None else to_array(point_coords, "points")[None],
            labels=None if point_labels is None else to_array(point_labels, "labels")[None],
            mask_inputs=mask_input,
            multimask_output=multimask_output,
            return_logits=return_logits,
            image=image,
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
        image: EncodedImage | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predict the masks of P prompts in one image, all held at once; `predict_low_res` yields them in chunks.

        Without any prompt, `boxes=np.zeros((0, 4))` for example, the results are empty and have P = 0.

        Args:
            boxes: [P, 4] xyxy in pixels of the original image.
            points: [P, N, 2] x, y in pixels of the original image.
            labels: [P, N], 1 on the object and 0 beside it.
            mask_inputs: [P, 4h, 4w] logits.
            multimask_output: Three masks a prompt if true, else one.
            return_logits: Return the masks before thresholding.
            image: The image, from `encode`; None for the one that is set.

        Returns:
            masks: [P, C, H, W] bool, or float32 logits, at the size of the original image.
            iou_predictions: [P, C] float32.
            low_res_masks: [P, C, 4h, 4w] float32 logits.

        Raises:
            RuntimeError: No image is set.
            ValueError: As for `predict`, the numbers of prompts differ, or the model's output is not finite.
        """
        image = self._chosen(image)
        chunks = list(
            self.predict_low_res(
                boxes=boxes,
                points=points,
                labels=labels,
                mask_inputs=mask_inputs,
                multimask_output=multimask_output,
                image=image,
            )
        )
        low_res = torch.cat([logits for logits, _ in chunks])
        ious = torch.cat([predicted for _, predicted in chunks])
        check_finite(low_res, ious)
        return self.upscale(low_res, return_logits=return_logits, image=image), ious, low_res

    def predict_low_res(
        self,
        *,
        boxes: ArrayLike | None = None,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        mask_inputs: ArrayLike | None = None,
        multimask_output: bool = True,
        image: EncodedImage | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Predict the logits of P prompts, at most `prompts_at_once` of them at a time.

        Arguments and errors are those of `predict_batch`; the prompts are checked before the first chunk.

        Returns:
            An iterator over logits [p, C, 4h, 4w] and predicted IoUs [p, C], both float32, in the order of
            the prompts; a single chunk with p = 0 if there is no prompt. `upscale` makes masks of the logits.
        """
        image = self._chosen(image)
        prompts = Prompts.from_image(
            image.original_size,
            image.input_size,
            boxes=boxes,
            points=points,
            labels=labels,
            mask_inputs=mask_inputs,
            mask_size=(4 * image.features.shape[2], 4 * image.features.shape[3]),
        )
        if len(prompts) == 0:
            return iter([self._decode_nothing(image, multimask_output)])
        return self._decode_chunks(image.features, prompts, multimask_output)

    @torch.inference_mode()
    def _decode_nothing(
        self, image: EncodedImage, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the results of no prompt; only the decoder itself knows their shapes and device."""
        height, width = image.input_size
        anything = Prompts(boxes=torch.tensor([[0.0, 0.0, float(width), float(height)]]))
        low_res, ious = self.backend.decode(image.features, anything, multimask_output)
        return low_res[:0], ious[:0]

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
    def upscale(
        self,
        low_res_masks: torch.Tensor,
        *,
        return_logits: bool = False,
        image: EncodedImage | None = None,
    ) -> torch.Tensor:
        """Upscale logits to masks at the size of the original image.

        Args:
            low_res_masks: [P, C, 4h, 4w] float32 logits.
            return_logits: Return logits instead of masks.
            image: The image, from `encode`; None for the one that is set.

        Returns:
            [P, C, H, W], bool (logit > 0) or float32.

        Raises:
            RuntimeError: No image is set.
        """
        image = self._chosen(image)
        height, width = image.original_size
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
                [image.original_size],
                [image.input_size],
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
