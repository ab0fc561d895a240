"""Models with few layers, and with the input and output sizes of the published ones, which many clients expect."""

import functools

from transformers import Sam2Config, Sam2Model, SamConfig, SamHQConfig, SamHQModel, SamModel, SamProcessor

from saqsam.models.mobile_sam.configuration import MobileSamConfig
from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.models.processing import build_processor
from saqsam.models.sam.configuration import sam_fields
from support.tiny_mobile_sam import tiny_config as tiny_mobile_sam_config
from support.tiny_mobile_sam import tiny_mobile_sam
from support.tiny_sam import tiny_sam
from support.tiny_sam2 import tiny_sam2, tiny_sam2_config
from support.tiny_sam_hq import tiny_sam_hq


def published_config() -> SamConfig:
    """1,024 px, patch 16, embedding of 256 channels; two layers of width 32, the second with global attention."""
    return SamConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "mlp_dim": 64,
            "global_attn_indexes": [1],
            "num_pos_feats": 128,
        },
        prompt_encoder_config={"hidden_size": 256},
        mask_decoder_config={
            "hidden_size": 256,
            "mlp_dim": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 16,
        },
    )


@functools.cache
def published_sam() -> SamModel:
    """One model for all tests, to be changed by none."""
    return tiny_sam(config=published_config())


def published_processor() -> SamProcessor:
    """The processor that goes with `published_config`."""
    return build_processor(published_config())


def published_sam2_config() -> Sam2Config:
    """1,024 px, features of 32, 64 and 256 channels; the encoder is that of `tiny_sam2_config`."""
    config = tiny_sam2_config(1024, hidden_size=256).to_dict()
    config["vision_config"]["fpn_hidden_size"] = 256
    config["prompt_encoder_config"]["hidden_size"] = 256
    return Sam2Config.from_dict(config)


@functools.cache
def published_sam2() -> Sam2Model:
    """One model for all tests, to be changed by none."""
    return tiny_sam2(config=published_sam2_config())


@functools.cache
def published_mobile_sam() -> MobileSamModel:
    """The decoder of `published_sam` behind the tiny TinyViT at 1,024 px. One model for all tests."""
    decoder, tiny = published_config(), tiny_mobile_sam_config(1024)
    vision = {**tiny.vision_config.to_dict(), "output_channels": 256, "num_pos_feats": 128}
    config = MobileSamConfig(
        vision_config=vision,
        prompt_encoder_config=decoder.prompt_encoder_config.to_dict(),
        mask_decoder_config=decoder.mask_decoder_config.to_dict(),
    )
    return tiny_mobile_sam(config=config)


@functools.cache
def published_sam_hq() -> SamHQModel:
    """`published_sam` with the layers of the high-quality mask. One model for all tests."""
    fields = sam_fields(published_config())
    decoder = {**fields["mask_decoder_config"], "vit_dim": 32, "num_attention_heads": 8}
    config = SamHQConfig(
        vision_config=fields["vision_config"],
        prompt_encoder_config=fields["prompt_encoder_config"],
        mask_decoder_config=decoder,
    )
    return tiny_sam_hq(config=config)
