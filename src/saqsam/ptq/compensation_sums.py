"""Sums over layer inputs for compensation, collected while the quantized model runs unit by unit.

An encoder layer reads thousands of tokens per image, so a few images of a large model are enough for it. The decoder
runs on every image, with a few prompts each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamModel

from saqsam.convert.plan import QuantizationPlan
from saqsam.models.family import DecoderAttention
from saqsam.models.structure import AttentionSite
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.ptq.states import PromptTokens, State, image_state
from saqsam.ptq.tensor_store import MemoryBudget, TensorStore
from saqsam.ptq.units import Unit
from saqsam.quant.compensation import InputSums, LogitSums
from saqsam.quant.layers import QuantConv2d, QuantLinear
from saqsam.utils import ranks
from saqsam.utils.progress import Progress

CompensatedLayer = QuantLinear | QuantConv2d
_T = TypeVar("_T")


def layer_of(model: SamModel, name: str) -> CompensatedLayer:
    """Return a layer of the papers' tensor set, by name."""
    return cast(CompensatedLayer, model.get_submodule(name))


@dataclass(frozen=True)
class Embeddings:
    """Image embeddings ([1, 1, h * w, C'],) of all calibration images; those of other ranks' images are empty.

    Attributes:
        quantized: By the quantized encoder.
        floats: By the float encoder.
    """

    quantized: TensorStore
    floats: TensorStore


class CompensationRun:
    """States of the quantized model before the next unit, for this rank's images.

    If the float model gives the targets, its states are kept as well.

    Args:
        model: Calibrated model whose weights are rounded in the forward pass.
        reference: Float model.
        plan: Quantization plan of the run, whose recipe has a `compensation`.
        images: Calibration images.
        budget: Memory for the states.
        floats: Image embeddings of the float encoder; None or empty if they are not known.

    Attributes:
        model: The calibrated model.
    """

    def __init__(
        self,
        model: SamModel,
        reference: SamModel,
        plan: QuantizationPlan,
        images: CalibrationImages,
        budget: MemoryBudget,
        floats: TensorStore | None = None,
    ) -> None:
        spec = plan.recipe.compensation
        assert spec is not None
        self.model, self._reference, self._family = model, reference, plan.family
        self._budget = budget
        tokens = plan.family.input_spec(model.config).grid ** 2
        self._count = min(len(images), spec.images)
        self._encoder_images = min(self._count, max(1, -(-spec.tokens // tokens)))
        self._embeddings: dict[SamModel, TensorStore] = {reference: floats} if floats else {}
        self._prompts: dict[int, PromptTokens] = {}
        self._targets_from_float = spec.target == "float"
        runs = (self.model, reference) if self._targets_from_float else (self.model,)
        self._states = {model: TensorStore(budget, "the patch embedding") for model in runs}
        self._images: dict[int, int] = {}
        self._calibration = images
        with ranks.agreement():
            self._start(spec.prompts)

    def _start(self, most_prompts: int) -> None:
        """Embed patches and prompts of this rank's images."""
        own = ranks.share(self._count)
        for number in range(self._count):
            if number not in own:
                for store in self._states.values():
                    store.append(())
                continue
            self._images[number] = number * len(self._calibration) // self._count
            pixel_values, prompts = self._calibration[self._images[number]]
            assert prompts.boxes is not None
            boxes = prompts.boxes[:most_prompts]
            self._prompts[number] = PromptTokens.embed(self._family, self.model, boxes)
            pixels = pixel_values.to(self.model.device)
            for model, store in self._states.items():
                store.append(self._family.embed_patches(model, pixels))

    def advance(self, unit: Unit) -> None:
        """Replace the states before a unit by those after it."""
        for model, store in self._states.items():
            outputs = TensorStore(self._budget, f"the output of {unit.name}")
            with ranks.agreement():
                for number in range(self._count):
                    prompts = self._prompts.get(number)
                    state = store.get(number, model.device)
                    outputs.append(unit.run(model, state, prompts) if prompts is not None else ())
            if store not in self._embeddings.values():
                store.clear()
            self._states[model] = outputs
            if unit.gives_embedding:
                self._embeddings[model] = outputs

    def embeddings(self, progress: Progress | None = None) -> Embeddings | None:
        """Return the image embeddings once the neck has run; None unless every calibration image has one.

        Args:
            progress: Progress callback; it counts images.
        """
        if self._count < len(self._calibration):
            return None
        floats = self._embeddings.get(self._reference)
        if floats is None:
            floats = TensorStore(self._budget, "the image embedding")
            with ranks.agreement():
                for number in range(self._count):
                    if progress is not None:
                        progress("embedding images", number, self._count)
                    floats.append(self._embed(number) if number in self._images else ())
            if progress is not None:
                progress("embedding images", self._count, self._count)
        return Embeddings(self._embeddings[self.model], floats)

    def _embed(self, number: int) -> State:
        """Return the state after the float encoder of one image."""
        pixel_values, _ = self._calibration[self._images[number]]
        features = self._family.encode(self._reference, pixel_values.to(self.model.device))
        return image_state(features)

    def input_sums(self, unit: Unit, names: Sequence[str]) -> dict[str, InputSums]:
        """Return the sums over the inputs of layers of a unit that read the same activations, by name."""

        def work(number: int) -> dict[str, InputSums]:
            floats, quantized = self._inputs(unit, number, names)
            return {
                name: InputSums.of(
                    _input_rows(layer_of(self._reference, name), floats[name]),
                    _input_rows(layer_of(self.model, name), quantized[name]),
                )
                for name in names
            }

        total: dict[str, InputSums] = {}
        for sums in self._over_images(unit, work):
            total = {name: total[name] + found if total else found for name, found in sums.items()}
        return total

    def logit_sums(self, unit: Unit, site: AttentionSite) -> LogitSums:
        """Return the sums over the queries of a decoder attention, whose keys are compensated already."""
        layers = (site.query, site.key)

        def work(number: int) -> LogitSums:
            floats, quantized = self._inputs(unit, number, layers)
            attention = cast(Any, self.model.get_submodule(site.name))
            query = cast(QuantLinear, layer_of(self.model, site.query))
            inputs = query.rounded_input(quantized[site.query])  # [P, 1, Q, K]
            keys = attention.split_heads(layer_of(self.model, site.key)(quantized[site.key]))
            keys = attention.key_quantizer(keys)
            queries = attention.split_heads(F.linear(inputs, query.weight, query.bias))
            missing = _logits(self._reference, site, floats) - queries @ keys.mT
            return LogitSums.of(inputs.flatten(0, 1), keys, missing)

        total, *others = self._over_images(unit, work)
        for sums in others:
            total += sums
        return total

    def _inputs(
        self, unit: Unit, number: int, names: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the inputs of float layers for one image, and those of the layers to compensate."""
        quantized = self._capture(self.model, unit, number, names)
        if not self._targets_from_float:
            return quantized, quantized  # the float layer reads them before they are rounded
        return self._capture(self._reference, unit, number, names), quantized

    def _capture(self, model: SamModel, unit: Unit, number: int, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the inputs of layers for one image in a model, before their own quantizers."""
        state = self._states[model].get(number, model.device)
        with _capturing(model, names) as inputs:
            unit.run(model, state, self._prompts[number])
        return inputs

    def _over_images(self, unit: Unit, work: Callable[[int], _T]) -> list[_T]:
        """Return the results of `work` for the numbers of the images that a unit needs."""
        needed = self._count if unit.sees_prompts else self._encoder_images
        results = ranks.shared_map(
            lambda number: work(number) if number < needed else None, self._count, "compensating"
        )
        return [result for result in results if result is not None]


def _logits(model: SamModel, site: AttentionSite, inputs: dict[str, Tensor]) -> Tensor:
    """Return unscaled logits [P, N, Q, T] of an attention from the inputs of its projections."""
    attention = cast(DecoderAttention, model.get_submodule(site.name))
    queries, keys = (
        attention.split_heads(layer_of(model, name)(inputs[name])) for name in (site.query, site.key)
    )
    return queries @ keys.mT


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


def _input_rows(layer: CompensatedLayer, values: Tensor) -> Tensor:
    """Return what a layer multiplies by its weight, as rows [R, K], from its input."""
    if isinstance(layer, QuantLinear):
        return layer.rounded_input(values).flatten(0, -2)
    values = layer.input_quantizer(values)
    patches = F.unfold(values, layer.kernel_size, padding=layer.padding, stride=layer.stride)  # type: ignore[arg-type]
    return patches.mT.flatten(0, 1)
