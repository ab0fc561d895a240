"""Perceptual-consistency clipping (PCC): ranges of the decoder's attentions that keep where the attention looks.

SAQ-SAM (arXiv 2503.06515). For an attention with logits L = Q K^T / sqrt(d) and A = softmax(L), the focus of query i in
head n is

    M[n, i, j] = A[n, i, j] > theta * max_j A[n, i, :],

which is the same as L[n, i, j] > max_j L[n, i, :] + ln(theta): no softmax is needed. The focus deviation of a
quantized attention is the mean over prompts and heads of 1 - IoU(M, M^). Ranges of four tensors are searched for, each
among the symmetric quantiles [q(1 - p), q(p)] for 29 values of p: the inputs of the query and the key projection, then
the queries and keys themselves; each is fixed and switched on before the next, and the round is made twice.

Hard clipping of rare huge queries and keys costs the distribution much and the focus nothing, which is why a search for
the least squared error never finds these ranges.

Deviations: none in the search. Weights are float while searching, as the paper does not say. Whatever is not searched
(one side of the product, the projection of what is fixed) is computed once, not once for each candidate.

Beyond the paper: `clipping.measure = output` compares what the attention gives instead, by its relative squared error.
That too forgives huge queries and keys that shift a row of logits by a constant, but it also sees what a focus does
not: keys outside of it that share a row between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.convert.plan import activation_slots
from saqsam.convert.prepare import Progress, emptied
from saqsam.inference.backend import TorchBackend
from saqsam.models.sam.attention import QuantDecoderAttention
from saqsam.models.sam.structure import DECODER_PARTS, SamStructure, replace_module
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.quant.affine import AffineQuantizer, affine_parameters
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import ClippingMeasure

# fmt: off
QUANTILES = (
    .85, .87, .88, .89, .90, .91, .92, .93, .94, .95, .96, .965, .97, .975, .98, .983, .985, .987, .989, .99, .993,
    .995, .997, .999, .9993, .9995, .9997, .9999, .99999,
)
# fmt: on
SEARCHED = ("q_proj.input_quantizer", "k_proj.input_quantizer", "query_quantizer", "key_quantizer")
"""The four slots of an attention, in the order of the search."""

AttentionInputs = tuple[Tensor, Tensor, Tensor]
"""Of the query, key and value projections of an attention."""


@dataclass(frozen=True)
class Clip:
    """The range chosen for one tensor.

    Attributes:
        slot: Name of the slot within the attention.
        quantile: p, or None where the range that was there before was kept.
        low: Lower end.
        high: Upper end.
    """

    slot: str
    quantile: float | None
    low: float
    high: float


@dataclass(frozen=True)
class AttentionClipping:
    """What was chosen for one attention.

    Attributes:
        name: Module name of the attention.
        clips: The four ranges, in the order of `SEARCHED`.
        before: Focus deviation with the ranges that were there before.
        after: Focus deviation with the chosen ones.
    """

    name: str
    clips: tuple[Clip, ...]
    before: float
    after: float


class FocusSearch:
    """The focus of one attention on some images, and how far quantized tensors move it.

    Args:
        attention: With float projections; its slots do not matter.
        inputs: For each image the inputs of the query projection [P or 1, 1, Q, C], of the key projection
            [P or 1, 1, K, C] and of the value projection, shaped like that; 1 where all prompts share them.
        theta: Of the focus mask.
        measure: What candidates are chosen by: the `focus`, or the attention's `output`.
    """

    def __init__(
        self,
        attention: QuantDecoderAttention,
        inputs: Sequence[AttentionInputs],
        theta: float,
        measure: ClippingMeasure = "focus",
    ) -> None:
        self.attention, self.margin, self.measure = attention, math.log(theta), measure
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.inputs = [
            tuple(layer.input_scale(tensor) for layer, tensor in zip(layers, tensors, strict=True))
            for tensors in inputs
        ]
        empty = {slot: nn.Identity() for slot in SEARCHED}
        sides = list(zip(self.side(0, empty), self.side(1, empty), strict=True))
        self.focus = [self._focus(query, key) for query, key in sides]
        if measure == "output":
            self.values = [self._heads(attention.v_proj, value) for _, _, value in self.inputs]
            self.outputs = [
                self._attend(query, key, value)
                for (query, key), value in zip(sides, self.values, strict=True)
            ]

    def side(self, index: int, quantizers: Mapping[str, nn.Module]) -> list[Tensor]:
        """Queries (index 0) or keys (1) of every image, [P or 1, N, T, D]."""
        return [
            self._output(index, self._project(index, i, quantizers), quantizers)
            for i in range(len(self.inputs))
        ]

    def deviation(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> float:
        """Mean over images of the focus deviation."""
        total = 0.0
        for focus, query, key in zip(self.focus, queries, keys, strict=True):
            found = self._focus(query, key)
            both = (focus & found).sum((-2, -1))
            union = (focus | found).sum((-2, -1))
            total += float((1 - both / union).mean())
        return total / len(self.focus)

    def error(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> float:
        """What candidates are chosen by: the focus deviation, or the mean of the output's relative squared error."""
        if self.measure == "focus":
            return self.deviation(queries, keys)
        total = 0.0
        for output, query, key, value in zip(self.outputs, queries, keys, self.values, strict=True):
            error = (self._attend(query, key, value) - output).square().mean()
            total += float(error / output.square().mean().clamp_min(1e-30))
        return total / len(self.outputs)

    def candidates(
        self, index: int, slot: str, bits: int, *, symmetric: bool
    ) -> list[tuple[float, AffineQuantizer]]:
        """Quantile and quantizer of every candidate for a slot on side `index`, widest first."""
        if slot.endswith("input_quantizer"):
            tensors = [pair[index] for pair in self.inputs]
        else:
            tensors = self.side(index, {name: nn.Identity() for name in SEARCHED})
        values = np.concatenate([tensor.flatten().float().cpu().numpy() for tensor in tensors])
        shares = np.array(QUANTILES[::-1])
        low, high = np.quantile(values, np.stack([1 - shares, shares]))
        made = []
        for share, a, b in zip(shares.tolist(), low.tolist(), high.tolist(), strict=True):
            scale, zero_point = affine_parameters(torch.tensor(a), torch.tensor(b), bits, symmetric=symmetric)
            made.append((share, AffineQuantizer(bits, scale, zero_point).to(tensors[0].device)))
        return made

    def best(
        self,
        index: int,
        slot: str,
        candidates: Sequence[AffineQuantizer],
        quantizers: Mapping[str, nn.Module],
    ) -> int:
        """Number of the candidate of least error, the first of equals; `quantizers` are on beside it."""
        other = self.side(1 - index, quantizers)
        is_input = slot.endswith("input_quantizer")
        images = range(len(self.inputs))
        projected = None if is_input else [self._project(index, i, quantizers) for i in images]
        errors = []
        for candidate in candidates:
            chosen = {**quantizers, slot: candidate}
            if projected is None:
                this = self.side(index, chosen)
            else:
                this = [self._output(index, tensor, chosen) for tensor in projected]
            errors.append(self.error(this, other) if index == 0 else self.error(other, this))
        return int(np.argmin(errors))

    def _project(self, index: int, image: int, quantizers: Mapping[str, nn.Module]) -> Tensor:
        layer = (self.attention.q_proj, self.attention.k_proj)[index]
        values = quantizers[SEARCHED[index]](self.inputs[image][index])
        return self._heads(layer, values)

    def _heads(self, layer: nn.Linear, values: Tensor) -> Tensor:
        """[P or 1, N, T, D]: a projection of values as they are, neither scaled nor quantized."""
        projected = nn.functional.linear(values, layer.weight, layer.bias)
        return self.attention._separate_heads(projected, self.attention.num_attention_heads)  # type: ignore[no-any-return]

    def _output(self, index: int, projected: Tensor, quantizers: Mapping[str, nn.Module]) -> Tensor:
        quantized: Tensor = quantizers[SEARCHED[2 + index]](projected)
        return quantized

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[P, Q, C]: what the attention gives, with its output projection but without its bias."""
        logits = (query @ key.transpose(-2, -1)) * self.attention.scaling
        attended = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return nn.functional.linear(attended, self.attention.out_proj.weight)

    def _focus(self, query: Tensor, key: Tensor) -> Tensor:
        """[P, N, Q, K] bool."""
        logits: Tensor = (query @ key.transpose(-2, -1)) * self.attention.scaling
        return logits > logits.amax(-1, keepdim=True) + self.margin


@torch.no_grad()
def clip_attentions(
    model: SamModel,
    structure: SamStructure,
    recipe: Recipe,
    images: CalibrationImages,
    progress: Progress | None = None,
) -> list[AttentionClipping]:
    """Give the queries and keys of the decoder's attentions, and what they are projected from, the chosen ranges.

    Args:
        model: Calibrated model with float weights; its quantizers change in place.
        structure: Its structure.
        recipe: With `clipping`.
        images: Calibration images.
        progress: See `Progress`.

    Returns:
        What was chosen, for every attention of the decoder.
    """
    spec = recipe.clipping
    assert spec is not None
    sites = [site for site in structure.attentions if site.part in DECODER_PARTS]
    slots = {slot.name: slot.bits for slot in activation_slots(structure, recipe)}
    count = min(spec.images, len(images))
    with emptied(model, slots):
        inputs = [_attention_inputs(model, [site.name for site in sites], images, i) for i in range(count)]
    reports = []
    for step, site in enumerate(sites):
        attention = model.get_submodule(site.name)
        assert isinstance(attention, QuantDecoderAttention)
        search = FocusSearch(attention, [found.pop(site.name) for found in inputs], spec.theta, spec.measure)
        names = {slot: f"{site.name}.{slot}" for slot in SEARCHED}
        before = {slot: model.get_submodule(name) for slot, name in names.items()}
        chosen: dict[str, nn.Module] = {slot: nn.Identity() for slot in SEARCHED}
        clips: dict[str, Clip] = {}
        for slot, index, _ in _rounds(spec.passes):
            bits = slots[names[slot]]
            candidates = search.candidates(index, slot, bits, symmetric=recipe.activation_spec.symmetric)
            options: list[tuple[float | None, AffineQuantizer]] = [*candidates]
            old = before[slot]
            assert isinstance(old, AffineQuantizer)
            if spec.include_range:
                options.append((None, old))
                options.sort(key=lambda option: option[1].range[0] - option[1].range[1])
            best = search.best(index, slot, [quantizer for _, quantizer in options], chosen)
            chosen[slot] = options[best][1]
            clips[slot] = Clip(slot, options[best][0], *options[best][1].range)
        for slot, name in names.items():
            replace_module(model, name, chosen[slot])
        reports.append(
            AttentionClipping(
                name=site.name,
                clips=tuple(clips[slot] for slot in SEARCHED),
                before=search.deviation(search.side(0, before), search.side(1, before)),
                after=search.deviation(search.side(0, chosen), search.side(1, chosen)),
            )
        )
        if progress is not None:
            progress("clipping attentions", step + 1, len(sites))
    return reports


def _rounds(passes: int) -> Iterator[tuple[str, int, int]]:
    """Slot, side (0 query, 1 key) and pass, in the order of the search."""
    for number in range(passes):
        for position, slot in enumerate(SEARCHED):
            yield slot, position % 2, number


def _attention_inputs(
    model: SamModel, names: Sequence[str], images: CalibrationImages, index: int
) -> dict[str, AttentionInputs]:
    """Inputs of the query, key and value projections of each attention for one image, [P or 1, 1, T, C]."""
    found: dict[str, AttentionInputs] = {}

    def keep(name: str) -> object:
        def hook(_module: nn.Module, _args: object, kwargs: dict[str, Tensor]) -> None:
            found[name] = (_shared(kwargs["query"]), _shared(kwargs["key"]), _shared(kwargs["value"]))

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(keep(name), with_kwargs=True) for name in names
    ]
    try:
        backend = TorchBackend(model)
        pixel_values, prompts = images[index]
        backend.decode(backend.encode(pixel_values), prompts, multimask_output=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _shared(values: Tensor) -> Tensor:
    """The first prompt's values where all prompts have the same, as the image has in the first layer."""
    return values[:1].clone() if torch.equal(values, values[:1].expand_as(values)) else values
