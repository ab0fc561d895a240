"""A tiny `SamHQModel` with random weights that behave like trained ones, see `tiny_sam`."""

import inspect
import textwrap
from types import SimpleNamespace

import torch
from transformers import SamHQConfig, SamHQModel
from transformers.models.sam_hq import modeling_sam_hq

from saqsam.models.processing import build_processor
from saqsam.models.sam.configuration import sam_fields
from support.state_dict_names import official_names
from support.tiny_sam import fill_random, tiny_config

_OVERLOOKED = "point_embedding, iou_token_out = self.transformer("


def tiny_sam_hq_config() -> SamHQConfig:
    """Return the configuration of `tiny_sam`, with eight heads in the decoder, as official files have them."""
    fields = sam_fields(tiny_config())
    decoder = {**fields["mask_decoder_config"], "vit_dim": 32, "num_attention_heads": 8}
    return SamHQConfig(
        vision_config=fields["vision_config"],
        prompt_encoder_config=fields["prompt_encoder_config"],
        mask_decoder_config=decoder,
    )


def tiny_sam_hq(seed: int = 0, config: SamHQConfig | None = None) -> SamHQModel:
    """Return a float32 `SamHQModel` of transformers in eval mode on the CPU, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        model = SamHQModel(tiny_sam_hq_config() if config is None else config)
    fill_random(model, torch.Generator().manual_seed(seed))
    decoder = model.mask_decoder
    with torch.no_grad():
        for name in ("compress_vit_conv1", "compress_vit_conv2", "encoder_conv1", "encoder_conv2"):
            layer = getattr(decoder, name)  # its fan in is that of a transposed convolution
            layer.weight.mul_((layer.weight[0].numel() / layer.in_channels) ** 0.5)
        decoder.hq_token.weight.mul_(decoder.hidden_size**0.5)
    return model.eval()


def upscaling_image_tokens(model: SamHQModel) -> SamHQModel:
    """Let transformers' forward pass upscale the transformer's image tokens, in place, by changing that one line."""
    forward = textwrap.dedent(inspect.getsource(modeling_sam_hq.SamHQMaskDecoder.forward))
    fixed = forward.replace(_OVERLOOKED, _OVERLOOKED.replace("iou_token_out", "image_embeddings"))
    scope: dict[str, object] = dict(vars(modeling_sam_hq))
    exec(fixed, scope)
    model.mask_decoder.__class__ = type(
        "FixedDecoder", (type(model.mask_decoder),), {"forward": scope["forward"]}
    )
    return model


def tiny_sam_hq_processor() -> object:
    """Return the processor that goes with the tiny configuration."""
    return build_processor(tiny_sam_hq_config())


def official_hq_names(model: SamHQModel) -> dict[str, torch.Tensor]:
    """Return the state dict that the official code has for a model of these shapes."""
    parts = {
        "compress_vit": "compress_vit_feat",
        "encoder": "embedding_encoder",
        "mask": "embedding_maskfeature",
    }
    layers = {"conv1": "0", "norm": "1", "conv2": "3"}
    renaming = {f"{part}_{layer}": f"{parts[part]}.{layers[layer]}" for part in parts for layer in layers}
    renaming |= {"hq_token": "hf_token", "hq_mask_mlp.proj_in": "hf_mlp.layers.0"}
    renaming |= {"hq_mask_mlp.layers.0": "hf_mlp.layers.1", "hq_mask_mlp.proj_out": "hf_mlp.layers.2"}
    own, rest = {}, {}
    for name, tensor in model.state_dict().items():
        module, _, parameter = name.removeprefix("mask_decoder.").rpartition(".")
        if name.startswith("mask_decoder.") and module in renaming:
            own[f"mask_decoder.{renaming[module]}.{parameter}"] = tensor.clone()
        else:
            rest[name] = tensor
    return official_names(SimpleNamespace(state_dict=lambda: rest)) | own  # type: ignore[arg-type]
