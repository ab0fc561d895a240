"""Measure how much the masks change when the operands of one part are rounded to given bits and all else is float.

No annotation is needed: masks are compared with those of the float model. The error is the mean Jaccard distance,
1 - IoU, which is a metric: the mean IoU with any annotation falls by no more.

Errors of several operands add as squares: rounding errors of different tensors are uncorrelated, and the displacement
of a mask's contour is linear in them. So the square of the error is what `solver.py` adds up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamModel

from saqsam.allocation.costs import Bits, Operand
from saqsam.convert.pack import round_weight
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import fill_slots
from saqsam.evaluation.metrics.iou import agreement_iou
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.models.parts import ENCODER_PARTS
from saqsam.models.registry import family_of
from saqsam.models.structure import replace_module
from saqsam.ptq.bimodal import find_signs, integrate_bimodal, merged_observers
from saqsam.ptq.calibration import calibrate, encode_image
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.ptq.clipping import clip_attentions
from saqsam.ptq.pipeline import prepare_equalized
from saqsam.quant.layers import PackedTensor
from saqsam.recipes.recipe import Recipe
from saqsam.utils.progress import Progress


class RoundedWeight(nn.Module):
    """Content of a `weight_quantizer` slot that replaces the float weight by a packed one."""

    def __init__(self, packed: PackedTensor) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight in the dtype of the float one."""
        return cast(Tensor, self.packed()).to(weight.dtype)


class RoundedModel:
    """A prepared float model whose operands can be rounded to any of several bits, one part at a time.

    Ranges are those that the recipe's method finds: equalized, calibrated and clipped. Nothing is compensated for or
    learned.

    Args:
        model: Float model from `prepare_run`; it is changed in place.
        recipe: Recipe without overrides.
        images: Images to calibrate on.
        widths: Bits to make the quantizers of, by kind of operand.
        progress: Progress callback.
    """

    def __init__(
        self,
        model: SamModel,
        recipe: Recipe,
        images: CalibrationImages,
        widths: Mapping[str, Sequence[int]],
        progress: Progress | None = None,
    ) -> None:
        plan = plan_quantization(model.config, recipe)
        prepare_equalized(model, plan, images, progress)
        self.model = model
        self._recipe, self._widths = recipe, widths
        self._plan = plan
        self._modules: dict[tuple[Operand, int], dict[str, nn.Module]] = {}
        self._find_ranges(images, progress)
        self._round_weights(progress)

    def _find_ranges(self, images: CalibrationImages, progress: Progress | None) -> None:
        """Make the quantizers of activations for all bits."""
        recipe = self._recipe
        for bits in self._widths["activations"]:
            activations = replace(recipe.activation_spec, bits=bits)
            plan = plan_quantization(self.model.config, replace(recipe, activations=activations))
            observers = calibrate(self.model, plan, images, progress)
            signs = find_signs(plan.structure, observers)
            integrate_bimodal(self.model, plan.structure, signs)
            fill_slots(self.model, plan, merged_observers(observers, signs))
            if recipe.clipping is not None:
                clip_attentions(self.model, plan, images, progress)
            recipe = replace(recipe, bimodal=False)  # the peaks of the keys are merged from now on
            for slot in plan.slots:
                operand = Operand(slot.part, "activations")
                self._modules.setdefault((operand, bits), {})[slot.name] = self.model.get_submodule(slot.name)
            for slot in plan.slots:
                replace_module(self.model, slot.name, nn.Identity())

    def _round_weights(self, progress: Progress | None) -> None:
        """Round the weights to all bits."""
        widths = self._widths["weights"]
        if progress is not None:
            progress("rounding weights", 0, len(self._plan.weights))
        for step, (site, _) in enumerate(self._plan.weights):
            for bits in widths:
                packed = round_weight(self.model.get_submodule(site.name), bits, self._recipe)
                modules = self._modules.setdefault((Operand(site.part, "weights"), bits), {})
                modules[f"{site.name}.weight_quantizer"] = RoundedWeight(packed)
            if progress is not None:
                progress("rounding weights", step + 1, len(self._plan.weights))

    @contextmanager
    def rounded(self, bits: Bits) -> Iterator[SamModel]:
        """Round operands while the block runs; all others stay float."""
        names = []
        try:
            for operand, width in bits.items():
                for name, module in self._modules[operand, width].items():
                    names.append(name)
                    replace_module(self.model, name, module)
            yield self.model
        finally:
            for name in names:
                replace_module(self.model, name, nn.Identity())


@dataclass(frozen=True)
class _Probe:
    """One image with the float model's features and masks.

    Attributes:
        pixel_values: [1, 3, S, S] float32.
        prompts: P box prompts.
        features: Features of the float model.
        masks: Masks of the float model, [P, S, S] bool.
    """

    pixel_values: Tensor
    prompts: Prompts
    features: Features
    masks: Tensor


class MaskErrors:
    """Errors of the masks of a rounded model on some images.

    Args:
        model: The model.
        images: Images and box prompts.

    Attributes:
        images: Number of images.
    """

    def __init__(self, model: RoundedModel, images: CalibrationImages) -> None:
        self._rounded = model
        self.images = len(images)
        self._probes = []
        for index in range(len(images)):
            pixel_values, prompts = images[index]
            features = encode_image(model.model, pixel_values)
            masks = _masks(model.model, features, prompts)
            self._probes.append(_Probe(pixel_values, prompts, features, masks))

    @torch.inference_mode()
    def measure(self, bits: Bits) -> float:
        """Return the mean Jaccard distance to the float model's masks with operands rounded, all others float."""
        is_encoder = any(operand.part in ENCODER_PARTS for operand in bits)
        total, count = 0.0, 0
        with self._rounded.rounded(bits) as model:
            for probe in self._probes:
                features = encode_image(model, probe.pixel_values) if is_encoder else probe.features
                masks = _masks(model, features, probe.prompts)
                total += float((1 - agreement_iou(masks, probe.masks)).sum())
                count += len(masks)
        return total / count


@torch.inference_mode()
def _masks(model: SamModel, features: Features, prompts: Prompts) -> Tensor:
    """Return the single masks of box prompts, [P, S, S] bool on the CPU, with the padding of the square input."""
    family = family_of(model.config)
    logits, _ = family.decode(
        model,
        features,
        points=None,
        labels=None,
        boxes=cast(Tensor, prompts.boxes).to(model.device),
        mask_inputs=None,
        multimask_output=False,
    )
    side = family.input_spec(model.config).image_size
    upscaled = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
    return (upscaled[:, 0] > 0).cpu()
