"""Families but SAM v1: traced modules compute what torch computes, and ExecuTorch's programs give torch's masks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saqsam
from saqsam.export import export_model, read_manifest
from saqsam.export.executorch import modules
from saqsam.export.executorch.layers import RowLinear
from saqsam.export.executorch.modules import TRACED_FAMILIES, traced_family
from saqsam.export.executorch.sam.decoder import EMPTY_LABEL
from saqsam.export.executorch.sam2.encoder import TracedSam2Encoder
from saqsam.export.executorch.sam3_tracker.encoder import TracedSam3TrackerEncoder
from saqsam.export.packed import ExportError
from saqsam.inference.backend import TorchBackend
from saqsam.inference.predictor import Predictor
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.models.processing import build_processor
from saqsam.models.registry import FAMILIES, family_of, structure_of
from saqsam.recipes.deployment import deployable
from saqsam.runtimes import load_runtime
from saqsam.runtimes.inputs import decoder_inputs
from support.tiny_mobile_sam import pixels as tiny_mobile_sam_pixels
from support.tiny_mobile_sam import tiny_mobile_sam
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam import tiny_pixels, tiny_processor
from support.tiny_sam2 import tiny_sam2, tiny_sam2_config, tiny_sam2_pixels
from support.tiny_sam3_tracker import tiny_sam3_tracker, tiny_sam3_tracker_pixels
from support.tiny_sam_hq import tiny_sam_hq

needs_executorch = pytest.mark.skipif(
    find_spec("executorch") is None, reason="executorch is not installed: pip install '.[executorch]'"
)
EXACT = 1e-5
CHAOS = 0.05
"""As in `test_executorch`: values at the border of two codes."""
PROMPTS = {
    "boxes": Prompts(boxes=torch.tensor([[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0]])),
    "points": Prompts(
        points=torch.tensor([[[30.0, 20.0], [5.0, 60.0]], [[7.0, 8.0], [9.0, 10.0]]]),
        labels=torch.tensor([[1, 0], [1, 1]]),
    ),
    "masks": Prompts(
        boxes=torch.tensor([[4.0, 4.0, 40.0, 50.0]]),
        mask_inputs=torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(3)),
    ),
}


@dataclass(frozen=True)
class Case:
    model: Callable[[], Any]
    pixels: Callable[[], Tensor]


CASES = {
    "sam_hq": Case(tiny_sam_hq, tiny_pixels),
    "mobile_sam": Case(tiny_mobile_sam, tiny_mobile_sam_pixels),
    "sam2": Case(tiny_sam2, tiny_sam2_pixels),
    "sam3_tracker": Case(tiny_sam3_tracker, tiny_sam3_tracker_pixels),
}
cases = pytest.mark.parametrize("name", CASES)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def quantized(name: str, bits: str, **changes: Any) -> Any:
    model = CASES[name].model()
    recipe = deployable(tiny_recipe(bits=bits, **changes), "executorch")
    return saqsam.quantize(model, build_processor(model.config), recipe, tiny_data()).model


def filled_up(model: Any, features: Features, prompts: Prompts, points: int = 8) -> list[Tensor]:
    """Inputs of a decoder that takes so many points."""
    spec = family_of(model.config).input_spec(model.config)
    maps = {name: tensor.numpy() for name, tensor in zip(spec.features, features.maps, strict=True)}
    arrays = decoder_inputs(maps, prompts, pads_boxes=spec.pads_boxes)
    given = {name: torch.from_numpy(value) for name, value in arrays.items()}
    lacking = points - given["point_labels"].shape[1]
    given["point_coords"] = torch.nn.functional.pad(given["point_coords"], (0, 0, 0, lacking))
    labels = torch.nn.functional.pad(given["point_labels"], (0, lacking), value=float(EMPTY_LABEL))
    given["point_labels"] = labels
    return list(given.values())


@cases
@pytest.mark.parametrize("bits", [None, "w8a8", "w4a8"])
@torch.inference_mode()
def test_the_traced_modules_are_torchs(name: str, bits: str | None) -> None:
    model = CASES[name].model() if bits is None else quantized(name, bits)
    tolerance = EXACT if bits is None else CHAOS
    traced, backend = traced_family(model.config), TorchBackend(model)
    features = backend.encode(CASES[name].pixels())
    found = traced.encoder(model)(CASES[name].pixels())
    found = found if isinstance(found, tuple) else (found,)
    for one, other in zip(found, features.maps, strict=True):
        assert one.shape == other.shape
        assert relative(one, other) < tolerance
    for prompts in PROMPTS.values():
        ious, masks, *_ = traced.decoder(model)(*filled_up(model, features, prompts))
        masks, ious = family_of(model.config).select_masks(model.config, masks, ious, True)
        wanted, scores = backend.decode(features, prompts, True)
        assert relative(masks, wanted) < tolerance
        assert relative(ious, scores) < tolerance


@pytest.mark.parametrize(
    ("name", "encoder"), [("sam2", TracedSam2Encoder), ("sam3_tracker", TracedSam3TrackerEncoder)]
)
@torch.inference_mode()
def test_global_attention_in_blocks_is_the_same(name: str, encoder: Any) -> None:
    model, pixels = CASES[name].model(), CASES[name].pixels()
    whole, blocks = encoder(model, None), encoder(model, 16)
    assert any(block.attention.queries for block in blocks.blocks)
    for one, other in zip(blocks(pixels), whole(pixels), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5, 2.0])
@torch.inference_mode()
def test_sam2s_single_mask_is_chosen_by_its_stability(threshold: float | None) -> None:
    rule = (
        {"dynamic_multimask_via_stability": False}
        if threshold is None
        else {"dynamic_multimask_stability_thresh": threshold}
    )
    config = tiny_sam2_config()
    for field, value in rule.items():
        setattr(config.mask_decoder_config, field, value)
    model = tiny_sam2(config=config)
    backend = TorchBackend(model)
    features = backend.encode(tiny_sam2_pixels())
    for prompts in PROMPTS.values():
        inputs = filled_up(model, features, prompts)
        ious, masks, score = traced_family(config).decoder(model, single_mask=True)(*inputs)
        wanted, scores = backend.decode(features, prompts, False)
        assert masks.shape == wanted.shape
        assert score.shape == (len(prompts), 1)
        assert relative(masks, wanted) < EXACT
        assert relative(ious, scores) < EXACT


@cases
def test_each_quantized_layer_is_one_product_of_its_width(name: str) -> None:
    model = quantized(name, "w4a8")
    traced = traced_family(model.config)
    parts = (traced.encoder(model), traced.decoder(model))
    layers = [m for part in parts for m in part.modules() if isinstance(m, RowLinear) and m.is_quantized]
    sites = [site.name for site in structure_of(model.config).weighted_sites]
    packed = [site for site in sites if hasattr(model.get_submodule(site).weight, "bits")]
    embeddings = [site for site in packed if "patch_embed" in site]  # weights alone
    assert len(layers) == len(packed) - len(embeddings)
    assert {layer.packed.bits for layer in layers} == {4, 8}


def test_long_rows_of_quantized_convolutions_are_refused() -> None:
    recipe = replace(deployable(tiny_recipe(bits="w8a8"), "executorch"), extra={"upscaling": 8})
    model = saqsam.quantize(tiny_sam_hq(), tiny_processor(), recipe, tiny_data()).model
    with pytest.raises(ExportError, match=r"mask_conv1: .*--set extra\.upscaling\.output=none") as error:
        traced_family(model.config).decoder(model)
    assert "\n" not in str(error.value)


def test_a_family_without_modules_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {family.name for family in FAMILIES} == TRACED_FAMILIES.keys()
    monkeypatch.setattr(modules, "TRACED_FAMILIES", {})
    with pytest.raises(ExportError, match=r"SAM 3 tracker models cannot be exported to ExecuTorch yet"):
        traced_family(tiny_sam3_tracker().config)


@needs_executorch
@pytest.mark.slow
@cases
def test_the_runtime_gives_torchs_masks(name: str, tmp_path: Path) -> None:
    model = quantized(name, "w4a8")
    folder = tmp_path / "export"
    export_model(model, build_processor(model.config), folder, format="executorch")
    delegation = read_manifest(folder).details["delegation"]
    for part in delegation.values():
        assert part["share"] > 0.85
        assert not {"linear", "bmm", "convolution"} & part["outside"].keys()
    backend, processor = load_runtime(folder)
    torchs = TorchBackend(model)
    features = torchs.encode(CASES[name].pixels())
    for one, other in zip(backend.encode(CASES[name].pixels()).maps, features.maps, strict=True):
        assert relative(one, other) < CHAOS
    for prompts in PROMPTS.values():
        for multimask in (False, True):
            found, wanted = (one.decode(features, prompts, multimask) for one in (backend, torchs))
            for one, other in zip(found, wanted, strict=True):
                assert relative(one, other) < CHAOS
    predictor = Predictor(backend, processor)
    predictor.set_image(tiny_data()[0].image)
    masks, _, _ = predictor.predict(box=[5.0, 6.0, 50.0, 40.0], multimask_output=False)
    assert masks.shape == (1, *tiny_data()[0].image.shape[:2])
