"""The structure names every module of a SAM that has weights, once, and in order."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import SamConfig, SamModel
from transformers.models.sam.modeling_sam import SamAttention, SamVisionAttention

from saqsam.models.parts import DECODER_PARTS, ENCODER_PARTS, FLOAT_PARTS, PARTS
from saqsam.models.registry import structure_of
from saqsam.models.structure import replace_module
from support.tiny_quantized import PARTS_OF_SAM
from support.tiny_sam import tiny_config, tiny_pixels, tiny_sam


def base_config() -> SamConfig:
    """ViT-B: the default of transformers."""
    return SamConfig()


def odd_config() -> SamConfig:
    """Three masks become five, the heads are deeper, the decoder has three layers."""
    config = tiny_config()
    config.mask_decoder_config.num_multimask_outputs = 5
    config.mask_decoder_config.iou_head_depth = 4
    config.mask_decoder_config.num_hidden_layers = 3
    config.vision_config.num_hidden_layers = 5
    return config


configs = pytest.mark.parametrize("config", [tiny_config, base_config, odd_config])
Config = Callable[[], SamConfig]


def on_meta(config: SamConfig) -> SamModel:
    with torch.device("meta"):
        return SamModel(config)


@configs
def test_every_name_is_a_module_of_the_right_kind(config: Config) -> None:
    model, structure = on_meta(config()), structure_of(config())
    structure.check(model)
    for site in structure.weighted_sites:
        assert type(model.get_submodule(site.name)) in (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    for site in structure.attentions:
        kind = SamVisionAttention if site.part == "encoder.attention" else SamAttention
        assert isinstance(model.get_submodule(site.name), kind)
    assert isinstance(model.get_parameter(structure.position_embedding), nn.Parameter)


@configs
def test_all_layers_and_attentions_of_the_model_are_named_once(config: Config) -> None:
    model, structure = on_meta(config()), structure_of(config())
    weighted = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
        and not name.startswith("prompt_encoder.")
    }
    named = [site.name for site in structure.weighted_sites]
    assert len(named) == len(set(named))
    assert set(named) == weighted
    attentions = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (SamVisionAttention, SamAttention))
    ]
    assert sorted(site.name for site in structure.attentions) == sorted(attentions)


@configs
def test_each_site_has_a_part_and_each_part_a_site(config: Config) -> None:
    structure = structure_of(config())
    layer_parts = {site.part for site in structure.layers}
    attention_parts = {site.part for site in structure.attentions}
    assert layer_parts == set(PARTS_OF_SAM) - {"encoder.attention"}
    assert attention_parts == {"encoder.attention", *DECODER_PARTS} - {"decoder.mlp"}
    assert {site.part for site in structure.float_layers} == set(FLOAT_PARTS) - {"position_embedding"}
    assert PARTS == ENCODER_PARTS + DECODER_PARTS + FLOAT_PARTS
    assert len(set(PARTS)) == len(PARTS)


def test_layers_come_in_the_order_of_computation() -> None:
    model, structure = tiny_sam(), structure_of(tiny_config())
    called: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: called.append(name)

    for name, module in model.named_modules():
        module.register_forward_hook(note(name))
    with torch.inference_mode():
        model(pixel_values=tiny_pixels(), input_boxes=torch.tensor([[[4.0, 4.0, 40.0, 50.0]]]))
    for sites in (structure.layers, structure.float_layers, structure.attentions):
        names = [site.name for site in sites]
        assert names == [name for name in called if name in set(names)]


@pytest.mark.parametrize(
    ("blocks", "global_indexes", "stages"),
    [
        (12, [2, 5, 8, 11], [3, 3, 3, 3]),
        (24, [5, 11, 17, 23], [6, 6, 6, 6]),
        (32, [7, 15, 23, 31], [8, 8, 8, 8]),
        (4, [1, 3], [2, 2]),
        (5, [1, 3], [2, 2, 1]),
        (4, [], [4]),
        (4, [3, 0], [1, 3]),
        (4, [2, 5, 8, 11], [3, 1]),  # fewer blocks than the indexes are for
    ],
)
def test_a_stage_ends_with_a_global_block(blocks: int, global_indexes: list[int], stages: list[int]) -> None:
    config = tiny_config()
    config.vision_config.num_hidden_layers = blocks
    config.vision_config.global_attn_indexes = global_indexes
    found = structure_of(config).stages
    assert [len(stage) for stage in found] == stages
    assert [i for stage in found for i in stage] == list(range(blocks))
    for stage in found[:-1]:
        assert stage[-1] in global_indexes


def test_vit_b_has_four_stages_of_three_blocks() -> None:
    assert structure_of(SamConfig()).stages == (
        range(0, 3),
        range(3, 6),
        range(6, 9),
        range(9, 12),
    )


@pytest.mark.parametrize(
    ("parent", "child"),
    [
        ("vision_encoder.neck", "conv2"),
        ("mask_decoder", "upscale_conv1"),
        ("vision_encoder.layers.1", "attn"),
    ],
)
def test_check_names_the_missing_module(parent: str, child: str) -> None:
    model = on_meta(tiny_config())
    delattr(model.get_submodule(parent), child)
    with pytest.raises(ValueError, match=f"this SamModel has no module {parent}.{child}".replace(".", r"\.")):
        structure_of(tiny_config()).check(model)


def test_check_refuses_a_model_of_another_configuration() -> None:
    with pytest.raises(ValueError, match=r"no module vision_encoder\.layers\.4"):
        structure_of(SamConfig()).check(on_meta(tiny_config()))


def test_the_structure_depends_on_the_configuration_alone() -> None:
    a, b = (
        structure_of(tiny_config()),
        structure_of(tiny_config()),
    )
    assert vars(a) == vars(b)


@pytest.mark.parametrize("name", ["0", "1.inner"])
def test_replace_module(name: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"inner": nn.Linear(2, 2)}))
    new = nn.Identity()
    before = [n for n, _ in model.named_modules()]
    replace_module(model, name, new)
    assert model.get_submodule(name) is new
    assert [n for n, _ in model.named_modules()] == before
