"""A tiny `MobileSamModel` with random weights that behave like trained ones."""

from typing import Any

import torch

from saqsam.models.mobile_sam.configuration import MobileSamConfig
from saqsam.models.mobile_sam.model import MobileSamModel
from support.tiny_sam import fill_random


def tiny_config(image_size: int = 128, **vision: Any) -> MobileSamConfig:
    """128 px (grids of 32, 16, 8 and 8), stages of 8 to 32 channels and 1, 1, 2, 1 blocks; every window pads."""
    return MobileSamConfig(
        vision_config={
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 2, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "window_sizes": [7, 5, 6, 3],
            "output_channels": 32,
            "image_size": image_size,
            "num_pos_feats": 16,
            **vision,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": image_size, "patch_size": 16},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
            "layer_norm_eps": 1e-5,
        },
    )


def tiny_mobile_sam(seed: int = 0, config: MobileSamConfig | None = None) -> MobileSamModel:
    """A float32 model in eval mode on the CPU, the same for the same seed; global RNG untouched."""
    with torch.random.fork_rng(devices=[]):
        model = MobileSamModel(tiny_config() if config is None else config)
    generator = torch.Generator().manual_seed(seed)
    fill_random(model, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("attention_biases"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def pixels(batch: int = 1, image_size: int = 128, seed: int = 1) -> torch.Tensor:
    """Normalized noise, float32 (B, 3, S, S)."""
    return torch.randn((batch, 3, image_size, image_size), generator=torch.Generator().manual_seed(seed))
