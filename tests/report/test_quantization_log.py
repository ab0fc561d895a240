"""The log on disk, and the names that people read."""

import dataclasses
import json
from pathlib import Path

import pytest

from saqsam.convert.plan import plan_quantization
from saqsam.models.parts import PAPER_PARTS, PART_LABELS, PARTS
from saqsam.models.registry import module_label, slot_label
from saqsam.ptq.log import AttentionClipping, Clip, QuantizationLog, UnitLog
from saqsam.recipes.deployment import deployable
from saqsam.recipes.methods import METHODS
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.specs import QuantSpec
from saqsam.report.labels import describe, part_name, short_path
from saqsam.report.log import LOG_JSON, LOG_PICTURE, KnownLog, Source, read_log, write_log
from support.tiny_sam import tiny_config

ATTENTION = "mask_decoder.transformer.layers.0.cross_attn_token_to_image"


def test_what_is_read_back_is_what_was_written(tmp_path: Path) -> None:
    recipe = recipe_for("saq-sam")
    log = QuantizationLog(
        {ATTENTION: 3},
        [AttentionClipping(ATTENTION, (Clip("key_quantizer", None, -1.5, 2.0),), 0.5, 0.25)],
        [UnitLog("neck", [1, 9], [0.5, 0.25], 0.125)],
    )
    source = Source("sam-mini", "scenes", "boxes.json")
    write_log(log, recipe, tmp_path, source)
    assert read_log(tmp_path) == KnownLog(log, source)
    assert (tmp_path / LOG_PICTURE).is_file()
    write_log(QuantizationLog(), recipe, tmp_path / "plain")
    assert read_log(tmp_path / "plain") == KnownLog(QuantizationLog(), None)
    assert not (tmp_path / "plain" / LOG_PICTURE).exists()
    assert read_log(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"clipping": [], "units": [{"color": 1}], "signs": {}}',
        '{"clipping": [], "units": [], "signs": {"a": "many"}}',
        '{"clipping": [], "units": [], "signs": {}, "prompts": -1}',
        '{"clipping": {}, "units": [], "signs": {}}',
        '{"clipping": [{"name": "a", "clips": 1, "before": 0, "after": 0}], "units": [], "signs": {}}',
        '{"clipping": [], "units": [], "signs": {}, "source": {"model": 1, "calibration": "scenes"}}',
    ],
)
def test_a_damaged_log_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / LOG_JSON).write_text(damage)
    with pytest.raises(ValueError, match=f"{LOG_JSON}: "):
        read_log(tmp_path)


def test_logs_of_earlier_versions_name_no_source(tmp_path: Path) -> None:
    write_log(QuantizationLog(), recipe_for("mse"), tmp_path)
    content = json.loads((tmp_path / LOG_JSON).read_text())
    assert "source" not in content


def test_names() -> None:
    assert set(PARTS) <= set(PART_LABELS)
    assert part_name("decoder.mlp") == "decoder: MLP"
    assert module_label("vision_encoder.layers.2.attn.qkv") == "encoder block 3, attn.qkv"
    assert module_label(ATTENTION) == "decoder layer 1, token-to-image attention"
    assert (
        module_label("mask_decoder.transformer.final_attn_token_to_image.q_proj") == "final attention, q_proj"
    )
    assert slot_label(f"{ATTENTION}.key_quantizer") == "decoder layer 1, token-to-image attention: keys"
    assert slot_label(f"{ATTENTION}.q_proj.input_quantizer") == (
        "decoder layer 1, token-to-image attention: input of the queries"
    )
    assert slot_label("vision_encoder.neck.conv1.input_quantizer") == "neck.conv1: input"
    assert short_path("/a/b/model/") == "model"
    names = [slot_label(s.name) for s in plan_quantization(tiny_config(), recipe_for("mse")).slots]
    assert len(set(names)) == len(names)


def test_every_method_is_described_by_what_it_does() -> None:
    def text(method: str) -> str:
        return " ".join(describe(recipe_for(method, "w4a6"), Source("m", "/data/of/somebody/photos")))

    for method in METHODS:
        words = text(method)
        assert "Weights: 4 bits" in words
        assert "Activations: 6 bits" in words
        assert "32 images of photos," in words
        recipe = recipe_for(method, "w4a6")
        assert ("Bimodal integration:" in words) == recipe.bimodal
        assert ("Clipping:" in words) == (recipe.clipping is not None)
        assert ("No learning" in words) == (recipe.reconstruction is None)
        assert ("rounded to nearest" in words) == (recipe.reconstruction is recipe.compensation is None)
        assert ("Compensation:" in words) == (recipe.compensation is not None)
        assert ("Joint learning: the whole decoder" in words) == (method == "saq-sam-plus")
        assert ("Equalization:" in words) == recipe.equalized
        assert ("Balanced heads:" in words) == recipe.balanced_heads
        assert ("logarithmic codes" in words) == (recipe.probabilities.kind == "log")
        assert "Left in float16: patch embedding" in words
    assert len({text(method).replace("by percentile", "") for method in METHODS}) == len(METHODS)
    # The final attention takes a multiple of these.
    assert "(100 base steps): each stage of the encoder and each layer of the decoder learned" in text(
        "saq-sam"
    )
    deployed = " ".join(describe(deployable(recipe_for("mse", "w8a8")), None))
    assert "symmetric" in deployed
    assert "iou_head 8" in deployed
    assert "Left in float16: mask upscaling, output layers;" in deployed
    dynamic = dataclasses.replace(recipe_for("mse"), activations=QuantSpec(8, dynamic=True))
    assert "a dynamic range per row" in " ".join(describe(dynamic, None))
    assert all(part in PARTS for part in PAPER_PARTS)


def test_weight_only_recipes_are_described() -> None:
    found = " ".join(describe(recipe_for("weight-only", "w4g128"), None))
    assert "one scale per group of 128 inputs" in found
    assert "Activations stay float." in found
