"""Conversion of `mobile_sam.pt`: folding, inference of the configuration, and refusals."""

import io
from typing import Any

import pytest
import torch
from torch import nn

from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.models.mobile_sam.official import (
    fold_batch_norm,
    from_official,
    group_by_operand,
    infer_config,
)
from saqsam.models.mobile_sam.tiny_vit import offset_indexes
from saqsam.utils.errors import CheckpointError
from support.mobile_sam_reference import (
    SHARED_COPY,
    WIDTHS,
    convert,
    small_official,
)

BLOCK = "image_encoder.layers.1.blocks.0"


@pytest.fixture(scope="module")
def official() -> Any:
    return small_official()


@pytest.fixture(scope="module")
def state(official: Any) -> dict[str, Any]:
    return dict(official.state_dict())


@pytest.fixture(scope="module")
def converted(official: Any) -> MobileSamModel:
    return convert(official)


def test_configuration_follows_from_the_shapes(converted: MobileSamModel) -> None:
    vision = converted.config.vision_config
    assert vision.hidden_sizes == list(WIDTHS)
    assert vision.depths == [1, 1, 2, 1]
    assert vision.num_attention_heads[1:] == [2, 3, 10]
    assert vision.window_sizes[1:] == [5, 6, 3]
    assert vision.merge_strides == [2, 2, 1]
    assert (vision.expand_ratio, vision.mlp_ratio, vision.local_conv_size) == (4, 4, 3)
    assert (vision.output_channels, vision.num_pos_feats) == (32, 16)
    assert (vision.image_size, vision.patch_size) == (128, 16)


@torch.no_grad()
def test_other_depth_of_the_iou_head_is_inferred() -> None:
    assert convert(small_official(iou_head_depth=4)).config.mask_decoder_config.iou_head_depth == 4


@torch.no_grad()
def test_folded_batch_norm_agrees() -> None:
    generator = torch.Generator().manual_seed(0)
    convolution = nn.Conv2d(6, 4, 3, padding=1, groups=2, bias=False)
    norm = nn.BatchNorm2d(4).eval()
    for tensor in (convolution.weight, norm.weight, norm.bias, norm.running_mean):
        assert tensor is not None
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    assert norm.running_var is not None
    norm.running_var.copy_(torch.tensor([1e-6, 1e-3, 1.0, 50.0]))
    images = torch.randn((2, 6, 5, 5), generator=generator)
    weight, bias = fold_batch_norm(
        convolution.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var
    )
    assert weight.dtype == bias.dtype == torch.float32
    # In float64, the difference is that of the rounding to float32.
    expected = norm.double()(convolution.double()(images.double()))
    folded = nn.functional.conv2d(images.double(), weight.double(), bias.double(), padding=1, groups=2)
    torch.testing.assert_close(folded, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_rows_are_grouped_by_operand() -> None:
    """Two heads of two channels, from q0 k0 v0 q1 k1 v1 to q0 q1 k0 k1 v0 v1."""
    rows = torch.tensor([0.0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23])
    assert group_by_operand(rows, 2).tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    weight = rows[:, None] * torch.ones(4)
    assert torch.equal(group_by_operand(weight, 2), group_by_operand(rows, 2)[:, None].expand(-1, 4))


def test_configuration_follows_from_the_shapes_of_converted_tensors(state: dict[str, Any]) -> None:
    config, tensors = from_official(state)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    assert infer_config(shapes).to_dict() == config.to_dict()
    with pytest.raises(CheckpointError, match="not a module of a MobileSAM image encoder: 'lora'"):
        infer_config(shapes | {"vision_encoder.lora.weight": (1, 1)})


def test_unused_tensors_are_ignored(state: dict[str, Any]) -> None:
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    classifier = [
        f"image_encoder.{name}.{key}" for name in ("norm_head", "head") for key in ("weight", "bias")
    ]
    assert len(counters) == 2 + 3 * 4 + 4  # patch embedding, one MBConv and three mergings, four blocks
    used = {name: value for name, value in state.items() if name not in {*counters, *classifier}}
    assert len(used) == len(state) - len(counters) - len(classifier)
    more = state | {
        "pixel_mean": torch.zeros(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
        f"{BLOCK}.attn.attention_bias_idxs": offset_indexes(5),
    }
    expected = from_official(state, image_size=128)[1]
    for variant in (used, more):
        tensors = from_official(variant, image_size=128)[1]
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in tensors)


def test_every_tensor_of_the_model_is_converted(converted: MobileSamModel, state: dict[str, Any]) -> None:
    tensors = from_official(state, image_size=128)[1]
    shapes = {name: value.shape for name, value in converted.state_dict().items() if name != SHARED_COPY}
    assert {name: value.shape for name, value in tensors.items()} == shapes


def test_float16_is_converted(state: dict[str, Any]) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    exact = {name: value.float() for name, value in half.items()}
    tensors, expected = (from_official(some, image_size=128)[1] for some in (half, exact))
    for name, value in expected.items():
        assert torch.equal(tensors[name].float(), value), name


MISSING = [
    "image_encoder.patch_embed.seq.0.c.weight",
    "image_encoder.patch_embed.seq.2.bn.running_var",
    "image_encoder.layers.0.blocks.0.conv1.c.weight",
    "image_encoder.layers.0.blocks.0.conv2.bn.bias",
    "image_encoder.layers.0.downsample.conv3.c.weight",
    "image_encoder.layers.2.downsample.conv2.bn.running_mean",
    *(f"{BLOCK}.{name}" for name in ("attn.norm.bias", "attn.qkv.weight", "attn.attention_biases")),
    *(f"{BLOCK}.{name}" for name in ("local_conv.bn.weight", "mlp.norm.weight", "mlp.fc2.bias")),
    "image_encoder.neck.0.weight",
    "image_encoder.neck.3.bias",
]


@pytest.mark.parametrize("name", MISSING)
def test_missing_tensor_is_named(state: dict[str, Any], name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name} is missing|1 missing: {name}$"):
        from_official({key: value for key, value in state.items() if key != name})


@pytest.mark.parametrize(
    "name",
    [
        "image_encoder.foo",
        "image_encoder.pos_embed",
        "image_encoder.norm_head.gamma",
        f"{BLOCK}.attn.lora.weight",
        "image_encoder.layers.0.blocks.0.conv1.c.bias",
        "mask_decoder.foo.weight",
    ],
)
def test_unknown_tensor_is_named(state: dict[str, Any], name: str) -> None:
    with pytest.raises(CheckpointError, match=f"1 unknown.*: {name}$"):
        from_official(state | {name: torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            f"{BLOCK}.attn.qkv.weight",
            (48, 8),
            r"misshapen: \S+qkv\.weight of shape \(48, 8\) instead of \(48, 16\)",
        ),
        (f"{BLOCK}.local_conv.bn.running_mean", (1,), r"running_mean of shape \(1,\) instead of \(16,\)"),
        (
            f"{BLOCK}.attn.attention_biases",
            (2, 26),
            r"attention_biases of shape \(2, 26\) instead of \(2, 25\)",
        ),
        (f"{BLOCK}.attn.attention_biases", (25,), "expected .* to have 2 dimensions"),
        (
            f"{BLOCK}.attn.attention_biases",
            (3, 25),
            "num_attention_heads: expected a divisor of the 16 channels",
        ),
        (f"{BLOCK}.attn.attention_biases", (2, 0), "window_sizes: expected 4 positive integers"),
        ("image_encoder.patch_embed.seq.2.c.weight", (0, 4, 3, 3), "at least one channel"),
        ("image_encoder.neck.0.weight", (16, 320, 1, 1), "output_channels: expected 32 .*, got 16"),
    ],
)
def test_contradicting_shapes_are_refused(
    state: dict[str, Any], name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_official(state | {name: torch.zeros(shape)})


def test_absurd_depth_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="at most 256 blocks in a stage"):
        from_official(state | {"image_encoder.layers.2.blocks.9999.foo": torch.zeros(1)})


def test_image_size_that_patches_do_not_divide_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(
        CheckpointError, match="image_size: expected a multiple of the patch size of 16, got 100"
    ):
        from_official(state, image_size=100)


def test_something_else_than_a_float_tensor_is_refused(state: dict[str, Any]) -> None:
    name = f"{BLOCK}.attn.qkv.bias"
    with pytest.raises(CheckpointError, match=f"expected a tensor under '{name}', got BytesIO"):
        from_official(state | {name: io.BytesIO()})
    with pytest.raises(CheckpointError, match=f"expected floating-point tensors, got others: {name}"):
        from_official(state | {name: torch.zeros(48, dtype=torch.int64)})


@pytest.mark.parametrize(
    "indexes", [torch.zeros(25, 25), torch.zeros(5), torch.tensor(0), offset_indexes(5).flip(0)]
)
def test_other_order_of_attention_biases_is_refused(state: dict[str, Any], indexes: torch.Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"attention_bias_idxs.*: expected the relative offsets"):
        from_official(state | {f"{BLOCK}.attn.attention_bias_idxs": indexes})


def test_messages_are_one_line(state: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        from_official(state | {"image_encoder.a\nb": torch.zeros(1)})
    assert "\n" not in str(caught.value)
