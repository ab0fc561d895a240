"""Predict masks from prompts: encode an image once, then ask for any number of masks.

`Predictor` has the calls of `segment_anything.SamPredictor` (`set_image`, `predict`, `predict_torch`, ...). For many
prompts in one image, `predict_batch` and `predict_low_res` take them in pixels of the image. `encode` returns an image
as a handle that the same calls accept, for programs that work on several images at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedModel, SamModel, SamProcessor

from saqsam.data.image_input import ImageInput, as_rgb
from saqsam.data.images import ImageNote
from saqsam.inference.backend import Backend, TorchBackend
from saqsam.inference.encoded_image import CurrentImage, EncodedImage, PreparedImage
from saqsam.inference.official_model import OfficialModel
from saqsam.inference.processing import preprocess, preprocess_resized, upscale_logits
from saqsam.inference.prompts import Prompts
from saqsam.inference.transforms import ResizeLongestSide, StretchToSquare
from saqsam.models.family import Features
from saqsam.models.processing import build_processor, input_side, is_stretched
from saqsam.utils.arrays import to_array
from saqsam.utils.errors import shorten


class Predictor:
    """Segments images from points, boxes and mask prompts.

    An image is encoded once, by `set_image` or `encode`; each call of a `predict` method then only runs the prompt
    encoder and the mask decoder. The processor resizes the longest edge, normalizes and pads to a square; logits are
    upscaled to that square, cropped, resized to the image and thresholded at 0.

    Several threads may share a predictor, and several predictors a model. `set_image` sets the image of the calling
    thread (or asyncio task) alone: a `predict` call refers to the image that its own thread set last. A thread that
    has set none, such as the worker of a pool, refers to the image of another thread while there is only one; if there
    are several, the call raises RuntimeError. Programs whose work moves between threads pass handles instead:

        image = predictor.encode(array)
        masks, ious, low_res = predictor.predict(box=box, image=image)

    Args:
        model: The float or quantized model, or another `Backend`. Its training mode is left as it is.
        processor: Its processor; None builds the default one for a model, while a `Backend` needs one.
        prompts_at_once: Prompts per decoder call, which bounds the memory whatever the number of prompts.

    Attributes:
        transform: Resizes images, points and boxes to the model's input, for `set_torch_image` and `predict_torch`.

    Raises:
        ValueError: A `Backend` comes without a processor, or `prompts_at_once` is below 1.
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
        if isinstance(model, PreTrainedModel):
            self.backend: Backend = TorchBackend(model)
            self.processor = build_processor(model.config) if processor is None else processor
        elif processor is None:
            raise ValueError("processor: expected a SamProcessor, which a backend does not bring along")
        else:
            self.backend = model
            self.processor = processor
        self.prompts_at_once = prompts_at_once
        resize = StretchToSquare if is_stretched(self.processor) else ResizeLongestSide
        self.transform = resize(input_side(self.processor), self.processor.image_processor.resample)
        self._current = CurrentImage()

    def encode(self, image: ImageInput, image_format: str = "RGB") -> EncodedImage:
        """Encode an image and return it as a handle for the `image` argument of the other methods.

        Arguments, errors and warnings are those of `set_image`. The image that is set does not change.
        """
        return self._encode(image, image_format)

    def encode_batch(self, images: Sequence[ImageInput], image_format: str = "RGB") -> list[EncodedImage]:
        """Encode several images of any sizes in one call of the encoder, and return a handle for each.

        Arguments, errors and warnings are those of `set_image`, for each image. The image that is set does not change.
        """
        return self.encode_prepared([self._prepare(image, image_format, stacklevel=4) for image in images])

    def prepare(self, image: ImageInput, image_format: str = "RGB") -> PreparedImage:
        """Resize and normalize an image for `encode_prepared`; this does not use the model.

        Arguments, errors and warnings are those of `set_image`.
        """
        return self._prepare(image, image_format, stacklevel=3)

    @torch.no_grad()
    def encode_prepared(self, images: Sequence[PreparedImage]) -> list[EncodedImage]:
        """Encode images from `prepare` in one call of the encoder, and return a handle for each."""
        if not images:
            return []
        features = self.backend.encode(torch.cat([image.pixel_values for image in images]))
        return [
            EncodedImage(one, image.original_size, image.input_size)
            for one, image in zip(features.split(), images, strict=True)
        ]

    def set_image(self, image: ImageInput, image_format: str = "RGB") -> None:
        """Encode an image and make it the current one of this thread. After an error there is no current image.

        Args:
            image: An array, a tensor on any device or a nested list of layout HW, HWx1 (gray), HWx3 or HWx4 (alpha is
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
        prepared = self._prepare(image, image_format, stacklevel=4)
        with torch.no_grad():
            features = self.backend.encode(prepared.pixel_values)
        return EncodedImage(features, prepared.original_size, prepared.input_size)

    def _prepare(self, image: ImageInput, image_format: str, stacklevel: int) -> PreparedImage:
        rgb, notes = as_rgb(image, image_format)
        if notes:
            warnings.warn(f"image: {'; '.join(notes)}", ImageNote, stacklevel=stacklevel)
        pixel_values, input_size = preprocess(self.processor, rgb)
        return PreparedImage(pixel_values, (rgb.shape[0], rgb.shape[1]), input_size)

    def set_torch_image(self, transformed_image: torch.Tensor, original_image_size: tuple[int, ...]) -> None:
        """Encode an image that was resized before, and make it the current one of this thread.

        Args:
            transformed_image: [1, 3, h, w] RGB in [0, 255], not normalized, of any dtype and device, resized by
                `transform.apply_image` or `transform.apply_image_torch`.
            original_image_size: (height, width) of the image before it was resized.

        Raises:
            ValueError: The tensor has another shape or range, or does not fit the original size.
        """
        self._current.clear()
        self._current.set(self.encode_torch(transformed_image, original_image_size))

    def encode_torch(
        self, transformed_image: torch.Tensor, original_image_size: tuple[int, ...]
    ) -> EncodedImage:
        """Encode an image that was resized before, and return it as a handle.

        Arguments and errors are those of `set_torch_image`. The current image does not change.
        """
        pixel_values = preprocess_resized(self.processor, transformed_image)
        input_size = (transformed_image.shape[2], transformed_image.shape[3])
        original_size = self.transform.check_original_size(original_image_size, input_size)
        with torch.no_grad():
            features = self.backend.encode(pixel_values)
        return EncodedImage(features, original_size, input_size)

    def share_image(self, other: Predictor) -> None:
        """Take over the encoded image of another predictor whose model has the same encoder.

        Raises:
            RuntimeError: No image is set there.
        """
        self._current.set(other.image)

    def reset_image(self) -> None:
        """Forget the current image of this thread."""
        self._current.clear()

    @property
    def image(self) -> EncodedImage:
        """The current encoded image of this thread.

        Raises:
            RuntimeError: No image is set, or several threads have set one and this thread has not.
        """
        image = self._current.get()
        if image is None:
            raise RuntimeError("no image: call set_image before this")
        return image

    @property
    def is_image_set(self) -> bool:
        """Whether this thread has a current image."""
        return self._current.get() is not None

    @property
    def features(self) -> torch.Tensor:
        """Embedding of the image, [1, C, h, w] on the model's device.

        Raises:
            RuntimeError: No image is set.
        """
        return self.image.features

    def get_image_embedding(self) -> torch.Tensor:
        """Return `features`; the name is that of `segment_anything`."""
        return self.features

    @property
    def device(self) -> torch.device:
        """Device of the model; the CPU for a backend of another runtime. Prompts may be on any device."""
        return self.backend.model.device if isinstance(self.backend, TorchBackend) else torch.device("cpu")

    @property
    def model(self) -> OfficialModel:
        """The model under the names of `segment_anything`; `backend.model` is the `SamModel` itself."""
        return OfficialModel(self)

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the current image; (0, 0) without one."""
        image = self._current.get()
        return (0, 0) if image is None else image.original_size

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the resized image within the padded square; (0, 0) without one."""
        image = self._current.get()
        return (0, 0) if image is None else image.input_size

    def _resolve(self, image: EncodedImage | None) -> EncodedImage:
        """Return the `image` argument of a call, or the current image for None."""
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
            multimask_output: Return three masks if true, for prompts as ambiguous as a single point; else one.
            return_logits: Return the masks before thresholding.
            image: The image, from `encode`; None for the current one.

        Returns:
            masks: [C, H, W] bool, or float32 logits, at the size of the original image.
            iou_predictions: [C] float32, the model's own estimate of each mask's IoU.
            low_res_masks: [C, 4h, 4w] float32 logits (256 x 256 for SAM-B/L/H), for `mask_input` of a later call.

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
            labels: [P, N], 1 for a point on the object and 0 for one beside it.
            mask_inputs: [P, 4h, 4w] logits.
            multimask_output: Return three masks a prompt if true, else one.
            return_logits: Return the masks before thresholding.
            image: The image, from `encode`; None for the current one.

        Returns:
            masks: [P, C, H, W] bool, or float32 logits, at the size of the original image.
            iou_predictions: [P, C] float32.
            low_res_masks: [P, C, 4h, 4w] float32 logits.

        Raises:
            RuntimeError: No image is set.
            ValueError: As for `predict`, the numbers of prompts differ, or the model's output is not finite.
        """
        image = self._resolve(image)
        prompts = _prompts_in(image, boxes=boxes, points=points, labels=labels, mask_inputs=mask_inputs)
        return self._predict(prompts, image, multimask_output, return_logits)

    def predict_torch(
        self,
        point_coords: torch.Tensor | None,
        point_labels: torch.Tensor | None,
        boxes: torch.Tensor | None = None,
        mask_input: torch.Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        image: EncodedImage | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predict the masks of P prompts that `transform` has scaled to the model's input.

        `predict_batch` does the same for prompts in pixels of the original image.

        Args:
            point_coords: [P, N, 2] x, y in pixels of the resized image, from `transform.apply_coords_torch`.
            point_labels: [P, N], 1 for a point on the object and 0 for one beside it.
            boxes: [P, 4] xyxy in pixels of the resized image, from `transform.apply_boxes_torch`.
            mask_input: [P, 1, 4h, 4w] logits of an earlier call.
            multimask_output: Return three masks a prompt if true, else one.
            return_logits: Return the masks before thresholding.
            image: The image, from `encode`; None for the current one.

        Returns:
            masks: [P, C, H, W] bool, or float32 logits, at the size of the original image.
            iou_predictions: [P, C] float32.
            low_res_masks: [P, C, 4h, 4w] float32 logits.

        Raises:
            RuntimeError: No image is set.
            ValueError: As for `predict_batch`; points and boxes are checked against the resized image.
        """
        image = self._resolve(image)
        mask_inputs = None
        if mask_input is not None:
            mask_inputs = to_array(mask_input, "mask input")
            if mask_inputs.ndim != 4 or mask_inputs.shape[1] != 1:
                raise ValueError(
                    f"mask input: expected shape [P, 1, 4h, 4w], got {shorten(tuple(mask_inputs.shape))}"
                )
            mask_inputs = mask_inputs[:, 0]
        prompts = Prompts.from_image(
            image.input_size,
            image.input_size,
            boxes=boxes,
            points=point_coords,
            labels=point_labels,
            mask_inputs=mask_inputs,
            mask_size=image.mask_size,
            frame="resized image",
        )
        return self._predict(prompts, image, multimask_output, return_logits)

    def _predict(
        self, prompts: Prompts, image: EncodedImage, multimask_output: bool, return_logits: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return masks [P, C, H, W], predicted IoUs [P, C] and logits [P, C, 4h, 4w]."""
        chunks = list(self._decode(prompts, image, multimask_output, self.prompts_at_once))
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
        prompts_at_once: int | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Predict the low-resolution logits of P prompts, a chunk at a time.

        The prompts are checked before the first chunk. Other arguments and the errors are those of `predict_batch`.

        Args:
            boxes: [P, 4] xyxy in pixels of the original image.
            points: [P, N, 2] x, y in pixels of the original image.
            labels: [P, N], 1 for a point on the object and 0 for one beside it.
            mask_inputs: [P, 4h, 4w] logits.
            multimask_output: Return three masks a prompt if true, else one.
            image: The image, from `encode`; None for the current one.
            prompts_at_once: Prompts per chunk; None for the predictor's own number.

        Returns:
            An iterator over logits [p, C, 4h, 4w] and predicted IoUs [p, C], both float32, in the order of the
            prompts; a single chunk with p = 0 if there is no prompt. `upscale` turns the logits into masks.
        """
        image = self._resolve(image)
        at_once = self.prompts_at_once if prompts_at_once is None else prompts_at_once
        if at_once < 1:
            raise ValueError(f"prompts_at_once: expected at least 1, got {at_once}")
        prompts = _prompts_in(image, boxes=boxes, points=points, labels=labels, mask_inputs=mask_inputs)
        return self._decode(prompts, image, multimask_output, at_once)

    def _decode(
        self, prompts: Prompts, image: EncodedImage, multimask_output: bool, at_once: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if len(prompts) == 0:
            return iter([self._decode_nothing(image, multimask_output)])
        return self._decode_chunks(image.encoding, prompts, multimask_output, at_once)

    @torch.no_grad()
    def _decode_nothing(
        self, image: EncodedImage, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the empty results of no prompt. Only the decoder itself knows their shapes and device."""
        height, width = image.input_size
        anything = Prompts(boxes=torch.tensor([[0.0, 0.0, float(width), float(height)]]))
        low_res, ious = self.backend.decode(image.encoding, anything, multimask_output)
        return low_res[:0], ious[:0]

    def _decode_chunks(
        self, features: Features, prompts: Prompts, multimask_output: bool, at_once: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(prompts), at_once):
            chunk = prompts[start : start + at_once]
            # Not around the yield: the caller's code would run without gradients too.
            with torch.no_grad():
                decoded = self.backend.decode(features, chunk, multimask_output)
            yield decoded

    @torch.no_grad()
    def upscale(
        self,
        low_res_masks: torch.Tensor,
        *,
        return_logits: bool = False,
        image: EncodedImage | None = None,
    ) -> torch.Tensor:
        """Upscale low-resolution logits to masks of the original image.

        Args:
            low_res_masks: [P, C, 4h, 4w] float32 logits.
            return_logits: Return logits instead of masks.
            image: The image, from `encode`; None for the current one.

        Returns:
            [P, C, H, W], bool (logit > 0) or float32.

        Raises:
            RuntimeError: No image is set.
        """
        image = self._resolve(image)
        return upscale_logits(
            self.processor,
            low_res_masks,
            image.original_size,
            image.input_size,
            return_logits=return_logits,
        )


def _prompts_in(image: EncodedImage, **kinds: Any) -> Prompts:
    """Check prompts in pixels of an image and scale them to the model's input."""
    return Prompts.from_image(image.original_size, image.input_size, mask_size=image.mask_size, **kinds)


def check_finite(low_res: torch.Tensor, predicted: torch.Tensor) -> None:
    """Raise ValueError if a model's logits or predicted IoUs hold NaN or infinity."""
    if not (torch.isfinite(low_res).all() and torch.isfinite(predicted).all()):
        raise ValueError("model: expected finite masks and predicted IoUs, got NaN or infinity")
