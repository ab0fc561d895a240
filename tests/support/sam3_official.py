"""The official SAM 3 code as a reference, and official checkpoints made from a `Sam3TrackerModel`.

The code comes from the package `sam3`, which tests use where it is installed; ``pip install --no-deps sam3`` is enough.
Its own imports beyond torch are replaced by stand-ins.
"""

import importlib
import importlib.util
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Sam3TrackerModel

from support import sam2_official
from support.mobile_sam_reference import DropPath
from support.stand_ins import stand_ins
from support.tiny_sam import fill_random

OTHERS = (
    *(
        "detector.backbone.vision_backbone.convs.0.conv_1x1.weight",
        "detector.backbone.language_backbone.resizer.bias",
    ),
    *(
        "detector.transformer.encoder.layers.0.norm1.weight",
        "detector.segmentation_head.instance_seg_head.bias",
    ),
    *("tracker.transformer.encoder.layers.0.norm1.weight", "tracker.maskmem_backbone.out_proj.bias"),
    *("tracker.maskmem_tpos_enc", "tracker.obj_ptr_proj.layers.0.weight", "tracker.mask_downsample.weight"),
)
"""Some of the tensors of the detector and of the memory."""


def official_state_dict(model: Sam3TrackerModel) -> dict[str, Tensor]:
    """Return the state dict of a model under the names of `sam3.pt`, with a few tensors of detector and memory."""
    named: dict[str, Tensor] = {}
    tensors = model.state_dict()
    decoder = {name: value for name, value in tensors.items() if not name.startswith("vision_encoder.")}
    for name, value in sam2_official.rename_decoder(decoder).items():
        for layer, official in (("mlp.layers.0", "mlp.lin1"), ("mlp.layers.1", "mlp.lin2")):
            name = name.replace(layer, official)
        named[f"tracker.{name}"] = value
    for name in tensors.keys() - decoder.keys():
        official = _encoder_name(name)
        if ".q_proj." in name:
            parts = [tensors[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            named[official.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
        elif name.endswith("position_embeddings"):
            named[official] = torch.cat([torch.ones_like(tensors[name][:, :1]), tensors[name]], dim=1)
        elif not any(f".{part}_proj." in name for part in "kv"):
            named[official] = tensors[name]
    # The table of rotations is stored as complex numbers.
    rotations = "detector.backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis"
    return {
        **named,
        **{name: torch.ones(1) for name in OTHERS},
        rotations: torch.ones(4, dtype=torch.complex64),
    }


def _encoder_name(name: str) -> str:
    levels = {
        **{"0.scale_layers.0": "0.dconv_2x2_0", "0.scale_layers.2": "0.dconv_2x2_1"},
        "1.scale_layers.0": "1.dconv_2x2",
    }
    for own, official in (
        ("vision_encoder.backbone.embeddings.position_embeddings", "trunk.pos_embed"),
        ("vision_encoder.backbone.embeddings.patch_embeddings.projection", "trunk.patch_embed.proj"),
        ("vision_encoder.backbone.layer_norm.", "trunk.ln_pre."),
        ("vision_encoder.backbone.layers", "trunk.blocks"),
        ("vision_encoder.neck.fpn_layers", "sam2_convs"),
        *levels.items(),
        *((".proj1.", ".conv_1x1."), (".proj2.", ".conv_3x3."), (".attention.o_proj.", ".attn.proj.")),
        *((".attention.", ".attn."), (".layer_norm", ".norm")),
    ):
        name = name.replace(own, official)
    return f"detector.backbone.vision_backbone.{name}"


class Mlp(nn.Module):
    """timm's MLP with a GELU, without dropout."""

    def __init__(self, in_features: int, hidden_features: int, act_layer: Any, drop: object) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def _official_imports() -> AbstractContextManager[None]:
    """Inside the block, modules of `sam3` can be imported; skip the test if it is not installed."""
    spec = importlib.util.find_spec("sam3")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("needs the official code: pip install --no-deps sam3")
    return stand_ins(
        {
            # The package itself imports its detector, and with it much that is not needed here.
            "sam3": {"__path__": list(spec.submodule_search_locations)},
            "timm": {},
            "timm.layers": {"DropPath": DropPath, "Mlp": Mlp, "trunc_normal_": nn.init.trunc_normal_},
            "einops": {"rearrange": None, "repeat": None},
        }
    )


class OfficialSam3(nn.Module):
    """The official modules of the image encoder and the tracker, with the sizes of `tiny_sam3_tracker_config`."""

    def __init__(self) -> None:
        super().__init__()
        with _official_imports():
            vit = importlib.import_module("sam3.model.vitdet")
            necks = importlib.import_module("sam3.model.necks")
            sam = importlib.import_module("sam3.sam")
        trunk = vit.ViT(
            img_size=112,
            pretrain_img_size=42,
            patch_size=14,
            embed_dim=32,
            depth=4,
            num_heads=2,
            mlp_ratio=1.5,
            global_att_blocks=(1, 3),
            rel_pos_blocks=(),
            use_rope=True,
            use_interp_rope=True,
            window_size=4,
            retain_cls_token=False,
            ln_pre=True,
            bias_patch_embed=False,
            use_act_checkpoint=False,
        )
        neck = necks.Sam3DualViTDetNeck(
            trunk, position_encoding=nn.Identity(), d_model=32, add_sam2_neck=True
        )
        self.detector = nn.ModuleDict({"backbone": nn.ModuleDict({"vision_backbone": neck})})
        self.tracker = nn.Module()
        self.tracker.sam_prompt_encoder = sam.PromptEncoder(
            embed_dim=32, image_embedding_size=(8, 8), input_image_size=(112, 112), mask_in_chans=16
        )
        self.tracker.sam_mask_decoder = sam.MaskDecoder(
            num_multimask_outputs=3,
            transformer=sam.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=4),
            transformer_dim=32,
            iou_head_hidden_dim=32,
            use_high_res_features=True,
            iou_prediction_use_sigmoid=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            use_multimask_token_for_obj_ptr=True,
            dynamic_multimask_via_stability=True,
        )
        self.tracker.no_mem_embed = nn.Parameter(torch.zeros(1, 1, 32))

    def forward(
        self, pixels: Tensor, points: tuple[Tensor, Tensor], multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return masks [P, M, 32, 32], their scores [P, M] and object scores [P, 1] of P prompts on one image."""
        neck = self.detector["backbone"]["vision_backbone"]
        _, _, (fine, middle, coarse, _), _ = neck(pixels)
        decoder, prompts = self.tracker.sam_mask_decoder, self.tracker.sam_prompt_encoder
        sparse, dense = prompts(points=points, boxes=None, masks=None)
        masks, scores, _, object_scores = decoder(
            image_embeddings=coarse + self.tracker.no_mem_embed.view(1, -1, 1, 1),
            image_pe=prompts.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            repeat_image=True,
            high_res_features=[decoder.conv_s0(fine), decoder.conv_s1(middle)],
        )
        return masks, scores, object_scores


def small_official(seed: int = 0) -> OfficialSam3:
    """Return the official modules with random weights and positions, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        official = OfficialSam3()
    generator = torch.Generator().manual_seed(seed)
    fill_random(official, generator)
    with torch.no_grad():
        positions = official.tracker.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        positions.copy_(torch.randn(positions.shape, generator=generator))
    return official.eval()
