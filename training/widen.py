"""Double the width of prompt encoder and mask decoder without changing what the model computes.

    python training/widen.py NARROW WIDE

After Net2WiderNet (arXiv 1511.05641): every channel appears twice, and each layer that reads a pair of copies splits
its weight between them, unevenly and at random, so that training tells the copies apart. Normalization sees the same
mean and variance, and an attention has every head twice. Used once, between the training of sam-mini at width 128
and that at 256; a training from scratch starts wide.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from transformers import SamModel

from forward import sam_mini_config
from saqsam.models.processing import build_processor

UNEVEN = 0.5
"""Standard deviation of the split, relative to the even one."""


def copies(size: int, group: int) -> Tensor:
    """Return the old channel of each new one [2 * size], where groups of `group` channels are doubled in place."""
    return torch.arange(size).reshape(-1, 1, group).expand(-1, 2, group).flatten()


def split(weight: Tensor, axis: int, index: Tensor) -> Tensor:
    """Double an input axis, so that the two weights of a pair add up to the old one."""
    wide = weight.index_select(axis, index)
    noise = torch.randn_like(weight) * UNEVEN
    seen = torch.zeros(weight.shape[axis], dtype=torch.long)
    sign = torch.empty(len(index))
    for new, old in enumerate(index.tolist()):
        sign[new] = 1.0 if seen[old] == 0 else -1.0
        seen[old] += 1
    shape = [1] * weight.dim()
    shape[axis] = -1
    return 0.5 * wide * (1 + noise.index_select(axis, index) * sign.reshape(shape))


@torch.no_grad()
def widen(narrow: SamModel) -> SamModel:
    """Return a model that computes the same function at twice the width of prompt encoder and decoder."""
    old_width = narrow.config.mask_decoder_config.hidden_size
    wide = SamModel(sam_mini_config(2 * old_width))
    # Channels of the embedding: the Fourier features are all sines, then all cosines.
    state, source = wide.state_dict(), narrow.state_dict()
    embedding = copies(old_width, old_width // 2)
    for name, target in state.items():
        value = source[name]
        for axis in range(value.dim()):
            if target.shape[axis] == value.shape[axis]:
                continue
            size = value.shape[axis]
            index = embedding if size == old_width else copies(size, size)
            if "attn" in name and (".q_proj" in name or ".k_proj" in name or ".v_proj" in name):
                index = embedding if axis == 1 else copies(size, size)
            if "attn" in name and ".out_proj" in name and axis == 1:
                index = copies(size, size)
            # Convolutions that upscale hold their inputs first; everything else reads along its second axis.
            reads = axis == (0 if "upscale_conv" in name and value.dim() == 4 else 1)
            reads &= value.dim() > 1 and "embedding" not in name and "embed.weight" not in name
            reads &= not name.endswith(("token.weight", "tokens.weight")) and "point_embed." not in name
            value = split(value, axis, index) if reads else value.index_select(axis, index)
        if "hypernetworks" in name and "proj_out" in name:
            value = value * 0.5  # its product with the upscaled features adds up over twice the channels
        target.copy_(value)
    return wide


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("narrow", type=Path)
    parser.add_argument("wide", type=Path)
    return parser


def main() -> None:
    """Run the command line."""
    args = parser().parse_args()
    torch.manual_seed(0)
    model = widen(SamModel.from_pretrained(args.narrow, dtype=torch.float32))
    model.save_pretrained(args.wide)
    build_processor(model.config).save_pretrained(args.wide)


if __name__ == "__main__":
    main()
