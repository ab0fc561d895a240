"""Compensation: change weights and biases layer by layer so that they make up for quantization errors, in closed form.

`quant.compensation` has the formulas: GPTQ (arXiv 2210.17323), ERQ (arXiv 2407.06794) and CAR-SAM's correction of
queries (arXiv 2605.16901). This module computes the sums that they need. Layers are treated in the order of
computation, on inputs that the quantized layers before them have computed, next to those of the float model. Layers
that read the same activations, such as the projections of an attention, share a pass over the images.

Unlike reconstruction, it takes no steps and no gradients: a few passes over each unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamModel

from saqsam.convert.pack import find_grid
from saqsam.convert.plan import PlannedWeight, QuantizationPlan
from saqsam.models.family import DecoderAttention, flatten_image
from saqsam.models.parts import DECODER_PARTS, ENCODER_PARTS, PAPER_PARTS
from saqsam.models.structure import AttentionSite
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.ptq.losses import OutputLoss
from saqsam.ptq.states import PromptTokens, State
from saqsam.ptq.units import DecoderUnit, EncoderUnit, FinalAttentionUnit, NeckUnit, Unit
from saqsam.quant.compensation import (
    InputSums,
    LogitSums,
    compensated_rounding,
    correct_queries,
    correct_weight,
    matching_bias,
)
from saqsam.quant.layers import Grid, GridRounding, QuantConv2d, QuantLinear
from saqsam.recipes.specs import Compensation
from saqsam.utils import ranks
from saqsam.utils.progress import Progress

PHASE = "compensating"
CHANNEL_AXIS = 0
"""Axis of the output channels in the weights of linear layers and convolutions."""
_T = TypeVar("_T")
CompensatedLayer = QuantLinear | QuantConv2d


@torch.no_grad()
def compensate(
    model: SamModel,
    reference: SamModel,
    plan: QuantizationPlan,
    images: CalibrationImages,
    progress: Progress | None = None,
) -> None:
    """Compensate the layers of a calibrated model in place, as the recipe says.

    A compensated layer keeps float weights, whose nearest codes on the layer's grid are those to pack. Several ranks
    share the images.

    Args:
        model: Calibrated model: quantizers in all slots, float weights.
        reference: The same model with empty slots.
        plan: Quantization plan of the run, whose recipe has a `compensation`.
        images: Calibration images; evenly spaced ones are used.
        progress: Progress callback; its steps are layers.
    """
    spec = plan.recipe.compensation
    assert spec is not None
    count = min(len(images), spec.images)
    own = [number * len(images) // count for number in ranks.share(count)]
    wanted = [planned for planned in plan.weights if _is_wanted(planned, spec)]
    with _rounding_weights(model, plan):
        run = _Run(model, reference, plan, spec, _first_states(model, reference, plan, images, own), count)
        done = 0
        if progress is not None:
            progress(PHASE, 0, len(wanted))
        for unit in _units(plan):
            for group in _groups(unit, wanted, plan):
                run.compensate_layers(unit, group)
                done += len(group)
                if progress is not None:
                    progress(PHASE, done, len(wanted))
            run.advance(unit)


def _is_wanted(planned: PlannedWeight, spec: Compensation) -> bool:
    """Return whether the weight of a layer is compensated."""
    part = planned.site.part
    return part in DECODER_PARTS or (spec.layers == "all" and part in ENCODER_PARTS)


def _units(plan: QuantizationPlan) -> list[Unit]:
    """Return the encoder's blocks, the neck, the decoder's layers and its final attention."""
    structure, loss = plan.structure, OutputLoss()
    units: list[Unit] = [
        EncoderUnit(plan, name, [index], (), loss, relative_steps=1)
        for index, name in enumerate(structure.blocks)
    ]
    units.append(NeckUnit(plan, loss, relative_steps=1))
    units.extend(
        DecoderUnit(plan, index, loss, token_weight=1) for index in range(len(structure.decoder_layers))
    )
    units.append(FinalAttentionUnit(plan, loss, relative_steps=1))
    return units


def _groups(
    unit: Unit, wanted: Sequence[PlannedWeight], plan: QuantizationPlan
) -> Iterator[list[PlannedWeight]]:
    """Yield the layers of a unit in the order of computation, those that read the same activations together."""
    projections = {
        name: site.name
        for site in plan.structure.attentions
        if not site.is_fused
        for name in (site.query, site.key, site.value)
    }
    group: list[PlannedWeight] = []
    for planned in wanted:
        if not any(planned.site.name.startswith(f"{module}.") for module in unit.modules):
            continue
        attention = projections.get(planned.site.name)
        if group and (attention is None or projections.get(group[-1].site.name) != attention):
            yield group
            group = []
        group.append(planned)
    if group:
        yield group


@dataclass
class _Image:
    """One image between two units: its prompts, and its states in the quantized and in the float model."""

    prompts: PromptTokens
    quantized: State
    floats: State


def _first_states(
    model: SamModel,
    reference: SamModel,
    plan: QuantizationPlan,
    images: CalibrationImages,
    own: Sequence[int],
) -> list[_Image]:
    """Return the images of this rank before the first unit."""
    family = plan.family
    positions = family.image_positions(model)
    states = []
    for index in own:
        pixel_values, prompts = images[index]
        assert prompts.boxes is not None
        tokens, dense = family.embed_boxes(model, prompts.boxes)
        embedded = PromptTokens(tokens, flatten_image(dense), positions)
        pixels = pixel_values.to(model.device)
        states.append(
            _Image(
                embedded, (family.embed_patches(model, pixels),), (family.embed_patches(reference, pixels),)
            )
        )
    return states


@contextmanager
def _rounding_weights(model: SamModel, plan: QuantizationPlan) -> Iterator[None]:
    """Round all planned weights to nearest in the forward pass while the block runs."""
    inside = [planned for planned in plan.weights if planned.site.part in PAPER_PARTS]
    for site, bits in inside:
        layer = _layer(model, site.name)
        _round_layer(layer, find_grid(layer.weight, bits, CHANNEL_AXIS, plan.recipe), bits)
    try:
        yield
    finally:
        for site, _ in inside:
            _layer(model, site.name).weight_quantizer = nn.Identity()


def _layer(model: SamModel, name: str) -> CompensatedLayer:
    return cast(CompensatedLayer, model.get_submodule(name))


def _round_layer(layer: CompensatedLayer, grid: Grid, bits: int) -> None:
    layer.weight_quantizer = GridRounding(grid, bits, CHANNEL_AXIS)


@dataclass
class _Run:
    """A compensation in progress.

    Attributes:
        model: Model to compensate.
        reference: Float model.
        plan: Quantization plan.
        spec: The recipe's `compensation`.
        images: This rank's images before the next unit.
        count: Number of images of all ranks.
    """

    model: SamModel
    reference: SamModel
    plan: QuantizationPlan
    spec: Compensation
    images: list[_Image]
    count: int

    def advance(self, unit: Unit) -> None:
        """Replace the states before a unit by those after it."""
        for image in self.images:
            image.quantized = unit.run(self.model, image.quantized, image.prompts)
            image.floats = unit.run(self.reference, image.floats, image.prompts)

    def compensate_layers(self, unit: Unit, group: Sequence[PlannedWeight]) -> None:
        """Compensate layers of a unit that read the same activations."""
        names = [planned.site.name for planned in group]
        sums = self._sum(unit, names)
        attention = self._attention(names)
        for planned in group:
            if attention is None or planned.site.name != attention.query:
                self._compensate(planned, sums[planned.site.name])
        if attention is not None:
            # Queries make up for the error of the keys that they meet, so keys come first.
            query = next(planned for planned in group if planned.site.name == attention.query)
            change = correct_queries(self._sum_logits(unit, attention), self.spec.damping)
            self._compensate(query, sums[query.site.name], change)

    def _attention(self, names: Sequence[str]) -> AttentionSite | None:
        """Return the decoder attention whose projections these layers are, if its queries are corrected."""
        if not self.spec.queries:
            return None
        sites = (site for site in self.plan.structure.decoder_attentions if site.query in names)
        return next(sites, None)

    def _compensate(self, planned: PlannedWeight, sums: InputSums, change: Tensor | None = None) -> None:
        """Correct the weight of a layer, choose its grid, and round it with compensation.

        Args:
            planned: The layer.
            sums: Sums over its inputs.
            change: Correction of weight and bias, float64 [C, K + 1], in place of that by the layer's own output.
        """
        site, bits = planned
        layer = _layer(self.model, site.name)
        start = layer.weight.flatten(1).double().cpu()
        corrected = start
        if change is not None:
            corrected = start + change[:, :-1]
        elif self.spec.inputs:
            corrected = correct_weight(start, sums, self.spec.damping, centered=layer.bias is not None)
        _set_rows(layer, corrected)
        grid = layer.weight_grid = find_grid(layer.weight, bits, CHANNEL_AXIS, self.plan.recipe)
        if self.spec.rounding:
            squares, _ = sums.moments(centered=layer.bias is not None)
            rounded = compensated_rounding(corrected, *grid, bits, squares, self.spec.damping)
            _set_rows(layer, rounded)
        _round_layer(layer, grid, bits)
        if layer.bias is None:
            return
        codes = layer.weight_quantizer(layer.weight).flatten(1)
        if change is None:
            bias = matching_bias(layer.bias, start, codes, sums)
        else:
            # Corrected queries have the mean that they should have; rounding must not move it.
            lost = (corrected - codes.double().cpu()) @ (sums.quantized / sums.count)
            bias = layer.bias.double().cpu() + change[:, -1] + lost
        layer.bias.copy_(bias.to(layer.bias).half())  # a checkpoint stores float16

    def _sum(self, unit: Unit, names: Sequence[str]) -> dict[str, InputSums]:
        """Return the sums over the inputs of layers of a unit."""

        def work(number: int) -> dict[str, InputSums]:
            image = self.images[number]
            floats, quantized = self._inputs(unit, image, names)
            return {
                name: InputSums.of(
                    _input_rows(self.reference.get_submodule(name), floats[name]),
                    _input_rows(self.model.get_submodule(name), quantized[name]),
                )
                for name in names
            }

        total: dict[str, InputSums] = {}
        for sums in self._over_images(work):
            total = {name: total[name] + found if total else found for name, found in sums.items()}
        return total

    def _sum_logits(self, unit: Unit, site: AttentionSite) -> LogitSums:
        """Return the sums over the queries of an attention, whose keys are compensated already."""
        layers = (site.query, site.key)

        def work(number: int) -> LogitSums:
            floats, quantized = self._inputs(unit, self.images[number], layers)
            attention = cast(Any, self.model.get_submodule(site.name))
            target = self._logits(self.reference, site, floats)
            query = cast(QuantLinear, self.model.get_submodule(site.query))
            inputs = query.input_quantizer(query.input_scale(quantized[site.query]))  # [P, 1, Q, K]
            keys = attention.key_quantizer(
                attention.split_heads(self.model.get_submodule(site.key)(quantized[site.key]))
            )
            queries = attention.split_heads(F.linear(inputs, query.weight, query.bias))
            return LogitSums.of(inputs.flatten(0, 1), keys, target - queries @ keys.mT)

        total, *others = self._over_images(work)
        for sums in others:
            total += sums
        return total

    def _logits(self, model: SamModel, site: AttentionSite, inputs: dict[str, Tensor]) -> Tensor:
        """Return unscaled logits [P, N, Q, T] from the inputs of the projections."""
        attention = cast(DecoderAttention, model.get_submodule(site.name))
        queries, keys = (
            attention.split_heads(model.get_submodule(name)(inputs[name])) for name in (site.query, site.key)
        )
        return queries @ keys.mT

    def _inputs(
        self, unit: Unit, image: _Image, names: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the inputs of layers for one image in the float model, and in the model to compensate."""
        found: list[dict[str, Tensor]] = []
        for model, state in ((self.reference, image.floats), (self.model, image.quantized)):
            with _capturing(model, names) as inputs:
                unit.run(model, state, image.prompts)
            found.append(inputs)
        return found[0], found[1]

    def _over_images(self, work: Callable[[int], _T]) -> list[_T]:
        """Return the result of `work` for the number of each image, in the order of all images."""
        places = {number: place for place, number in enumerate(ranks.share(self.count))}
        return ranks.shared_map(lambda number: work(places[number]), self.count, PHASE)


class _AllCaptured(Exception):
    """Ends a forward pass whose rest is not needed."""


@contextmanager
def _capturing(model: SamModel, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Capture the inputs of layers, and end the block when the last of them is known."""
    inputs: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def capture(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs[name] = arguments[0]
            if len(inputs) == len(names):
                raise _AllCaptured

        return capture

    with ExitStack() as stack:
        for name in names:
            handle = model.get_submodule(name).register_forward_pre_hook(hook(name))
            stack.callback(handle.remove)
        with suppress(_AllCaptured):
            yield inputs


def _input_rows(layer: nn.Module, values: Tensor) -> Tensor:
    """Return what a layer multiplies by its weight, as rows [R, K], from its input."""
    if isinstance(layer, QuantLinear):
        rows: Tensor = layer.input_quantizer(layer.input_scale(values)).flatten(0, -2)
        return rows
    assert isinstance(layer, QuantConv2d)
    values = layer.input_quantizer(values)
    patches = F.unfold(values, layer.kernel_size, padding=layer.padding, stride=layer.stride)  # type: ignore[arg-type]
    return patches.mT.flatten(0, 1)


def _set_rows(layer: CompensatedLayer, rows: Tensor) -> None:
    """Give a layer a weight with new storage, from its rows [C, K]."""
    layer.weight.data = rows.to(layer.weight).reshape(layer.weight.shape)
