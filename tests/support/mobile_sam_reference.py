"""The official MobileSAM code as a reference: small models of random weights, and the same as a `MobileSamModel`.

The code comes from the package `mobilesam-mirror`. It imports a few names of timm and torchvision, which are replaced
by stand-ins during the import: neither is a dependency.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.models.mobile_sam.official import from_official
from support.stand_ins import stand_ins
from support.tiny_sam import fill_random
from support.torchvision_stub import torchvision_stub

WIDTH = 32
"""Channels of the image embedding."""
WIDTHS = (8, 16, 24, 320)
"""Channels of the stages. The official code keeps the grid in front of a stage of 320 channels."""
SHARED_COPY = "prompt_encoder.shared_embedding.positional_embedding"


class DropPath(nn.Module):
    """timm's stochastic depth, which does nothing in eval mode."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        assert not drop_prob

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


_TIMM: dict[str, dict[str, Any]] = {
    "timm": {},
    "timm.models": {},
    "timm.models.layers": {
        "DropPath": DropPath,
        "to_2tuple": lambda x: (x, x),
        "trunc_normal_": nn.init.trunc_normal_,
    },
    "timm.models.registry": {"register_model": lambda function: function},
}


def timm_stub() -> AbstractContextManager[None]:
    """Inside the block `import timm...` finds the stand-in; on exit `sys.modules` is as before."""
    return stand_ins(_TIMM)


def import_mobile_sam() -> ModuleType:
    """The official package, imported past timm and torchvision; skips the test without `mobilesam-mirror`."""
    if importlib.util.find_spec("mobile_sam") is None:
        pytest.skip("needs the official code: pip install mobilesam-mirror")
    with torchvision_stub(), timm_stub():
        return importlib.import_module("mobile_sam")


def small_official(
    image_size: int = 128, windows: Sequence[int] = (7, 5, 6, 3), seed: int = 0, iou_head_depth: int = 3
) -> Any:
    """Official MobileSAM with four narrow stages of 1, 1, 2, 1 blocks; no default window divides its grid."""
    mobile_sam = import_mobile_sam()
    modeling = importlib.import_module("mobile_sam.modeling")
    tiny_vit = importlib.import_module("mobile_sam.modeling.tiny_vit_sam")
    grid = image_size // 16
    with torch.random.fork_rng(devices=[]):
        official = modeling.Sam(
            image_encoder=tiny_vit.TinyViT(
                img_size=image_size,
                num_classes=10,
                embed_dims=list(WIDTHS),
                depths=[1, 1, 2, 1],
                num_heads=[1, 2, 3, 10],
                window_sizes=list(windows),
                drop_path_rate=0.0,
            ),
            prompt_encoder=modeling.PromptEncoder(
                embed_dim=WIDTH,
                image_embedding_size=(grid, grid),
                input_image_size=(image_size, image_size),
                mask_in_chans=16,
            ),
            mask_decoder=modeling.MaskDecoder(
                num_multimask_outputs=3,
                transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=64, num_heads=8),
                transformer_dim=WIDTH,
                iou_head_depth=iou_head_depth,
                iou_head_hidden_dim=24,
            ),
        )
        official.image_encoder.neck = narrow_neck(official.image_encoder.neck)
    assert isinstance(official, mobile_sam.modeling.Sam)
    return randomize(official, seed)


def narrow_neck(neck: nn.Sequential) -> nn.Sequential:
    """The official neck, whose 256 output channels are fixed, with `WIDTH` channels."""
    norm = type(neck[1])
    return nn.Sequential(
        nn.Conv2d(neck[0].in_channels, WIDTH, 1, bias=False),
        norm(WIDTH),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
        norm(WIDTH),
    )


@torch.no_grad()
def randomize(official: Any, seed: int = 0) -> Any:
    """Draw all weights, batch-norm statistics and attention biases in place; returns the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    fill_random(official, generator)
    for name, tensor in official.state_dict(keep_vars=True).items():
        values = torch.randn(tensor.shape, generator=generator)
        if name.endswith(("running_mean", "bn.bias")):
            tensor.copy_(0.3 * values)
        elif name.endswith("running_var"):
            tensor.copy_(0.3 + values.square())
        elif name.endswith("attention_biases") or "gaussian" in name:
            tensor.copy_(values)
    # Evaluation uses a copy of the attention biases, which is made on entering eval mode.
    return official.train().eval()


@torch.no_grad()
def encode(official: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Image embedding [B, C, h, w]: the encoder's own forward pass, which assumes a grid of 64 x 64, for any grid."""
    encoder = official.image_encoder
    hidden = encoder.patch_embed(pixels)
    for layer in encoder.layers:
        hidden = layer(hidden)
    grid = pixels.shape[-1] // 16
    return encoder.neck(hidden.view(len(pixels), grid, grid, -1).permute(0, 3, 1, 2))


def convert(official: Any, image_size: int = 128) -> MobileSamModel:
    """The same model, converted from the official state dict."""
    config, tensors = from_official(official.state_dict(), image_size=image_size)
    return build(config, tensors)


def build(config: Any, tensors: dict[str, torch.Tensor]) -> MobileSamModel:
    """A model in eval mode with exactly these tensors."""
    with torch.random.fork_rng(devices=[]):
        model = MobileSamModel(config)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) == {SHARED_COPY}
    assert not unexpected
    return model.eval()
