"""Perceptual-consistency clipping (PCC): ranges of the decoder's attentions that preserve where the attention looks.

SAQ-SAM (arXiv 2503.06515). Ranges of four tensors of each attention are searched (`focus_search.py`): the inputs of the
query and the key projection, then the queries and keys themselves. Each is fixed and switched on before the next is
searched, and all are searched twice.

Hard clipping of rare huge queries and keys changes the distribution a lot and the focus not at all, which is why a
search for the least squared error never finds these ranges.

The search has no ranges to choose for dynamic queries and keys (`Recipe.dynamic_queries`), but it rounds them.

Deviations: prompts and queries are sampled (`MAX_PROMPTS`, and `MAX_QUERIES` of `focus_search.py`). Weights are float
during the search; the paper does not say.

Beyond the paper, `clipping.measure = output` compares the attention's output by its relative squared error. It too
tolerates huge queries and keys that shift a row of logits by a constant, and it also sees what the focus does not: keys
outside of it that share the rest of a row's probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.convert.plan import QuantizationPlan
from saqsam.convert.prepare import emptied
from saqsam.inference.prompts import Prompts
from saqsam.models.family import DecoderAttention, Features
from saqsam.models.structure import AttentionSite, replace_module
from saqsam.ptq.calibration import encode_image, run_decoder
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.ptq.focus_search import SEARCHED, AttentionInputs, FocusSearch, searched_slots
from saqsam.ptq.log import AttentionClipping, Clip
from saqsam.quant.affine import AffineQuantizer
from saqsam.recipes.recipe import Recipe
from saqsam.utils import ranks
from saqsam.utils.progress import Progress

MAX_PROMPTS = 64
"""Most prompts, of all images together, that candidates are compared on; each image has at least one."""


@torch.no_grad()
def clip_attentions(
    model: SamModel,
    plan: QuantizationPlan,
    images: CalibrationImages,
    progress: Progress | None = None,
) -> list[AttentionClipping]:
    """Clip the ranges of queries and keys, and of the inputs of their projections, in the decoder's attentions.

    Several ranks share the images to encode, then the attentions, whose searches do not depend on each other. Every
    rank gets all ranges.

    Args:
        model: Calibrated model with float weights; its quantizers are replaced in place.
        plan: Quantization plan of the run.
        images: Calibration images.
        progress: Progress callback.

    Returns:
        The ranges chosen for each attention of the decoder.
    """
    spec = plan.recipe.clipping
    assert spec is not None
    sites = plan.structure.decoder_attentions
    bits = {slot.name: slot.bits for slot in plan.slots}
    count = min(spec.images, len(images))
    own = [sites[number] for number in ranks.share(len(sites))]
    names = [site.name for site in own]
    if progress is not None:
        progress("clipping attentions", 0, len(own))
    chosen: dict[str, _Choice] = {}
    with emptied(model, bits):
        encoded = _encode(model, images, count, max(1, MAX_PROMPTS // count))
        with ranks.agreement():
            inputs = [attention_inputs(model, names, *image) for image in encoded]
    with ranks.agreement():
        for step, site in enumerate(own):
            attention = cast(DecoderAttention, model.get_submodule(site.name))
            tensors = [image.pop(site.name) for image in inputs]
            search = FocusSearch(attention, tensors, spec.theta, spec.measure)
            slots = searched_slots(site)
            calibrated: dict[str, nn.Module] = {o: model.get_submodule(slot) for o, slot in slots.items()}
            operand_bits = {operand: bits[slot] for operand, slot in slots.items()}
            chosen[site.name] = _clip(search, site, calibrated, operand_bits, plan.recipe)
            if progress is not None:
                progress("clipping attentions", step + 1, len(own))
    by_name = {name: choice for part in ranks.all_gather(chosen) for name, choice in part.items()}
    for site in sites:
        for operand, slot in searched_slots(site).items():
            replace_module(model, slot, by_name[site.name][0][operand].to(model.device))
    return [by_name[site.name][1] for site in sites]


_Choice = tuple[dict[str, nn.Module], AttentionClipping]
"""Quantizers of an attention by operand, on the CPU, and their part of the log."""


def _encode(
    model: SamModel, images: CalibrationImages, count: int, max_prompts: int
) -> list[tuple[Features, Prompts]]:
    """Encode the first images, which several ranks share, and return features and prompts of all, on the CPU.

    Args:
        model: Model to run.
        images: Calibration images.
        count: Number of images.
        max_prompts: Most prompts of an image; evenly spaced ones are taken.
    """

    def encode(index: int) -> tuple[Features, Prompts]:
        pixel_values, prompts = images[index]
        features = encode_image(model, pixel_values)
        on_cpu = Features(features.embedding.cpu(), tuple(extra.cpu() for extra in features.extras))
        return on_cpu, prompts[:: -(-len(prompts) // max_prompts)]

    return ranks.shared_map(encode, count)


def _clip(
    search: FocusSearch,
    site: AttentionSite,
    calibrated: Mapping[str, nn.Module],
    bits: Mapping[str, int],
    recipe: Recipe,
) -> _Choice:
    """Search the ranges of one attention; arguments are those of `_search_ranges`."""
    chosen, quantiles = _search_ranges(search, calibrated, bits, recipe)
    clipping = AttentionClipping(
        name=site.name,
        clips=tuple(
            Clip(slot.removeprefix(f"{site.name}."), quantiles[operand], *quantizer.range)
            for operand, slot in searched_slots(site).items()
            if isinstance(quantizer := chosen[operand], AffineQuantizer)
        ),
        before=search.deviation(search.side(0, calibrated), search.side(1, calibrated)),
        after=search.deviation(search.side(0, chosen), search.side(1, chosen)),
    )
    return {operand: quantizer.cpu() for operand, quantizer in chosen.items()}, clipping


def _search_ranges(
    search: FocusSearch, calibrated: Mapping[str, nn.Module], bits: Mapping[str, int], recipe: Recipe
) -> tuple[dict[str, nn.Module], dict[str, float | None]]:
    """Search the ranges of one attention.

    Args:
        search: Search on the attention.
        calibrated: Calibrated quantizers by operand.
        bits: Bits by operand.
        recipe: Recipe with `clipping`.

    Returns:
        The chosen quantizers, those without a static range included, and the quantiles of the chosen ranges by operand;
        None where the calibrated range was kept.
    """
    spec = recipe.clipping
    assert spec is not None
    current: dict[str, nn.Module] = {operand: nn.Identity() for operand in SEARCHED}
    quantiles: dict[str, float | None] = {}
    candidates: dict[str, list[tuple[float | None, AffineQuantizer]]] = {}
    searched: dict[str, list[nn.Module]] = {}
    for operand, side in _search_order(spec.passes):
        quantizer = calibrated[operand]
        if not isinstance(quantizer, AffineQuantizer):
            current[operand] = quantizer
            continue
        others = [current[name] for name in SEARCHED if name != operand]
        if searched.get(operand) == others:
            continue  # Nothing has changed since the last pass.
        searched[operand] = others
        if operand not in candidates:
            candidates[operand] = [
                *search.candidates(side, operand, bits[operand], symmetric=recipe.activation_spec.symmetric)
            ]
            if spec.include_range:
                candidates[operand].append((None, quantizer))
                # Widest first, since ties go to the first.
                candidates[operand].sort(key=lambda candidate: candidate[1].range[0] - candidate[1].range[1])
        best = search.best(side, operand, [quantizer for _, quantizer in candidates[operand]], current)
        quantiles[operand], current[operand] = candidates[operand][best]
    return current, quantiles


def _search_order(passes: int) -> Iterator[tuple[str, int]]:
    """Yield operand and side (0 query, 1 key) in the order of the search."""
    for _ in range(passes):
        for position, operand in enumerate(SEARCHED):
            yield operand, position % 2


def attention_inputs(
    model: SamModel, names: Sequence[str], features: Features, prompts: Prompts
) -> dict[str, AttentionInputs]:
    """Capture the inputs of attentions of the decoder for one image.

    Args:
        model: Model to run.
        names: Module names of the attentions.
        features: Features of the image, on any device.
        prompts: P box prompts in pixels of the S x S input.

    Returns:
        Inputs of the query, key and value projections, float32 [P, 1, T, C], by attention; [1, 1, T, C] where all
        prompts share them, as image tokens of the first layer.
    """
    captured: dict[str, AttentionInputs] = {}

    def keep(name: str) -> object:
        def hook(_module: nn.Module, _args: object, kwargs: dict[str, Tensor]) -> None:
            captured[name] = (kwargs["query"], kwargs["key"], kwargs["value"])

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(keep(name), with_kwargs=True) for name in names
    ]
    try:
        run_decoder(model, features, prompts, with_mask_head=False)
    finally:
        for handle in handles:
            handle.remove()
    return captured
