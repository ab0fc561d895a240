"""The view of a model that scripts for `segment_anything` use as `predictor.model`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from saqsam.inference.processing import MASK_THRESHOLD

if TYPE_CHECKING:
    from saqsam.inference.predictor import Predictor


@dataclass(frozen=True)
class OfficialImageEncoder:
    """The attribute of `segment_anything`'s image encoder that scripts read.

    Attributes:
        img_size: Side of the model's square input in pixels.
    """

    img_size: int


class OfficialModel:
    """Attributes of `segment_anything`'s `Sam`, and its call on a batch of images.

    Args:
        predictor: Runs the model. Its current image does not change.

    Attributes:
        image_format: Order of the channels that the model expects: `RGB`.
        mask_threshold: Logit above which a pixel belongs to a mask.
    """

    image_format = "RGB"
    mask_threshold = MASK_THRESHOLD

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    @property
    def device(self) -> torch.device:
        """Device of the model, as `Predictor.device`."""
        return self._predictor.device

    @property
    def image_size(self) -> int:
        """Side of the model's square input in pixels."""
        return self._predictor.transform.target_length

    @property
    def image_encoder(self) -> OfficialImageEncoder:
        """Holder of `img_size`, for scripts that read `model.image_encoder.img_size`."""
        return OfficialImageEncoder(self.image_size)

    def __call__(
        self, batched_input: Iterable[Mapping[str, Any]], multimask_output: bool
    ) -> list[dict[str, torch.Tensor]]:
        """Predict masks for prompts in several images.

        Args:
            batched_input: A mapping an image, with the keys
                - `image`: [3, h, w] RGB in [0, 255], resized by `ResizeLongestSide`;
                - `original_size`: (height, width) before resizing;
                - `point_coords` [P, N, 2] and `point_labels` [P, N], `boxes` [P, 4] and `mask_inputs` [P, 1, 4h, 4w],
                  at least one kind, in pixels of the resized image.
            multimask_output: Return three masks a prompt if true, else one.

        Returns:
            A dictionary an image: `masks` [P, C, H, W] bool, `iou_predictions` [P, C] float32 and `low_res_logits`
            [P, C, 4h, 4w] float32.

        Raises:
            ValueError: A key is missing or unknown, or as `Predictor.predict_torch`.
        """
        return [self._predict(record, multimask_output) for record in batched_input]

    def _predict(self, record: Mapping[str, Any], multimask_output: bool) -> dict[str, torch.Tensor]:
        known = {"image", "original_size", "point_coords", "point_labels", "boxes", "mask_inputs"}
        if not {"image", "original_size"} <= record.keys() <= known:
            names = ", ".join(sorted(map(str, record)))
            raise ValueError(
                f"batched_input: expected image, original_size and prompts ({', '.join(sorted(known))}), got {names}"
            )
        masks, ious, low_res = self._predictor.predict_torch(
            record.get("point_coords"),
            record.get("point_labels"),
            record.get("boxes"),
            record.get("mask_inputs"),
            multimask_output,
            image=self._predictor.encode_torch(record["image"][None], record["original_size"]),
        )
        return {"masks": masks, "iou_predictions": ious, "low_res_logits": low_res}
