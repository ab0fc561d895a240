"""MobileSAM is quantized, saved, loaded, evaluated and inspected like any other family."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from saqsam.analysis.inventory import take_inventory
from saqsam.checkpoint import save_checkpoint
from saqsam.convert.plan import plan_quantization
from saqsam.evaluation.run import evaluate
from saqsam.inference.predictor import Predictor
from saqsam.models import load
from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import PackedConv2d, PackedLinear
from saqsam.quant.logarithmic import LogQuantizer
from saqsam.recipes.deployment import deployable
from saqsam.utils.errors import CheckpointError
from support.tiny_mobile_quantized import mobile_processor, quantize_mobile, quantized_mobile
from support.tiny_mobile_sam import pixels, tiny_config, tiny_mobile_sam
from support.tiny_quantized import tiny_data, tiny_recipe

BOXES = torch.tensor([[[10.0, 20.0, 90.0, 100.0], [0.0, 0.0, 127.0, 127.0]]])
POINTS = torch.tensor([[[[30.0, 40.0]]]])


@torch.inference_mode()
def outputs(model: MobileSamModel) -> list[torch.Tensor]:
    """Masks and IoUs of two boxes and of a point."""
    box = model(pixels(), input_boxes=BOXES, multimask_output=False)
    point = model(pixels(), input_points=POINTS)
    return [box.pred_masks, box.iou_scores, point.pred_masks, point.iou_scores]


def assert_same_outputs(found: MobileSamModel, expected: MobileSamModel) -> None:
    for one, other in zip(outputs(found), outputs(expected), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("method", ["mse", "saq-sam", "saq-sam-plus"])
def test_a_saved_checkpoint_gives_the_same_masks(method: str, tmp_path: Path) -> None:
    model = quantized_mobile(method)
    save_checkpoint(model, mobile_processor(), tmp_path / "packed")
    found, processor = load(tmp_path / "packed")
    assert isinstance(found, MobileSamModel)
    assert_same_outputs(found, model)
    assert processor.image_processor.to_dict() == mobile_processor().image_processor.to_dict()
    # A few steps on random weights, so the masks are no more than alike.
    agreement = ((outputs(model)[0] > 0) == (outputs(tiny_mobile_sam())[0] > 0)).float().mean()
    assert agreement > 0.6


@pytest.mark.slow
def test_auto_classes_find_it_in_a_fresh_process(tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    save_checkpoint(quantized_mobile(), mobile_processor(), folder)
    script = """
import sys, saqsam
from transformers import AutoModel, AutoModelForMaskGeneration, AutoProcessor
for kind in (AutoModelForMaskGeneration, AutoModel):
    model = kind.from_pretrained(sys.argv[1])
    assert type(model).__name__ == "MobileSamModel" and model.is_quantized
assert type(AutoProcessor.from_pretrained(sys.argv[1])).__name__ == "SamProcessor"
import torch
torch.save(model(torch.load(sys.argv[2]), input_boxes=torch.load(sys.argv[3])).pred_masks, sys.argv[4])
"""
    torch.save(pixels(), tmp_path / "pixels.pt")
    torch.save(BOXES, tmp_path / "boxes.pt")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    paths = [str(tmp_path / name) for name in ("packed", "pixels.pt", "boxes.pt", "masks.pt")]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        expected = quantized_mobile()(pixels(), input_boxes=BOXES).pred_masks
    assert torch.equal(torch.load(tmp_path / "masks.pt"), expected)


def test_every_planned_layer_holds_codes_and_every_slot_a_quantizer() -> None:
    model, recipe = quantized_mobile("saq-sam"), tiny_recipe("saq-sam")
    plan = plan_quantization(tiny_config(), recipe)
    kinds = [type(model.get_submodule(site.name)) for site, _ in plan.weights]
    assert set(kinds) == {PackedLinear, PackedConv2d}
    assert kinds.count(PackedConv2d) == 2 + 3 * 2 + 2  # an inverted bottleneck, three mergings, and the neck
    assert all(
        layer.weight.bits == 4 for layer in map(model.get_submodule, (s.name for s, _ in plan.weights))
    )
    for slot in plan.slots:
        assert isinstance(model.get_submodule(slot.name), (AffineQuantizer, LogQuantizer)), slot.name
    # Depthwise convolutions stay as they are.
    depthwise = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert len(depthwise) == 4 + 4


def test_everything_with_weights_can_be_packed(tmp_path: Path) -> None:
    extra = {"patch_embedding": 8, "upscaling": 6, "hypernetworks": 5, "iou_head": 8}
    model = quantize_mobile(tiny_recipe(bits="w3a8", extra=extra)).model
    embedding = model.vision_encoder.patch_embed
    assert isinstance(embedding.conv1, PackedConv2d)
    assert isinstance(embedding.conv2, PackedConv2d)
    assert isinstance(embedding.conv2.input_quantizer, nn.Identity)  # weights alone
    save_checkpoint(model, mobile_processor(), tmp_path / "packed")
    assert_same_outputs(load(tmp_path / "packed")[0], model)


def test_deployable_models_have_float_products_in_the_encoder(tmp_path: Path) -> None:
    model = quantize_mobile(deployable(tiny_recipe("mse", "w4a8"))).model
    attention = model.vision_encoder.layers[2].blocks[1].attn
    assert isinstance(attention.probability_quantizer, nn.Identity)
    with torch.inference_mode():
        windows = torch.randn(4, 6, 6, 24, generator=torch.Generator().manual_seed(1))
        found, probabilities = attention(hidden_states=windows)
        assert probabilities is None
        attention._is_fused = lambda: False
        expected, _ = attention(hidden_states=windows)
        del attention._is_fused
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    save_checkpoint(model, mobile_processor(), tmp_path / "packed")
    assert_same_outputs(load(tmp_path / "packed")[0], model)
    card = (tmp_path / "packed" / "README.md").read_text()
    assert "# MobileSAM, quantized: mse-deploy-w4a8" in card
    assert "position_embedding |" not in card


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(quantized_mobile(), mobile_processor(), tmp_path / "packed")
    text = (folder / "config.json").read_text()
    for before, after, message in (
        ('"depths": [\n      1,', '"depths": [\n      2,', "it lacks vision_encoder"),
        ('"model_type": "mobile_sam",', '"model_type": "sam",', r"packed"),
    ):
        assert before in text
        (folder / "config.json").write_text(text.replace(before, after))
        with pytest.raises(CheckpointError, match=message):
            load(folder)


class _Stop(Exception):
    pass


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    recipe = tiny_recipe("saq-sam")

    def stop(phase: str, *_: object) -> None:
        if phase.startswith("3/"):
            raise _Stop

    with pytest.raises(_Stop):
        quantize_mobile(recipe, resume_dir=tmp_path / "run", progress=stop)
    seen: list[str] = []
    note: Callable[..., None] = lambda phase, *_: seen.append(phase)  # noqa: E731
    resumed = quantize_mobile(recipe, resume_dir=tmp_path / "run", progress=note)
    assert any(phase.startswith("3/") for phase in seen)
    assert_same_outputs(resumed.model, quantized_mobile("saq-sam"))


def test_an_inventory_names_what_stays_float() -> None:
    inventory = take_inventory(quantized_mobile())
    parts = {part.part: part for part in inventory.parts}
    model = tiny_mobile_sam()
    assert sum(part.parameters for part in inventory.parts) == sum(p.numel() for p in model.parameters())
    pointwise, depthwise, biases = (
        parts[n] for n in ("encoder.pointwise", "depthwise", "relative_positions")
    )
    assert (pointwise.weight_bits, pointwise.activation_bits) == (4, 4)
    assert (depthwise.weight_bits, depthwise.activation_bits, depthwise.code_bytes) == (None, None, 0)
    assert depthwise.bytes == 2 * depthwise.parameters
    assert depthwise.macs > 0
    tables = [p.numel() for name, p in model.named_parameters() if name.endswith("attention_biases")]
    assert (biases.parameters, biases.macs) == (sum(tables), 0)
    assert inventory.share_of_macs()["float"] > depthwise.macs / inventory.macs


def test_masks_are_predicted_and_scored() -> None:
    predictor = Predictor(quantized_mobile(), mobile_processor())
    predictor.set_image(tiny_data()[0].image)
    masks, scores, _ = predictor.predict(box=np.array([4, 4, 40, 30]), multimask_output=False)
    assert masks.shape == (1, 48, 64)
    assert scores.shape == (1,)
    evaluation = evaluate(quantized_mobile(), mobile_processor(), tiny_data())
    assert evaluation.to_dict()
