"""A tiny `Sam3TrackerModel` with random weights that behave like trained ones, see `tiny_sam`."""

from typing import Any

import torch
from transformers import Sam3TrackerConfig, Sam3TrackerModel

from saqsam.models.processing import build_processor
from saqsam.models.sam3_tracker.neck import drop_unread_level
from support.tiny_sam import fill_random

IMAGE_SIZE = 112
GRID = IMAGE_SIZE // 14


def tiny_sam3_tracker_config(*, window: int = 4, **decoder: object) -> Sam3TrackerConfig:
    """112 px, 8 x 8 patches, 4 blocks of width 32 in two units, 2 heads; positions are tiled from 3 x 3 patches.

    The neck has the four levels of transformers' default.

    Args:
        window: Side of the windows of blocks 0 and 2.
        decoder: Fields of the mask decoder.
    """
    return Sam3TrackerConfig(
        vision_config={
            "model_type": "sam3_vision_model",
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "image_size": IMAGE_SIZE,
                "patch_size": 14,
                "window_size": window,
                "global_attn_indexes": [1, 3],
                "pretrain_image_size": 42,
            },
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": IMAGE_SIZE, "patch_size": 14},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
            **decoder,
        },
    )


def tiny_sam3_tracker(
    seed: int = 0, config: Sam3TrackerConfig | None = None, *, all_levels: bool = False
) -> Sam3TrackerModel:
    """Return a float32 `Sam3TrackerModel` of transformers in eval mode on the CPU, the same for the same seed.

    Args:
        seed: Seed of the weights.
        config: Configuration; None for the tiny one.
        all_levels: Keep the level of the neck that nothing reads, as in transformers' own models.
    """
    with torch.random.fork_rng(devices=[]):
        model = Sam3TrackerModel(tiny_sam3_tracker_config() if config is None else config)
    generator = torch.Generator().manual_seed(seed)
    fill_random(model, generator)
    with torch.no_grad():
        model.no_memory_embedding.mul_(0.5)
        model.vision_encoder.backbone.embeddings.position_embeddings.mul_(0.5)
        positions = torch.randn(model.shared_image_embedding.positional_embedding.shape, generator=generator)
        model.shared_image_embedding.positional_embedding.copy_(positions)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(positions)
    if not all_levels:
        drop_unread_level(model)
    return model.eval()


def tiny_sam3_tracker_processor() -> Any:
    """Return the processor that goes with the tiny configuration."""
    return build_processor(tiny_sam3_tracker_config())


def tiny_sam3_tracker_pixels(batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Normalized noise with smooth structure, float32 [B, 3, 112, 112]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((batch, 3, 8, 8), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    return smooth + 0.2 * torch.randn(smooth.shape, generator=generator)
