"""Official SAM 2 checkpoints made from a `Sam2Model`, tensor by tensor from the names of the official code."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import Sam2Model

_HEADS = ("output_hypernetworks_mlps", "iou_prediction_head", "pred_obj_score_head")
MEMORY = (
    *("maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial"),
    *("memory_attention.layers.0.norm1.weight", "memory_encoder.out_proj.bias", "mask_downsample.weight"),
    *("obj_ptr_proj.layers.0.weight", "obj_ptr_tpos_proj.weight"),
)
"""Some of the tensors that the video predictor has besides."""


def official_state_dict(model: Sam2Model) -> dict[str, Tensor]:
    """Return the state dict of a model under the names of the official code, with a few tensors of the memory."""
    return {**rename_decoder(model.state_dict()), **{name: torch.ones(1) for name in MEMORY}}


def rename_decoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under official names, those of the prompt encoder and mask decoder among them."""
    named = {_official_name(name): value for name, value in tensors.items()}
    points = named.pop("sam_prompt_encoder.point_embed.weight")
    for index in range(4):
        named[f"sam_prompt_encoder.point_embeddings.{index}.weight"] = points[index : index + 1].clone()
    return named


def _official_name(name: str) -> str:
    for prefix, official in (
        ("vision_encoder.backbone.", "image_encoder.trunk."),
        ("vision_encoder.neck.", "image_encoder.neck."),
        ("prompt_encoder.", "sam_prompt_encoder."),
        ("mask_decoder.", "sam_mask_decoder."),
    ):
        if name.startswith(prefix):
            name = official + name.removeprefix(prefix)
    if name.startswith("shared_image_embedding") or "shared_embedding" in name:
        return "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    if name == "no_memory_embedding":
        return "no_mem_embed"
    if name.startswith("image_encoder.neck.convs"):
        return name.replace(".weight", ".conv.weight").replace(".bias", ".conv.bias")
    name = name.replace("patch_embed.projection", "patch_embed.proj")
    if any(head in name for head in _HEADS):
        for layer, index in (("layers.0", 1), ("proj_in", 0), ("proj_out", 2)):
            name = name.replace(f".{layer}.", f".layers.{index}.")
        return name
    for layer, index in (("mlp.proj_in", 0), ("mlp.proj_out", 1)):
        name = name.replace(layer, f"mlp.layers.{index}")
    name = name.replace("o_proj", "out_proj").replace("layer_norm_final_attn", "norm_final_attn")
    for conv, index in (("conv1", 0), ("layer_norm1", 1), ("conv2", 3), ("layer_norm2", 4), ("conv3", 6)):
        name = name.replace(f"mask_embed.{conv}", f"mask_downscaling.{index}")
    for conv, index in (("upscale_conv1", 0), ("upscale_layer_norm", 1), ("upscale_conv2", 3)):
        name = name.replace(conv, f"output_upscaling.{index}")
    return name.replace("layer_norm", "norm")
