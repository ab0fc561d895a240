"""Perceptual-consistency clipping (PCC): ranges of the decoder's attentions that preserve where the attention looks.

SAQ-SAM (arXiv 2503.06515). Ranges of four tensors of each attention are searched (`focus_search.py`): the inputs of the
query and the key projection, then the queries and keys themselves. Each is fixed and switched on before the next is
searched, and all are searched twice.

Hard clipping of rare huge queries and keys changes the distribution a lot and the focus not at all, which is why a
search for the least squared error never finds these ranges.

Deviations: none in the search. Weights are float during the search; the paper does not say.

Beyond the paper, `clipping.measure = output` compares the attention's output by its relative squared error. It too
tolerates huge queries and keys that shift a row of logits by a constant, and it also sees what the focus does not: keys
outside of it that share the rest of a row's probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.convert.plan import activation_slots
from saqsam.convert.prepare import emptied
from saqsam.inference.backend import TorchBackend
from saqsam.models.family import replace_module
from saqsam.models.parts import DECODER_PARTS
from saqsam.models.sam.attention import QuantDecoderAttention
from saqsam.models.structure import ModelStructure
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.ptq.focus_search import SEARCHED, AttentionInputs, FocusSearch
from saqsam.ptq.log import AttentionClipping, Clip
from saqsam.quant.affine import AffineQuantizer
from saqsam.recipes.recipe import Recipe
from saqsam.utils.progress import Progress


@torch.no_grad()
def clip_attentions(
    model: SamModel,
    structure: ModelStructure,
    recipe: Recipe,
    images: CalibrationImages,
    progress: Progress | None = None,
) -> list[AttentionClipping]:
    """Clip the ranges of queries and keys, and of the inputs of their projections, in the decoder's attentions.

    Args:
        model: Calibrated model with float weights; its quantizers are replaced in place.
        structure: Structure of the model.
        recipe: Recipe with `clipping`.
        images: Calibration images.
        progress: Progress callback.

    Returns:
        The ranges chosen for each attention of the decoder.
    """
    spec = recipe.clipping
    assert spec is not None
    sites = [site for site in structure.attentions if site.part in DECODER_PARTS]
    bits = {slot.name: slot.bits for slot in activation_slots(structure, recipe)}
    count = min(spec.images, len(images))
    with emptied(model, bits):
        inputs = [attention_inputs(model, [site.name for site in sites], images, i) for i in range(count)]
    clippings = []
    for step, site in enumerate(sites):
        attention = model.get_submodule(site.name)
        assert isinstance(attention, QuantDecoderAttention)
        search = FocusSearch(attention, [image.pop(site.name) for image in inputs], spec.theta, spec.measure)
        names = {slot: f"{site.name}.{slot}" for slot in SEARCHED}
        slot_bits = {slot: bits[name] for slot, name in names.items()}
        calibrated: dict[str, nn.Module] = {slot: model.get_submodule(name) for slot, name in names.items()}
        chosen, clips = _search_ranges(search, calibrated, slot_bits, recipe)
        for slot, name in names.items():
            replace_module(model, name, chosen[slot])
        clippings.append(
            AttentionClipping(
                name=site.name,
                clips=clips,
                before=search.deviation(search.side(0, calibrated), search.side(1, calibrated)),
                after=search.deviation(search.side(0, chosen), search.side(1, chosen)),
            )
        )
        if progress is not None:
            progress("clipping attentions", step + 1, len(sites))
    return clippings


def _search_ranges(
    search: FocusSearch, calibrated: dict[str, nn.Module], bits: dict[str, int], recipe: Recipe
) -> tuple[dict[str, nn.Module], tuple[Clip, ...]]:
    """Search the ranges of one attention.

    Args:
        search: Search on the attention.
        calibrated: Calibrated quantizers by slot.
        bits: Bits by slot.
        recipe: Recipe with `clipping`.

    Returns:
        The chosen quantizers by slot, and their ranges in the order of `SEARCHED`.
    """
    spec = recipe.clipping
    assert spec is not None
    chosen: dict[str, nn.Module] = {slot: nn.Identity() for slot in SEARCHED}
    clips: dict[str, Clip] = {}
    for slot, side in _search_order(spec.passes):
        candidates: list[tuple[float | None, AffineQuantizer]] = [
            *search.candidates(side, slot, bits[slot], symmetric=recipe.activation_spec.symmetric)
        ]
        if spec.include_range:
            quantizer = calibrated[slot]
            assert isinstance(quantizer, AffineQuantizer)
            candidates.append((None, quantizer))
            # Widest first, since ties go to the first.
            candidates.sort(key=lambda candidate: candidate[1].range[0] - candidate[1].range[1])
        best = search.best(side, slot, [quantizer for _, quantizer in candidates], chosen)
        quantile, chosen[slot] = candidates[best]
        clips[slot] = Clip(slot, quantile, *candidates[best][1].range)
    return chosen, tuple(clips[slot] for slot in SEARCHED)


def _search_order(passes: int) -> Iterator[tuple[str, int]]:
    """Yield slot and side (0 query, 1 key) in the order of the search."""
    for _ in range(passes):
        for position, slot in enumerate(SEARCHED):
            yield slot, position % 2


def attention_inputs(
    model: SamModel, names: Sequence[str], images: CalibrationImages, index: int
) -> dict[str, AttentionInputs]:
    """Capture the inputs of attentions of the decoder for one image.

    Args:
        model: Model to run.
        names: Module names of the attentions.
        images: Calibration images.
        index: Index of the image.

    Returns:
        Inputs of the query, key and value projections, float32 [P or 1, 1, T, C], by attention.
    """
    captured: dict[str, AttentionInputs] = {}

    def keep(name: str) -> object:
        def hook(_module: nn.Module, _args: object, kwargs: dict[str, Tensor]) -> None:
            captured[name] = (_shared(kwargs["query"]), _shared(kwargs["key"]), _shared(kwargs["value"]))

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
    return captured


def _shared(values: Tensor) -> Tensor:
    """Return the values [1, ...] of the first prompt if all prompts share them, as image tokens of the first layer."""
    return values[:1].clone() if torch.equal(values, values[:1].expand_as(values)) else values
