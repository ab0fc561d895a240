"""The models that `train.py` trains, and how their forward passes and samples differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from transformers import Sam2Model, SamModel

import forward
import sam2_mini


@dataclass(frozen=True)
class Trainee:
    """A model to train.

    Attributes:
        name: Name of the model.
        frame: Side of its input in pixels.
        cell: Pixels per side of a cell of the embedding; a mask has four cells there per side.
        step: Cells between the places that a window may have in the frame.
        canvas: How the processor places a picture in the frame: "pad" at the bottom or right, or "stretch".
        build: Returns an untrained model.
        prepare: Replaces modules by ones that train faster and have the same state dict, and returns the model.
        encode: Returns the features of a window, a tensor or a tuple, given (model, pixels, top, left).
        embed_prompts: Returns the sparse embeddings, given (model, coords, labels).
        decode: Returns logits and IoUs, given (model, features, positions, sparse, mask_input).
    """

    name: str
    frame: int
    cell: int
    step: int
    canvas: Literal["pad", "stretch"]
    build: Callable[[], Any]
    prepare: Callable[[Any], Any]
    encode: Callable[..., Any]
    embed_prompts: Callable[..., Tensor]
    decode: Callable[..., tuple[Tensor, Tensor]]


SAM_MINI = Trainee(
    name="sam-mini",
    frame=256,
    cell=8,
    step=1,
    canvas="pad",
    build=lambda: SamModel(forward.sam_mini_config()),
    prepare=forward.use_folded_attention,
    encode=forward.encode,
    embed_prompts=forward.embed_prompts,
    decode=forward.decode,
)
SAM2_MINI = Trainee(
    name="sam2-mini",
    frame=sam2_mini.FRAME,
    cell=sam2_mini.CELL,
    # Windows of attention and the tiles of the position embedding begin where they do in the frame.
    step=2,
    canvas="stretch",
    build=lambda: Sam2Model(sam2_mini.sam2_mini_config()),
    prepare=sam2_mini.prepare,
    encode=sam2_mini.encode,
    embed_prompts=sam2_mini.embed_prompts,
    decode=sam2_mini.decode,
)
TRAINEES = {trainee.name: trainee for trainee in (SAM_MINI, SAM2_MINI)}
