"""A tiny `SamModel` with random weights that behave like trained ones: shared by all tests.

`transformers` initializes SAM for loading, not for use: the vision encoder's weights have std 1e-10,
relative positions and position embeddings are zero, and the random Fourier features are scaled by
``hidden_size / 2``, so that neighboring pixels look unrelated. On such a model most of what is measured is
constant. Here every tensor is drawn so that activations keep a standard deviation near one and attention
is neither uniform nor one-hot.
"""

import math

import torch
from torch import nn
from transformers import SamConfig, SamImageProcessorPil, SamModel, SamProcessor

IMAGE_SIZE = 64
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE


def tiny_config() -> SamConfig:
    """64 px, patch 8 (8x8 grid), 4 layers of width 32 in two stages (windowed, global), 2 heads.

    The window of 3 does not divide the grid of 8, so windowed layers pad to 9x9. Low-resolution masks are
    32x32.
    """
    return SamConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "mlp_ratio": 2.0,
            "mlp_dim": 64,
            "window_size": 3,
            "global_attn_indexes": [1, 3],
            "num_pos_feats": 16,
            "initializer_range": 0.02,
        },
        prompt_encoder_config={
            "hidden_size": 32,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "mask_input_channels": 16,
        },
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
        },
    )


def tiny_sam(seed: int = 0, config: SamConfig | None = None) -> SamModel:
    """A float32 `SamModel` in eval mode on the CPU, the same for the same seed; global RNG untouched."""
    with torch.random.fork_rng(devices=[]):
        model = SamModel(tiny_config() if config is None else config)
    generator = torch.Generator().manual_seed(seed)
    fill_random(model, generator)
    return model.eval()


@torch.no_grad()
def fill_random(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter of `model` in place, in the order of `named_parameters`.

    Matrices and kernels get std 1 / sqrt(fan in), layer-norm gains 1 +- 0.1, biases 0.05, relative
    positions and position embeddings 0.2, Fourier features and token embeddings 1. Works on `SamModel` and on
    the official `Sam`, whose parameter names say the same things.
    """
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if name.endswith("positional_embedding"):
            std, mean = 1.0, 0.0
        elif "rel_pos" in name or "pos_embed" in name:
            std, mean = 0.2, 0.0
        elif name.endswith(".bias"):
            std, mean = 0.05, 0.0
        elif parameter.dim() == 1:
            std, mean = 0.1, 1.0  # a layer norm's gain
        elif "iou_token" in name or "mask_tokens" in name or "no_mask_embed" in name or "point_embed" in name:
            std, mean = 1.0, 0.0
        else:
            transposed = "upscal" in name  # ConvTranspose2d weights are (in, out, kh, kw), stride = kernel
            fan_in = parameter.shape[0] if transposed else parameter[0].numel()
            std, mean = 1.0 / math.sqrt(fan_in), 0.0
        parameter.copy_(mean + std * values)


def tiny_processor() -> SamProcessor:
    """The processor that goes with `tiny_config`: longest edge and padding 64, masks 32."""
    return SamProcessor(
        SamImageProcessorPil(
            size={"longest_edge": IMAGE_SIZE},
            pad_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            mask_size={"longest_edge": 4 * GRID},
            mask_pad_size={"height": 4 * GRID, "width": 4 * GRID},
        )
    )


def tiny_pixels(batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Normalized noise with smooth structure, float32 (B, 3, 64, 64)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((batch, 3, 8, 8), generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    return smooth + 0.2 * torch.randn(smooth.shape, generator=generator)
