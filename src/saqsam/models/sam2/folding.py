"""Fold the decoder's convolutions of high-resolution features into the encoder's, and undo it.

The two finest levels of SAM 2's feature pyramid are 1x1 convolutions to 256 channels (`neck.convs.3` and `.2`), which
the mask decoder maps on to 32 and 64 channels by another 1x1 convolution (`conv_s0` and `conv_s1`) with nothing between
them. One convolution does the same: for SAM 2.1 tiny at 1024 px that saves 2.8 of 148 billion multiply-accumulates, and
a map of 64 MB. Only the last bits of the features change. The neck's convolution may have a larger kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saqsam.models.structure import replace_module

FOLDED = {
    "vision_encoder.neck.convs.3": "mask_decoder.conv_s0",
    "vision_encoder.neck.convs.2": "mask_decoder.conv_s1",
}
"""Convolutions of SAM 2's neck, and those of the decoder that are folded into them."""


@torch.no_grad()
def fold(model: Any, names: Mapping[str, str] = FOLDED) -> None:
    """Fold the convolutions of a float model in place; a folded model stays as it is.

    Args:
        model: Model of transformers, on any device including meta.
        names: Convolutions of the neck, and the 1x1 convolutions that read them.
    """
    for name, second, first in _pairs(model, names):
        side, around = first.kernel_size[0], first.padding[0]
        folded = nn.Conv2d(first.in_channels, second.out_channels, side, padding=around, device="meta")
        folded = folded.to(first.weight.dtype)
        assert first.bias is not None
        assert second.bias is not None
        reader = second.weight[:, :, 0, 0].double()
        weight = torch.einsum("po,oikl->pikl", reader, first.weight.double())
        folded.weight = nn.Parameter(weight.to(first.weight))
        folded.bias = nn.Parameter((reader @ first.bias.double() + second.bias.double()).to(first.weight))
        replace_module(model, name, folded.train(first.training))
        replace_module(model, names[name], nn.Identity())


def unfold(
    tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], names: Mapping[str, str] = FOLDED
) -> dict[str, Tensor]:
    """Return the tensors of a plain model that computes the same as a folded one.

    The first channels of a level of the pyramid hold the folded features, and the decoder's convolution selects them.

    Args:
        tensors: State dict of a folded float model.
        expected: Shapes of the plain model's tensors.
        names: As for `fold`.
    """
    plain = dict(tensors)
    for first, second in names.items():
        if f"{second}.weight" in plain:
            continue
        weight, bias = plain[f"{first}.weight"], plain[f"{first}.bias"]
        for name, value in ((f"{first}.weight", weight), (f"{first}.bias", bias)):
            plain[name] = value.new_zeros(expected[name])
            plain[name][: len(value)] = value
        selection = weight.new_zeros(expected[f"{second}.weight"])
        selection[:, : len(weight), 0, 0] = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        plain[f"{second}.weight"] = selection
        plain[f"{second}.bias"] = torch.zeros_like(bias)
    return plain


def _pairs(model: Any, names: Mapping[str, str]) -> Iterator[tuple[str, nn.Conv2d, nn.Conv2d]]:
    """Yield the name of each convolution to fold into, the decoder's convolution, and the neck's."""
    for name, reader in names.items():
        second = model.get_submodule(reader)
        if isinstance(second, nn.Conv2d):
            first = model.get_submodule(name)
            assert isinstance(first, nn.Conv2d)
            yield name, second, first
