"""A small official SAM of random weights, and the same as a `SamModel`."""

from functools import partial

import torch
from transformers import SamModel

from saqsam.models.building import build_model
from saqsam.models.sam.official import from_official
from support.tiny_sam import fill_random
from support.torchvision_stub import import_segment_anything

import_segment_anything()
from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

IMAGE, PATCH, WIDTH = 128, 16, 32
GRID = IMAGE // PATCH


def small_official(*, seed: int = 0, iou_head_depth: int = 3, window: int = 3) -> Sam:
    """Official SAM of 128 px and 4 layers; a window of 3 does not divide the grid of 8, so windows pad."""
    official = Sam(
        image_encoder=ImageEncoderViT(
            depth=4,
            embed_dim=WIDTH,
            img_size=IMAGE,
            mlp_ratio=4,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=2,
            patch_size=PATCH,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=(1, 3),
            window_size=window,
            out_chans=WIDTH,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=WIDTH,
            image_embedding_size=(GRID, GRID),
            input_image_size=(IMAGE, IMAGE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=64, num_heads=8),
            transformer_dim=WIDTH,
            iou_head_depth=iou_head_depth,
            iou_head_hidden_dim=24,
        ),
    )
    generator = torch.Generator().manual_seed(seed)
    fill_random(official, generator)
    gaussian = official.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    gaussian.copy_(torch.randn(gaussian.shape, generator=generator))
    return official.eval()


def convert(official: Sam) -> SamModel:
    config, tensors = from_official(official.state_dict())
    return build_model(config, tensors, source="test")
