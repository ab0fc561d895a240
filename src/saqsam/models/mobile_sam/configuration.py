"""Configuration of MobileSAM, registered with transformers as `mobile_sam`.

The defaults are those of the published model: a TinyViT-5M (arXiv 2207.10666) whose last patch merging keeps the grid,
so that a 1024-px image becomes 64 x 64 positions as in SAM v1.
"""

import math
from collections.abc import Sequence

from huggingface_hub.dataclasses import strict
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
)

PATCH_EMBEDDING_STRIDE = 4
"""Stride of the patch embedding: two convolutions of stride 2."""


@strict
class MobileSamVisionConfig(PreTrainedConfig):  # type: ignore[misc]
    """Configuration of MobileSAM's image encoder.

    Lists have one entry for each stage. Stage 0 consists of inverted bottlenecks without attention, so that its
    entries of `num_attention_heads` and `window_sizes` are unused; they are kept to match the published configuration.

    Attributes:
        hidden_sizes: Channels of each stage.
        depths: Blocks of each stage.
        num_attention_heads: Heads of each stage.
        window_sizes: Side of the attention windows of each stage, in positions of its grid.
        merge_strides: Stride of the patch merging after each stage but the last.
        expand_ratio: Ratio of the hidden channels of an inverted bottleneck to its width.
        mlp_ratio: Ratio of the hidden channels of an MLP to its width.
        local_conv_size: Side of the depthwise kernel between attention and MLP.
        output_channels: Channels of the image embedding.
        num_channels: Channels of the image.
        image_size: Side of the square input in pixels.
        num_pos_feats: Random frequencies of the positional embedding, half the prompt encoder's width.
        hidden_act: Activation of the encoder.
        layer_norm_eps: eps of the layer norms before attention and MLP. The neck's eps is 1e-6.
        initializer_range: Standard deviation of initial weights.
    """

    base_config_key = "vision_config"
    model_type = "mobile_sam_vision_model"

    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 160, 320)
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_attention_heads: list[int] | tuple[int, ...] = (2, 4, 5, 10)
    window_sizes: list[int] | tuple[int, ...] = (7, 7, 14, 7)
    merge_strides: list[int] | tuple[int, ...] = (2, 2, 1)
    expand_ratio: float = 4.0
    mlp_ratio: float = 4.0
    local_conv_size: int = 3
    output_channels: int = 256
    num_channels: int = 3
    image_size: int = 1024
    num_pos_feats: int = 128
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: object) -> None:
        # JSON has no tuples: with lists, a configuration equals itself after a round trip.
        self.hidden_sizes = list(self.hidden_sizes)
        self.depths = list(self.depths)
        self.num_attention_heads = list(self.num_attention_heads)
        self.window_sizes = list(self.window_sizes)
        self.merge_strides = list(self.merge_strides)
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage, which the neck reads."""
        return self.hidden_sizes[-1]

    @property
    def patch_size(self) -> int:
        """Pixels per position of the image embedding, along each side."""
        return PATCH_EMBEDDING_STRIDE * math.prod(self.merge_strides)

    @property
    def grids(self) -> tuple[int, ...]:
        """Side of each stage's grid, in positions."""
        strides = [PATCH_EMBEDDING_STRIDE, *self.merge_strides]
        return tuple(self.image_size // math.prod(strides[: stage + 1]) for stage in range(len(self.depths)))

    @property
    def scale(self) -> float:
        """Standard deviation of the initial random frequencies of the positional embedding."""
        return 1.0


@strict
class MobileSamConfig(SamConfig):  # type: ignore[misc]
    """Configuration of MobileSAM: SAM v1's, with a `MobileSamVisionConfig` for the image encoder.

    Attributes:
        vision_config: Image encoder.
        prompt_encoder_config: Prompt encoder, the same as SAM v1's.
        mask_decoder_config: Mask decoder, the same as SAM v1's.
    """

    model_type = "mobile_sam"
    sub_configs_defaults = {  # noqa: RUF012, a class attribute of transformers
        "prompt_encoder_config": SamPromptEncoderConfig,
        "mask_decoder_config": SamMaskDecoderConfig,
        "vision_config": MobileSamVisionConfig,
    }


def check_vision_config(config: MobileSamVisionConfig) -> None:
    """Check that the sizes of an image encoder agree with one another.

    Raises:
        ValueError: Lists differ in length, a size is not positive, heads do not divide the channels, or patches do not
            divide the image. The message is one line that names the field.
    """
    stages = len(config.hidden_sizes)
    lengths = {
        "hidden_sizes": max(stages, 1),
        "depths": stages,
        "num_attention_heads": stages,
        "window_sizes": stages,
        "merge_strides": stages - 1,
    }
    for name, length in lengths.items():
        values: Sequence[int] = getattr(config, name)
        if len(values) != length or min(values, default=1) < 1:
            raise ValueError(f"vision_config.{name}: expected {length} positive integers, got {list(values)}")
    for stage in range(1, stages):
        width, heads = config.hidden_sizes[stage], config.num_attention_heads[stage]
        if width % heads:
            raise ValueError(
                f"vision_config.num_attention_heads: expected a divisor of the {width} channels of stage {stage}, "
                f"got {heads}"
            )
    if config.image_size < 1 or config.image_size % config.patch_size:
        raise ValueError(
            f"vision_config.image_size: expected a multiple of the patch size of {config.patch_size}, "
            f"got {config.image_size}"
        )
    if config.hidden_sizes[0] % 2 or config.local_conv_size % 2 == 0:
        raise ValueError(
            "vision_config: expected an even number of channels in stage 0 and an odd local_conv_size, got "
            f"{config.hidden_sizes[0]} and {config.local_conv_size}"
        )


def check_sizes(config: MobileSamConfig) -> None:
    """Check that the sizes of image encoder, prompt encoder and mask decoder agree.

    Raises:
        ValueError: As for `check_vision_config`, or two parts disagree. The message is one line.
    """
    vision, prompt, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    check_vision_config(vision)
    for name, value, expected in (
        ("prompt_encoder_config.image_size", prompt.image_size, vision.image_size),
        ("prompt_encoder_config.patch_size", prompt.patch_size, vision.patch_size),
        ("vision_config.output_channels", vision.output_channels, prompt.hidden_size),
        ("mask_decoder_config.hidden_size", decoder.hidden_size, prompt.hidden_size),
        ("vision_config.num_pos_feats", vision.num_pos_feats, prompt.hidden_size / 2),
    ):
        if value != expected:
            raise ValueError(f"{name}: expected {expected:g} as in the rest of the model, got {value}")


AutoConfig.register(MobileSamConfig.model_type, MobileSamConfig, exist_ok=True)
AutoConfig.register(MobileSamVisionConfig.model_type, MobileSamVisionConfig, exist_ok=True)
