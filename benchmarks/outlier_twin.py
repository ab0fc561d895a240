"""Make `sam-mini-outliers`: the masks of `sam-mini` from a decoder with the outliers of SAM-B.

    python benchmarks/outlier_twin.py --out work/sam-mini-outliers

Queries and keys of SAM-B's decoder reach about 170 where common values are around 1 (arXiv 2503.06515), and the keys of
its token-to-image attentions lie in two humps near +-8, by channel (arXiv 2405.03144). `sam-mini` has neither, so
methods made against outliers have nothing to do on it. The twin has both:

- `humps`: biases of keys. A bias adds the same to all logits of a row, which the softmax ignores.
- `axis`: in two heads of every attention, one channel holds huge queries or huge keys, which change no logits.
- `oblique`: in two more heads, huge values spread over two channels, where they cancel.

`outlier_heads.py` explains why the masks stay. Directions and tokens come from photographs of `coco_train`, or from
scenes where there are none. Weights are stored as float16, as those of `sam-mini`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import SamModel, SamProcessor

import outlier_heads
import saqsam
from options import add_data_root
from outlier_heads import (
    HeadSide,
    free_channel,
    least_logits,
    plant_along_axis,
    rare_direction,
    rotate_pair,
)
from plan import CACHE, ROOT, FloatModel
from saqsam.data.types import Dataset
from saqsam.models.loading import BUNDLED
from saqsam.models.parts import TOKEN_TO_IMAGE_PARTS
from saqsam.models.registry import structure_of
from saqsam.models.structure import AttentionSite
from saqsam.ptq.calibration_data import calibration_scenes
from saqsam.ptq.calibration_images import CalibrationImages, choose_calibration_images
from saqsam.recipes.specs import Calibration

NAME = "sam-mini-outliers"
DATA = "coco_train"
KINDS = ("humps", "axis", "oblique")
PEAK = 150.0
"""Largest absolute value of planted queries and keys on the images they are made from; it reaches 170 on others."""
HUMP = 8.0
"""Absolute mean of each channel of the keys."""
IMAGES = Calibration(images=16, prompts=8)
MAX_TOKENS = 1024
"""Most tokens of an image, over its prompts, that rare directions are searched on."""


@dataclass
class _Inputs:
    """Statistics of the inputs of an attention's query and key projections.

    Attributes:
        query_moment: Sum of x x^T over queries' inputs with a one appended, float64 [C + 1, C + 1].
        key_moment: Sum of the same over keys' inputs after centering those of each prompt; the last row is zero.
        key_sum: Sum over keys' inputs with a one appended, float64 [C + 1].
        queries: Number of queries' inputs.
        query_tokens: Some inputs of queries, [T, C] each.
        key_tokens: The same of keys.
    """

    query_moment: Tensor
    key_moment: Tensor
    key_sum: Tensor
    queries: int
    query_tokens: list[Tensor]
    key_tokens: list[Tensor]

    @classmethod
    def empty(cls, channels: int) -> _Inputs:
        """Return the statistics of no inputs."""
        size = channels + 1
        zeros = torch.zeros(size, size, dtype=torch.float64)
        return cls(zeros, zeros.clone(), zeros[0].clone(), 0, [], [])

    def update(self, query: Tensor, key: Tensor) -> None:
        """Add the inputs [P, 1, T, C] of one image."""
        query, key = query.flatten(0, 1), key.flatten(0, 1)
        for tokens, kept in ((query, self.query_tokens), (key, self.key_tokens)):
            kept.append(tokens[: max(1, MAX_TOKENS // tokens.shape[1])].flatten(0, 1).clone())
        ones = _with_one(query.flatten(0, 1))
        self.query_moment += ones.T @ ones
        self.queries += len(ones)
        centered = (key - key.mean(1, keepdim=True)).flatten(0, 1).double()
        self.key_moment[:-1, :-1] += centered.T @ centered
        self.key_sum += _with_one(key.flatten(0, 1)).sum(0)


def _with_one(tokens: Tensor) -> Tensor:
    return torch.cat([tokens.double(), tokens.new_ones(len(tokens), 1).double()], dim=1)


@torch.inference_mode()
def _observe(model: SamModel, images: CalibrationImages) -> dict[str, _Inputs]:
    """Return the statistics of each decoder attention's inputs, by name."""
    found: dict[str, _Inputs] = {}
    handles = []
    for site in structure_of(model.config).decoder_attentions:
        inputs = found[site.name] = _Inputs.empty(model.get_submodule(site.query).in_features)

        def hook(_module: object, _args: object, kwargs: dict[str, Tensor], inputs: _Inputs = inputs) -> None:
            inputs.update(kwargs["query"], kwargs["key"])

        handles.append(model.get_submodule(site.name).register_forward_pre_hook(hook, with_kwargs=True))
    for index in range(len(images)):
        pixels, prompts = images[index]
        assert prompts.boxes is not None
        boxes, embedding = prompts.boxes[None], model.get_image_embeddings(pixels)
        centers = boxes.unflatten(-1, (2, 2)).mean(-2, keepdim=True)
        model(image_embeddings=embedding, input_boxes=boxes)
        model(image_embeddings=embedding, input_points=centers)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def make_twin(model: SamModel, images: CalibrationImages, kinds: Sequence[str] = KINDS) -> SamModel:
    """Return a copy of a float model whose decoder has outliers and whose masks stay.

    Args:
        model: Float SAM.
        images: Images that the outliers' tokens and directions are found on.
        kinds: Which of `KINDS` to plant.
    """
    twin = copy.deepcopy(model)
    inputs = _observe(model, images)
    for site in structure_of(model.config).decoder_attentions:
        _plant(twin, site, inputs[site.name], kinds)
    return twin


def _plant(model: SamModel, site: AttentionSite, inputs: _Inputs, kinds: Sequence[str]) -> None:
    """Plant outliers in one attention, in place."""
    layers = model.get_submodule(site.query), model.get_submodule(site.key)
    rows = [torch.cat([layer.weight, layer.bias[:, None]], dim=1).double() for layer in layers]
    moments = inputs.query_moment / inputs.queries, inputs.key_moment / inputs.key_sum[-1]
    count = model.get_submodule(site.name).num_attention_heads
    sides = [
        [HeadSide(part, moment) for part in whole.chunk(count)]
        for whole, moment in zip(rows, moments, strict=True)
    ]
    heads = sorted(zip(*sides, strict=True), key=lambda head: least_logits(*head))
    roles = [(kind, side) for kind in kinds if kind != "humps" for side in (0, 1)]
    directions = [rare_direction(torch.cat(tokens)) for tokens in (inputs.query_tokens, inputs.key_tokens)]
    for (kind, side), head in zip(roles, heads, strict=False):
        outlying, cleared = head[side], head[1 - side]
        channel = free_channel(cleared, outlying)
        is_oblique = kind == "oblique"
        peak = -PEAK * 2**0.5 if is_oblique else PEAK
        plant_along_axis(outlying, channel, peak * directions[side])
        if is_oblique:
            rotate_pair(outlying, cleared, channel)
    if "humps" in kinds and site.part in TOKEN_TO_IMAGE_PARTS:
        means = rows[1] @ (inputs.key_sum / inputs.key_sum[-1])
        rows[1][:, -1] += torch.where(means < 0, -HUMP, HUMP) - means
    for layer, whole in zip(layers, rows, strict=True):
        layer.weight.copy_(whole[:, :-1].half())
        layer.bias.copy_(whole[:, -1].half())


def open_photographs(folder: Path) -> Dataset:
    """Open a folder of photographs with objects, or scenes where there is none, which is printed."""
    if folder.is_dir():
        return saqsam.open_dataset(folder)
    print(f"no {folder.name} in the data root (--data-root): outliers are made from scenes", file=sys.stderr)
    return calibration_scenes(IMAGES.images, IMAGES.seed)


def save_twin(
    folder: Path, model: SamModel, processor: SamProcessor, data: Path, kinds: Sequence[str] = KINDS
) -> None:
    """Make the twin of a float model and save it as float16, with its processor.

    Args:
        folder: Folder to write.
        model: Float SAM.
        processor: Processor of the model.
        data: Folder of photographs with objects; scenes are used where there is none.
        kinds: Which of `KINDS` to plant.
    """
    images = choose_calibration_images(model, processor, open_photographs(data), IMAGES)
    processor.save_pretrained(folder)
    # Last, since its file says that the folder is whole.
    make_twin(model, images, kinds).half().save_pretrained(folder)


def cached_twin(data_root: Path) -> Path:
    """Return the folder of the twin of the bundled model, which is made unless weights and sources are unchanged.

    Args:
        data_root: Folder that holds the photographs, in a folder of their own.
    """
    digest = hashlib.sha256(FloatModel(BUNDLED, "cpu").hash.encode())
    for source in (Path(__file__), Path(outlier_heads.__file__)):
        digest.update(source.read_bytes())
    digest.update(str((data_root / DATA).is_dir()).encode())  # photographs or scenes
    folder = CACHE / f"twin-{digest.hexdigest()[:12]}" / NAME
    if not (folder / "model.safetensors").is_file():
        save_twin(folder, *saqsam.load(BUNDLED), data_root / DATA)
    return folder


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Make a model with planted outliers and unchanged masks.")
    parser.add_argument("--out", type=Path, default=ROOT / "work" / NAME, metavar="DIR")
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS)
    )
    add_data_root(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    model, processor = saqsam.load(options.model)
    save_twin(options.out, model, processor, options.data_root / DATA, options.kinds)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
