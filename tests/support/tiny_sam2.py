"""A tiny `Sam2Model` with random weights that behave like trained ones, see `tiny_sam`."""

import torch
from transformers import Sam2Config, Sam2Model

from saqsam.models.processing import build_processor
from support.tiny_sam import fill_random

IMAGE_SIZE = 128
GRID = IMAGE_SIZE // 16


def tiny_sam2_config(image_size: int = IMAGE_SIZE, **decoder: object) -> Sam2Config:
    """128 px, stages of 32, 16, 8 and 4 cells per side, 6 blocks, widths 16 to 128.

    The windows of the third and fourth stage, 6 and 3, do not divide the grid, so windows are padded there. Block 3 is
    global.
    """
    widths = [16, 32, 64, 128]
    return Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 16,
                "image_size": [image_size, image_size],
                "blocks_per_stage": [1, 1, 3, 1],
                "embed_dim_per_stage": widths,
                "num_attention_heads_per_stage": [1, 2, 2, 4],
                "window_size_per_stage": [8, 4, 6, 3],
                "window_positional_embedding_background_size": [4, 4],
                "global_attention_blocks": [3],
                "mlp_ratio": 2.0,
            },
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[image_size // (4 << level)] * 2 for level in range(3)],
            "fpn_hidden_size": 32,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": image_size},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
            **decoder,
        },
    )


def tiny_sam2(seed: int = 0, config: Sam2Config | None = None) -> Sam2Model:
    """Return a float32 `Sam2Model` in eval mode on the CPU, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        model = Sam2Model(tiny_sam2_config() if config is None else config)
    generator = torch.Generator().manual_seed(seed)
    fill_random(model, generator)
    with torch.no_grad():
        model.no_memory_embedding.mul_(0.2)
        positions = torch.randn(model.shared_image_embedding.positional_embedding.shape, generator=generator)
        model.shared_image_embedding.positional_embedding.copy_(positions)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(positions)
    return model.eval()


def tiny_sam2_processor(config: Sam2Config | None = None) -> object:
    """Return the processor that goes with a tiny configuration."""
    return build_processor(tiny_sam2_config() if config is None else config)


def tiny_sam2_pixels(batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Normalized noise with smooth structure, float32 [B, 3, 128, 128]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((batch, 3, 8, 8), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    return smooth + 0.2 * torch.randn(smooth.shape, generator=generator)
