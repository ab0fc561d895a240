"""Equalization: give channels that share one grid similar ranges, by exact changes of the float model.

A tensor with one scale and zero point spends most of its codes on the channel with the widest range. Where one layer
follows another, and a factor and an offset per channel pass through whatever is between them, both can be folded from
the first layer into the second. The model's output is unchanged:

- a normalization and the linear layer after it (RepQ-ViT, arXiv 2212.08254): x -> (x - m) / f, W -> W f, b -> b + W m.
  Channels may share f and m in groups (`channel_groups`), and f may move only a part of the range to the weights: with
  the migration strength a of SmoothQuant (arXiv 2211.10438), f = x**a / w**(1 - a), from the half ranges x of the
  channel and w of its weight column;
- a decoder MLP's ReLU, which passes positive factors (cross-layer equalization, arXiv 1906.04721);
- values and the output projection: rows of probabilities sum to 1, so that an offset passes too;
- queries and keys: factors f and 1 / f cancel in Q K^T. An offset of all keys adds the same to all logits of a row,
  which the softmax ignores. Keys with two peaks, which bimodal integration folds by signs, end with one. Neither holds
  where positions rotate queries and keys, so those stay as they are.

f is a channel's half range relative to the mean over all channels, and m the middle of its range, both from calibration
images. The factor of queries is the one that gives query and key the same range. Inputs after a GELU and tensors that
are also added to a residual stream are left unchanged. In the encoder, queries keep their scale, since relative
positions are computed from them.

The decoder's projections read residual streams that other layers read and write too, so no factor can be folded there.
With `input_scales` they apply an offset and a gain per channel at run time (`scale_inputs`), as part of the rounding.

Equalization leaves residual streams unchanged, so the ranges of one float model (`observe_channels`) serve both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.models.family import Features
from saqsam.models.structure import AttentionSite, ModelStructure
from saqsam.ptq.calibration import run_image
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.ptq.channel_groups import group_ranges
from saqsam.quant.layers import ChannelScale, QuantLinear, without
from saqsam.recipes.equalization import Equalization
from saqsam.utils import ranks
from saqsam.utils.progress import Progress

MIN_HALF_RANGE = 1 / 32
"""Smallest half range of a channel, relative to the widest: a dead channel must not make weights huge."""
MAX_IMAGES = 8
"""Most images that channel ranges are averaged over."""


@dataclass
class ChannelRange:
    """Smallest and largest value of each channel, averaged over images.

    Attributes:
        low: Smallest values, float32 [C].
        high: Largest values, float32 [C].
        images: Number of images.
    """

    low: Tensor
    high: Tensor
    images: int = 0

    def update(self, low: Tensor, high: Tensor) -> None:
        """Add the range, float32 [C] each, of one more image to the average."""
        self.images += 1
        self.low = self.low + (low - self.low) / self.images
        self.high = self.high + (high - self.high) / self.images

    @property
    def middle(self) -> Tensor:
        """Middle of the range, float32 [C]."""
        return (self.low + self.high) / 2

    @property
    def half(self) -> Tensor:
        """Half the width of the range, float32 [C], above 0."""
        half = (self.high - self.low) / 2
        widest = half.max()
        return half.clamp_min(MIN_HALF_RANGE * widest) if widest > 0 else torch.ones_like(half)

    def __getitem__(self, channels: slice) -> ChannelRange:
        """Return the ranges of a slice of the channels."""
        return ChannelRange(self.low[channels], self.high[channels], self.images)


@torch.inference_mode()
def observe_channels(
    model: SamModel,
    structure: ModelStructure,
    images: CalibrationImages,
    progress: Progress | None = None,
    *,
    features: dict[int, Features] | None = None,
) -> dict[str, ChannelRange]:
    """Observe the channel ranges that `equalize` and `scale_inputs` need, on at most `MAX_IMAGES` images.

    Several ranks share the images.

    Args:
        model: Float model, not prepared yet.
        structure: Structure of the model.
        images: Calibration images; evenly spaced ones are used.
        progress: Progress callback.
        features: Features of images by index. Of an image that has some, the decoder alone is run and observed; those
            of other images are added.

    Returns:
        Ranges by `<layer> input` or `<layer> output`.
    """
    count = min(len(images), MAX_IMAGES)

    def observe(number: int) -> list[tuple[str, Tensor, Tensor]]:
        with _observing(model, structure) as calls:
            run_image(model, images, number * len(images) // count, {} if features is None else features)
        return [(name, low.cpu(), high.cpu()) for name, low, high in calls]

    ranges: dict[str, ChannelRange] = {}
    # A running average depends on the order, which is that of the images for any number of ranks.
    for calls in ranks.shared_map(observe, count, "equalizing channels", progress):
        for name, low, high in calls:
            low, high = low.to(model.device), high.to(model.device)
            ranges.setdefault(name, ChannelRange(torch.zeros_like(low), torch.zeros_like(high))).update(
                low, high
            )
    return ranges


@torch.no_grad()
def equalize(
    model: SamModel,
    structure: ModelStructure,
    ranges: Mapping[str, ChannelRange],
    equalization: Equalization | None = None,
) -> None:
    """Equalize a float model in place; its output is unchanged.

    Args:
        model: Float model, not prepared yet.
        structure: Structure of the model.
        ranges: Channel ranges of `observe_channels`.
        equalization: Layers, groups and strength; None for the defaults.
    """
    equalization = equalization or Equalization()
    for pair in structure.normalized_layers:
        layers = [_linear_or_conv(model, name) for name in pair.layers]
        observed = ranges[f"{pair.layers[0]} input"]
        _equalize_norm(model.get_submodule(pair.norm), layers, observed, equalization, shifts=pair.shifts)
    if equalization.layers == "normalizations":
        return
    for site in structure.attentions:
        if site.is_fused:
            _equalize_fused_attention(model, site, ranges)
        else:
            _equalize_attention(model, site, ranges)
    for mlp in structure.relu_mlps:
        hidden = ranges[f"{mlp.second} input"]
        factor = hidden.half / hidden.half.mean()
        _scale_outputs(model.get_submodule(mlp.first), 1 / factor)
        _scale_inputs(model.get_submodule(mlp.second), factor)


@torch.no_grad()
def scale_inputs(model: SamModel, structure: ModelStructure, ranges: Mapping[str, ChannelRange]) -> None:
    """Set the channel scales of a prepared model in place and fold their inverse into weights and biases.

    Args:
        model: Prepared model with empty slots.
        structure: Structure of the model.
        ranges: Channel ranges of `observe_channels`, from before or after equalization.
    """
    for name in structure.residual_readers:
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        assert isinstance(layer.input_scale, ChannelScale)
        channels = ranges[f"{name} input"]
        # A checkpoint stores float16.
        gain, offset = (channels.half.mean() / channels.half).half().float(), channels.middle.half().float()
        layer.input_scale.gain.copy_(gain)
        layer.input_scale.offset.copy_(offset)
        layer.bias.add_(layer.weight @ offset)
        _scale_inputs(layer, 1 / gain)


def _equalize_norm(
    norm: nn.Module,
    layers: Sequence[nn.Linear | nn.Conv2d],
    observed: ChannelRange,
    equalization: Equalization,
    *,
    shifts: bool,
) -> None:
    """Move channel factors and, if it `shifts`, offsets from a normalization to the layers that read it."""
    assert isinstance(norm.weight, Tensor)
    assert isinstance(norm.bias, Tensor)
    if equalization.groups is not None:
        ends = group_ranges(observed.low, observed.high, equalization.groups)
        observed = ChannelRange(*ends, observed.images)
    factor = _migration_factor(observed, layers, equalization.strength)
    if shifts:
        for layer in layers:
            assert layer.bias is not None
            layer.bias.add_(layer.weight @ observed.middle)
        norm.bias.sub_(observed.middle)
    norm.weight.div_(factor)
    norm.bias.div_(factor)
    for layer in layers:
        _scale_inputs(layer, factor)


def _migration_factor(
    observed: ChannelRange, layers: Sequence[nn.Linear | nn.Conv2d], strength: float
) -> Tensor:
    """Return the factors, float32 [K], that move channel ranges to the layers' weight columns, with mean 1."""
    factor = observed.half
    if strength < 1:
        columns = torch.cat([layer.weight.transpose(0, 1).flatten(1) for layer in layers], 1)
        factor = factor**strength / ChannelRange(columns.amin(1), columns.amax(1)).half ** (1 - strength)
    return factor / factor.mean()


def _equalize_fused_attention(
    model: SamModel, site: AttentionSite, ranges: Mapping[str, ChannelRange]
) -> None:
    """Equalize an encoder attention; its queries keep their scale, as relative positions are computed from them."""
    qkv, proj = _linear(model, site.query), _linear(model, site.output)
    observed = ranges[f"{site.query} output"]
    channels = qkv.out_features // 3
    keys, values = slice(channels, 2 * channels), slice(2 * channels, 3 * channels)
    if qkv.bias is not None:
        qkv.bias[keys].sub_(observed[keys].middle)
        proj.bias.add_(proj.weight @ observed[values].middle)
        qkv.bias[values].sub_(observed[values].middle)
    factor = observed[values].half / observed[values].half.mean()
    _scale_outputs(qkv, 1 / factor, values)
    _scale_inputs(proj, factor)


def _equalize_attention(model: SamModel, site: AttentionSite, ranges: Mapping[str, ChannelRange]) -> None:
    """Equalize an attention with layers of their own for queries, keys and values."""
    query, key, value, output = (
        _linear(model, name) for name in (site.query, site.key, site.value, site.output)
    )
    queries, keys, values = (ranges[f"{name} output"] for name in (site.query, site.key, site.value))
    if not site.is_rotary:
        key.bias.sub_(keys.middle)
        factor = (keys.half / queries.half).sqrt()
        _scale_outputs(query, factor)
        _scale_outputs(key, 1 / factor)
    output.bias.add_(output.weight @ values.middle)
    value.bias.sub_(values.middle)
    factor = values.half / values.half.mean()
    _scale_outputs(value, 1 / factor)
    _scale_inputs(output, factor)


def _linear(model: SamModel, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _linear_or_conv(model: SamModel, name: str) -> nn.Linear | nn.Conv2d:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer


def _scale_inputs(layer: nn.Module, factor: Tensor) -> None:
    """Multiply the columns of a weight [C, K] or [C, K, h, w] by a factor [K], in place."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight.mul_(factor.reshape(1, -1, *([1] * (weight.dim() - 2))))


def _scale_outputs(layer: nn.Module, factor: Tensor, rows: slice = slice(None)) -> None:
    """Multiply the rows of a weight [C, K] and the bias by a factor [C], or a slice of both, in place."""
    assert isinstance(layer.weight, Tensor)
    layer.weight[rows] *= factor[:, None]
    if layer.bias is not None:
        assert isinstance(layer.bias, Tensor)
        layer.bias[rows] *= factor


@contextmanager
def _observing(model: SamModel, structure: ModelStructure) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """Observe channel ranges while the block runs.

    Yields:
        `<layer> input` or `<layer> output` with the smallest and largest values, float32 [C] each, of every call.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []

    def update(name: str, axis: int, values: Tensor) -> None:
        others = [other for other in range(values.dim()) if other != axis % values.dim()]
        calls.append((name, values.amin(others), values.amax(others)))

    def input_hook(name: str, axis: int) -> Callable[..., None]:
        def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            update(f"{name} input", axis, without(inputs[0], getattr(module, "input_constant", None)))

        return observe

    def output_hook(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: update(f"{name} output", -1, output)

    handles = []
    for name in _observed_inputs(structure):
        layer = model.get_submodule(name)
        axis = 1 if isinstance(layer, nn.Conv2d) else -1
        handles.append(layer.register_forward_pre_hook(input_hook(name, axis)))
    for site in structure.attentions:
        for name in dict.fromkeys((site.query, site.key, site.value)):
            handles.append(model.get_submodule(name).register_forward_hook(output_hook(name)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _observed_inputs(structure: ModelStructure) -> list[str]:
    """Return the layers whose inputs are equalized or scaled, each once."""
    normalized = [pair.layers[0] for pair in structure.normalized_layers]
    hidden = [mlp.second for mlp in structure.relu_mlps]
    return list(dict.fromkeys([*normalized, *hidden, *structure.residual_readers]))
